"""What is done to a student's output before it is compared: reduced as the teacher's was, and to its classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_terms import B, C, H, L, draw, run, specs, teacher
from test_widening import DEVICES
from torch import Tensor
from torch.nn import functional

from schemas.codecs import CodecSpec
from schemas.errors import ConfigError
from schemas.records import Output, TeacherOutput
from schemas.reductions import REDUCTIONS, Reduction
from student_trainer.learning.alignment import REDUCTIONS as OF_TENSORS
from student_trainer.learning.alignment import alignments
from student_trainer.learning.fitting import fit
from student_trainer.learning.positions import PositionTarget
from student_trainer.learning.targets import FeatureTarget, Target, target_of
from student_trainer.learning.terms import resolve
from student_trainer.learning.total import total_loss

FLOAT32 = CodecSpec()
LABELS = torch.tensor([0, -1, 3, 4, -1, 2])
WHOLE = TeacherOutput.of_classes("y", "logits", C)
FIRST = replace(WHOLE, num_classes=3, shape=(3,), class_map=(4, -1, 1))
SECOND = replace(WHOLE, num_classes=3, shape=(3,), class_map=(0, 2, 3))
PERMUTED = replace(WHOLE, class_map=(4, 3, 2, 1, 0))
TAGS = TeacherOutput("tags", "y", "multilabel", (C,), 0, C, FLOAT32)
TOKENS = TeacherOutput("tokens", "t", "features", (L, H), None, 0, FLOAT32)


def target(values: Tensor, codec: str = "float32", classes: bool = True) -> Target:
    rows = Output.of("o", values.numpy(), CodecSpec.parse(codec), classes=classes).values()
    return target_of(rows, {name: torch.tensor(column) for name, column in rows.columns.items()})


def test_a_students_reductions_are_those_of_the_log() -> None:
    assert OF_TENSORS.keys() == REDUCTIONS.keys()
    values = draw(3, 4, 5, 6)
    for name in REDUCTIONS:
        for axis in (1, 2, 3):
            stored = torch.from_numpy(Reduction(name, axis)(values.numpy()))
            torch.testing.assert_close(OF_TENSORS[name](values, axis), stored, rtol=1e-6, atol=1e-6)


def reference(student: Tensor, wanted: Tensor, classes: list[int], temperature: float) -> Tensor:
    """KL of the teacher to the student's distribution given that it is one of the classes."""
    p = functional.softmax(student.double() / temperature, dim=1)[:, classes]
    q = functional.log_softmax(wanted.double() / temperature, dim=1)
    return temperature**2 * (q.exp() * (q - (p / p.sum(dim=1, keepdim=True)).log())).sum(dim=1)


@pytest.mark.parametrize("codec", ["float32", "topk:k=2,temperatures=2"])
def test_a_specialist_is_held_against_the_students_distribution_among_its_classes(codec: str) -> None:
    of_one = specs(teacher("a", replace(FIRST, codec=CodecSpec.parse(codec))))
    (term,) = resolve(run({"name": "forward_kl", "temperature": 2.0}), of_one)
    assert fit([term], {"logits": (C,)}, C, 0) == {}
    student, wanted = draw(B, C).requires_grad_(), draw(B, 2, seed=1)
    value, _ = total_loss([term], 1.0)({"logits": student}, {"a.logits": target(wanted, codec)}, LABELS)
    expected = reference(student, wanted, [1, 4], 2.0).mean()
    torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-3)
    value.backward()
    assert student.grad is not None
    assert (student.grad[:, [0, 2, 3]] == 0).all()


def test_each_specialist_of_an_ensemble_has_its_own_classes() -> None:
    two = specs(teacher("a", FIRST), teacher("b", SECOND))
    (term,) = resolve(run({"name": "forward_kl"}, teachers=("a", "b")), two)
    assert fit([term], {"logits": (C,)}, C, 0) == {}
    student, one, other = draw(B, C), draw(B, 2, seed=1), draw(B, 3, seed=2)
    value, _ = total_loss([term], 1.0)(
        {"logits": student}, {"a.logits": target(one), "b.logits": target(other)}, LABELS
    )
    parts = 0.25 * reference(student, one, [1, 4], 1.0) + 0.75 * reference(student, other, [0, 2, 3], 1.0)
    torch.testing.assert_close(value.double(), parts.mean(), rtol=1e-4, atol=1e-5)


def test_a_permuted_teacher_beside_one_that_is_not_needs_nothing_in_training() -> None:
    two = specs(teacher("a", WHOLE), teacher("b", PERMUTED))
    (term,) = resolve(run({"name": "logit_mse"}, teachers=("a", "b")), two)
    assert fit([term], {"logits": (C,)}, C, 0) == {}
    student = draw(B, C)
    assert alignments(two)["b.logits"](student) is student


def test_some_tags_of_a_student_are_held_against_a_teacher_of_some() -> None:
    some = replace(TAGS, num_classes=3, shape=(3,), class_map=(4, -1, 1))
    (term,) = resolve(run({"name": "binary_kl", "against": "tags"}), specs(teacher("a", some)))
    fit([term], {"logits": (C,)}, C, 0)
    student, wanted = draw(B, C), draw(B, 2, seed=1)
    value, _ = total_loss([term], 1.0)({"logits": student}, {"a.tags": FeatureTarget(wanted)}, LABELS)
    p, q = (torch.distributions.Bernoulli(logits=each) for each in (wanted, student[:, [1, 4]]))
    torch.testing.assert_close(value, torch.distributions.kl_divergence(p, q).sum(dim=1).mean())


@pytest.mark.parametrize("text", ["mean@1", "first@1", "attention@1"])
@pytest.mark.parametrize("reduced", [False, True])
def test_a_students_value_is_reduced_where_it_has_as_many_axes_as_the_teachers_had(text: str, reduced: bool) -> None:
    entry = {"name": "mse", "on": "tokens", "against": "tokens"}
    (term,) = resolve(run(entry), specs(teacher("a", replace(TOKENS, reduction=text))))
    student, wanted = draw(B, L, H), draw(B, H, seed=1)
    own = torch.from_numpy(Reduction.parse(text)(student.numpy()))
    given = own if reduced else student
    assert fit([term], {"tokens": tuple(given.shape[1:])}, C, 0) == {}
    value, _ = total_loss([term], 1.0)({"tokens": given}, {"a.tokens": FeatureTarget(wanted)}, LABELS)
    torch.testing.assert_close(value, (own - wanted).square().mean())


def test_what_a_student_gives_is_reduced_before_its_positions_are_picked() -> None:
    token = TeacherOutput("t", "t", "features", (L, 2, H), None, 0, FLOAT32, "position", "masked", reduction="mean@2")
    (term,) = resolve(run({"name": "mse", "on": "heads", "against": "t"}), specs(teacher("a", token)))
    fit([term], {"heads": (L, 2, H)}, C, 0)
    student, wanted, at = draw(B, L, 2, H), draw(B, H, seed=1), torch.arange(B) * L + 1
    rows = PositionTarget(FeatureTarget(wanted), "masked", (L,), at, torch.ones(B, dtype=torch.int64), 1.0)
    value, _ = total_loss([term], 1.0)({"heads": student}, {"a.t": rows}, LABELS)
    torch.testing.assert_close(value, (student.mean(dim=2)[:, 1] - wanted).square().mean())


def test_a_projection_comes_behind_the_reduction() -> None:
    entry = {"name": "mse", "on": "tokens", "against": "tokens", "projection": "linear"}
    (term,) = resolve(run(entry), specs(teacher("a", replace(TOKENS, reduction="mean@1"))))
    layers = fit([term], {"tokens": (L + 1, 7)}, C, 0)
    assert layers["mse"].weight.shape == (H, 7)
    student, wanted = draw(B, L + 1, 7), draw(B, H, seed=1)
    value, _ = total_loss([term], 1.0, layers)({"tokens": student}, {"a.tokens": FeatureTarget(wanted)}, LABELS)
    torch.testing.assert_close(value, (layers["mse"](student.mean(dim=1)) - wanted).square().mean())


def test_losses_on_one_output_are_each_reduced_as_their_own_teacher_was() -> None:
    heads = replace(TOKENS, shape=(2, L, H))
    two = specs(teacher("a", replace(TOKENS, reduction="mean@1")), teacher("b", replace(heads, reduction="mean@1")))
    entries = [{"name": "mse", "key": name, "on": "tokens", "against": f"{name}.tokens"} for name in ("a", "b")]
    terms = resolve(run(*entries, teachers=("a", "b")), two)
    fit(terms, {"tokens": (L, H)}, C, 0)
    student, mean, whole = draw(L, L, H), draw(L, H, seed=1), draw(L, L, H, seed=2)  # B == L: either would broadcast
    wanted: dict[str, Target] = {"a.tokens": FeatureTarget(mean), "b.tokens": FeatureTarget(whole)}
    _, parts = total_loss(terms, 1.0)({"tokens": student}, wanted, LABELS[:L])
    torch.testing.assert_close(parts["a"], (student.mean(dim=1) - mean).square().mean(dim=1))
    torch.testing.assert_close(parts["b"], (student - whole).square().mean(dim=(1, 2)))


def test_a_projection_is_of_the_classes_that_each_teacher_has() -> None:
    maps = {"a": (4, -1, 1), "b": (0, 2, -1)}
    tags = {name: replace(TAGS, num_classes=3, shape=(3,), class_map=each) for name, each in maps.items()}
    two = specs(*(teacher(name, each) for name, each in tags.items()))
    entry = {"name": "mse", "against": "tags", "projection": "linear"}
    (term,) = resolve(run(entry, teachers=("a", "b")), two)
    layers = fit([term], {"logits": (C,)}, C, 0)
    student, ones, others = draw(B, C), draw(B, 2, seed=1), draw(B, 2, seed=2)
    wanted: dict[str, Target] = {"a.tags": FeatureTarget(ones), "b.tags": FeatureTarget(others)}
    _, parts = total_loss([term], 1.0, layers)({"logits": student}, wanted, LABELS)
    rows = [
        (layers["mse"](student[:, classes]) - each).square().mean(dim=1)
        for classes, each in (([1, 4], ones), ([0, 2], others))
    ]
    torch.testing.assert_close(parts["mse"], 0.25 * rows[0] + 0.75 * rows[1])


def needs_both(logits: Tensor, target: Target, labels: Tensor, temperature: float) -> Tensor:
    return logits.sum(dim=1)


needs_both.needs = {"teacher", "classes", "labels"}  # type: ignore[attr-defined]

MISFITS: dict[str, tuple[dict[str, Any], tuple[TeacherOutput, ...], tuple[int, ...], str]] = {
    "a softmax over tags": (
        {"name": "forward_kl", "against": "tags"},
        (TAGS,),
        (C,),
        "needs classes, but a.tags holds multilabel; use binary_kl",
    ),
    "sigmoids of a softmax": ({"name": "binary_kl"}, (WHOLE,), (C,), "needs multilabel logits, .* use forward_kl"),
    "sigmoids of features": (
        {"name": "binary_kl", "against": "tokens"},
        (TOKENS,),
        (C,),
        "needs multilabel logits, but a.tokens holds features; use mse or cosine",
    ),
    "fewer classes than the map has": (
        {"name": "forward_kl"},
        (FIRST,),
        (4,),
        r"gives rows of \[N, 4\], and a.logits are of classes up to 4",
    ),
    "as many classes as the map has": (
        {"name": "forward_kl"},
        (FIRST,),
        (2,),
        r"gives rows of \[N, 2\], and a.logits are of classes up to 4",
    ),
    "labels of other classes": (
        {"name": f"{__name__}:needs_both"},
        (FIRST,),
        (C,),
        "labels are of all 5 classes, and a.logits is of 2 of them",
    ),
    "labels of classes that an output does not have": (
        {"name": f"{__name__}:needs_both", "on": "few", "against": "few"},
        (replace(WHOLE, name="few", num_classes=3, shape=(3,)),),
        (3,),
        "labels are of 5 classes, a.few is of 3",
    ),
    "other widths": (
        {"name": "mse", "against": "tokens"},
        (replace(TOKENS, reduction="mean@1"),),
        (L, H + 1),
        r"gives rows of \[N, 5\], against a.tokens of \[N, 4\]; where widths alone differ",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_refused_in_one_line(name: str) -> None:
    entry, outputs, given, says = MISFITS[name]
    with pytest.raises(ConfigError, match=says) as caught:
        fit(resolve(run(entry), specs(teacher("a", *outputs))), {entry.get("on", "logits"): given}, C, 0)
    assert "\n" not in str(caught.value)


def test_teachers_of_other_places_are_refused_with_a_class_map_too() -> None:
    area = replace(WHOLE, name="logits", shape=(3, 3), class_axis=1, num_classes=3, class_map=(4, -1, 1))
    two = specs(teacher("a", WHOLE), teacher("b", area))
    terms = resolve(run({"name": "forward_kl"}, teachers=("a", "b")), two)
    with pytest.raises(ConfigError, match=r"gives rows of \[N, 2\], against b.logits of \[N, 3, 2\]"):
        fit(terms, {"logits": (C,)}, C, 0)


def test_logits_of_tags_may_be_held_against_one_another_as_numbers() -> None:
    (term,) = resolve(run({"name": "mse", "against": "tags"}), specs(teacher("a", TAGS)))
    fit([term], {"logits": (C,)}, C, 0)
    student, wanted = draw(B, C), draw(B, C, seed=1)
    value, _ = total_loss([term], 1.0)({"logits": student}, {"a.tags": FeatureTarget(wanted)}, LABELS)
    torch.testing.assert_close(value, (student - wanted).square().mean())


def test_the_classes_that_a_loss_takes_unless_told_are_those_of_a_softmax() -> None:
    names = {"tags": TAGS, "logits": WHOLE}
    defaults = [
        [name for name, spec in specs(teacher("a", *outputs)).items() if spec.default]
        for outputs in ((TAGS, WHOLE), (TAGS,), (TOKENS, TAGS))
    ]
    assert defaults == [["a.logits"], ["a.tags"], ["a.tags"]]
    assert names["tags"].codec_classes == 0


def test_values_of_tags_are_a_target_without_a_softmax() -> None:
    tags = target(draw(B, C), classes=False)
    assert torch.equal(tags.features, draw(B, C))
    with pytest.raises(ConfigError, match="multilabel logits or labels, which no softmax is taken of"):
        _ = tags.logits
    assert np.isfinite(tags.features.numpy()).all()


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_of_a_gathered_output_is_the_same_each_time_on_any_device(device: str) -> None:
    aligned = alignments(specs(teacher("a", SECOND)))["a.logits"]
    gradients = []
    for _ in range(2):
        student = draw(64, C).to(device).requires_grad_()
        aligned(student).square().sum().backward()
        assert student.grad is not None
        gradients.append(student.grad.cpu())
    assert torch.equal(*gradients)
    assert (gradients[0][:, [1, 4]] == 0).all()
