"""What each loss is on and against: chosen by name, refused at the start where it does not fit, projected, averaged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from train_runs import digits_run

from schemas.codecs import CodecSpec
from schemas.errors import CheckpointError, ConfigError
from schemas.records import Output, Teacher, TeacherInput, TeacherOutput
from student_trainer.batches import Batch
from student_trainer.learning.fitting import fit
from student_trainer.learning.losses import LOSSES
from student_trainer.learning.student_outputs import StudentOutputs, named, pick, probe
from student_trainer.learning.students import Network
from student_trainer.learning.targets import DenseTarget, FeatureTarget, Target, TargetSpec, target_of, target_specs
from student_trainer.learning.terms import Term, needed_targets, resolve
from student_trainer.learning.total import total_loss
from student_trainer.learning.trainee import Trainee, weights_sha256
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.run.student_settings import StudentSettings

B, C, L, H, WIDE = 6, 5, 3, 4, 8
FLOAT32 = CodecSpec()
LABELS = torch.tensor([0, -1, 3, 4, -1, 2])
OUTPUTS = (
    TeacherOutput.of_classes("y", "logits", C),
    TeacherOutput("hidden", "h", "features", (H,), None, 0, FLOAT32),
    TeacherOutput("tokens", "t", "features", (L, WIDE), None, 0, FLOAT32),
    TeacherOutput("mask", "m", "logits", (C, L), 0, C, FLOAT32),
)


def teacher(name: str, *outputs: TeacherOutput) -> Teacher:
    fed = (TeacherInput("x", "image", "float32", "nchw", 1.0, ()),)
    return Teacher("id", name, "0" * 64, "m.onnx", fed, outputs or OUTPUTS, 8)


def specs(*teachers: Teacher) -> dict[str, TargetSpec]:
    return {name: spec for one in teachers for name, spec in target_specs(one, CodecSpec("float16")).items()}


ONE = specs(teacher("a"))
TWO = specs(teacher("a"), teacher("b"))


def run(*losses: dict[str, Any], teachers: tuple[str, ...] = ("a",), **student: Any) -> RunSettings:
    document = digits_run().as_dict() | {"source": "stream", "data": {"stream": "s"}, "evaluation": {}}
    document["teachers"] = [
        {"name": name, "weight": weight} for name, weight in zip(teachers, (1.0, 3.0), strict=False)
    ]
    return run_settings(document | {"losses": list(losses), "student": student or {"name": "linear"}})


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32))


def test_a_loss_is_against_the_classes_of_each_teacher_unless_it_names_an_output() -> None:
    def shares(entry: dict[str, Any], *teachers: str) -> dict[str, float]:
        (term,) = resolve(run(entry, teachers=teachers), TWO)
        return term.shares

    assert shares({"name": "forward_kl"}, "a", "b") == {"a.logits": 0.25, "b.logits": 0.75}
    assert shares({"name": "mse", "against": "hidden"}, "a", "b") == {"a.hidden": 0.25, "b.hidden": 0.75}
    assert shares({"name": "mse", "against": "b.hidden"}, "a", "b") == {"b.hidden": 1.0}
    assert shares({"name": "forward_kl"}, "b") == {"b.logits": 1.0}
    assert shares({"name": "cross_entropy"}, "a", "b") == {}


def test_only_outputs_that_a_loss_is_against_are_needed() -> None:
    settings = run({"name": "cosine", "against": "a.tokens"}, {"name": "cross_entropy"}, {"name": "forward_kl"})
    assert needed_targets(settings, ONE) == ("a.tokens", "a.logits")


def test_a_teacher_whose_classes_lie_at_several_places_has_them_as_its_default() -> None:
    assert [name for name, spec in specs(teacher("a", *OUTPUTS[1:])).items() if spec.default] == ["a.mask"]
    assert ONE["a.mask"].shape == (L, C)
    assert not any(spec.default for spec in specs(teacher("a", OUTPUTS[1])).values())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such output": (
        {"name": "mse", "against": "hiden"},
        "'a' has no output 'hiden'; it has a.logits, a.hidden",
    ),
    "no such teacher": ({"name": "mse", "against": "c.hidden"}, "against 'c.hidden': did you mean 'a.hidden'"),
    "features without a name": ({"name": "mse"}, "needs features, but a.logits holds logits; name an output"),
    "classes of features": ({"name": "forward_kl", "against": "hidden"}, "needs classes, but a.hidden holds features"),
    "a label's teacher": ({"name": "cross_entropy", "against": "hidden"}, "learns from labels: leave out `against`"),
    "a projection of classes": ({"name": "forward_kl", "projection": "linear"}, "a projection is for losses on feat"),
    "a projection of labels": ({"name": "cross_entropy", "projection": "linear"}, "a projection is for losses on feat"),
    "an unknown projection": ({"name": "mse", "projection": "lineer"}, "did you mean 'linear'"),
    "a projection like none": ({"name": "mse", "projection": "cubic"}, "unknown: choose one of conv, linear"),
    "a projection of relations": (
        {"name": "similarity", "against": "hidden", "projection": "linear"},
        "compares features of any width: leave out `projection`",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_before_the_start(name: str) -> None:
    entry, says = REFUSED[name]
    with pytest.raises(ConfigError, match=says) as caught:
        resolve(run(entry), ONE)
    assert "\n" not in str(caught.value)


def test_teachers_whose_rows_differ_are_refused_unless_one_is_named() -> None:
    other = specs(teacher("a"), teacher("b", OUTPUTS[0], replace(OUTPUTS[1], shape=(7,))))
    entry = {"name": "mse", "against": "hidden"}
    with pytest.raises(ConfigError, match=r"a\.hidden has rows of \[N, 4\], b\.hidden of \[N, 7\]: name one"):
        resolve(run(entry, teachers=("a", "b")), other)
    resolve(run(entry | {"against": "b.hidden"}, teachers=("a", "b")), other)


GIVEN = {"logits": (C,), "hidden": (H,), "tokens": (L, H), "map": (L, C)}


def terms(*losses: dict[str, Any]) -> tuple[Term, ...]:
    return resolve(run(*losses), ONE)


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "no such output": ({"name": "mse", "on": "hiden", "against": "hidden"}, "no 'hiden': did you mean 'hidden'"),
    "another width": (
        {"name": "mse", "on": "tokens", "against": "tokens"},
        r"rows of \[N, 3, 4\], against a.tokens of \[N, 3, 8\]; where widths alone differ, say projection",
    ),
    "another number of places": (
        {"name": "mse", "on": "hidden", "against": "tokens", "projection": "linear"},
        r"rows of \[N, 4\], against a.tokens of \[N, 3, 8\]",
    ),
    "other classes": ({"name": "forward_kl", "on": "hidden"}, r"rows of \[N, 4\], against a.logits of \[N, 5\]"),
    "classes that are no places": ({"name": "forward_kl", "against": "mask"}, r"against a.mask of \[N, 3, 5\]"),
    "labels of another output": ({"name": "cross_entropy", "on": "hidden"}, r"against the labels' classes of \[N, 5\]"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_the_student_does_not_give_is_refused_before_the_first_step(name: str) -> None:
    entry, says = MISFITS[name]
    with pytest.raises(ConfigError, match=says) as caught:
        fit(terms(entry), GIVEN, C, 0)
    assert "\n" not in str(caught.value)


def test_a_student_may_know_more_classes_than_the_labels_have() -> None:
    assert fit(terms({"name": "cross_entropy"}), {"logits": (C + 1,)}, C, 0) == {}


def test_features_cost_what_their_difference_and_their_angle_cost() -> None:
    student, wanted = draw(B, L, H), draw(B, L, H, seed=1)
    target = FeatureTarget(wanted)
    rows = LOSSES["mse"].function(student, target, LABELS, 1.0)
    torch.testing.assert_close(rows, (student - wanted).square().mean(dim=(1, 2)))
    rows = LOSSES["cosine"].function(student, target, LABELS, 1.0)
    cosines = (student * wanted).sum(dim=2) / (student.norm(dim=2) * wanted.norm(dim=2))
    torch.testing.assert_close(rows, (1 - cosines).mean(dim=1))
    assert LOSSES["cosine"].function(wanted * 3, target, LABELS, 1.0).abs().max() < 1e-6
    assert LOSSES["mse"].function(draw(B), FeatureTarget(draw(B)), LABELS, 1.0).tolist() == [0.0] * B


TOPK = "topk:k=2,temperatures=1|2"
OF_CLASSES = {name: loss.needs for name, loss in LOSSES.items() if "classes" in loss.needs and not loss.batchwise}


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *((name, "float32") for name in OF_CLASSES),
        *((name, TOPK) for name, needs in OF_CLASSES.items() if "dense" not in needs),
    ],
)
def test_classes_at_several_places_cost_the_mean_over_the_places(name: str, codec: str) -> None:
    spec = CodecSpec.parse(codec)
    wanted, student = draw(B, L, C, seed=1), draw(B, L, C)

    def target(values: Tensor) -> Target:
        rows = Output.of("mask", values.numpy(), spec).values()
        return target_of(rows, {key: torch.tensor(column) for key, column in rows.columns.items()})

    outputs = (replace(OUTPUTS[3], codec=spec), OUTPUTS[0])
    (term,) = resolve(run({"name": name, "against": "mask", "temperature": 2.0}), specs(teacher("a", *outputs)))
    _, parts = total_loss([term], 1.0)({"logits": student}, {"a.mask": target(wanted)}, LABELS)
    each = [
        LOSSES[name].function(student[:, place], target(wanted[:, place].contiguous()).widened(), LABELS, 2.0)
        for place in range(L)
    ]
    torch.testing.assert_close(parts[name], torch.stack(each).mean(dim=0), rtol=1e-5, atol=1e-6)


def test_a_total_of_logits_and_features_is_the_sum_of_its_weighted_terms() -> None:
    chosen = terms(
        {"name": "forward_kl", "weight": 0.5},
        {"name": "mse", "on": "hidden", "against": "hidden", "weight": 2.0},
        {"name": "cosine", "on": "hidden", "against": "hidden", "key": "angle"},
    )
    student = {"logits": draw(B, C), "hidden": draw(B, H)}
    targets: dict[str, Target] = {
        "a.logits": DenseTarget(draw(B, C, seed=1).half()),
        "a.hidden": FeatureTarget(draw(B, H, seed=2).half()),
    }
    value, parts = total_loss(chosen, 1.0)(student, targets, LABELS)
    assert list(parts) == ["forward_kl", "mse", "angle"]
    expected = 0.5 * parts["forward_kl"].mean() + 2 * parts["mse"].mean() + parts["angle"].mean()
    torch.testing.assert_close(value, expected)


MAPS = TeacherOutput("maps", "m", "features", (WIDE, 3, 2), None, 0, FLOAT32)
OF_MAPS = specs(teacher("a", OUTPUTS[0], OUTPUTS[1], MAPS))
GIVES = {"logits": (C,), "maps": (H, 3, 2), "small": (H, 3, 1), "hidden": (H + 1,), "wide": (WIDE, 3, 2)}


def of_maps(name: str, **more: Any) -> tuple[Term, ...]:
    return resolve(run({"name": name, "on": "maps", "against": "maps", **more}), OF_MAPS)


def test_a_conv_projection_leads_from_a_students_channels_to_a_teachers() -> None:
    (layer,) = fit(of_maps("mse", projection="conv"), GIVES, C, 0).values()
    assert layer.weight.shape == (WIDE, H, 1, 1)
    assert layer.bias is not None
    assert layer(draw(B, H, 3, 2)).shape == (B, WIDE, 3, 2)
    for refused, says in (
        (of_maps("mse"), r'against a.maps of \[N, 8, 3, 2\]; where channels alone differ, say projection = "conv"$'),
        (of_maps("mse", projection="conv", on="small"), r"rows of \[N, 4, 3, 1\], against a.maps of \[N, 8, 3, 2\]$"),
        (of_maps("mse", projection="conv", on="hidden"), r"rows of \[N, 5\], against a.maps"),
        (of_maps("mse", projection="linear"), r"rows of \[N, 4, 3, 2\], against a.maps"),
    ):
        with pytest.raises(ConfigError, match=says):
            fit(refused, GIVES, C, 0)


def test_attention_asks_for_equal_places_alone_and_relations_for_nothing() -> None:
    assert fit(of_maps("attention_transfer"), GIVES, C, 0) == {}
    for name in ("rkd_distance", "rkd_angle", "similarity"):
        assert fit(of_maps(name), GIVES, C, 0) == fit(of_maps(name, on="hidden"), GIVES, C, 0) == {}
    with pytest.raises(ConfigError, match=r"rows of \[N, 4, 3, 1\], against a.maps of \[N, 8, 3, 2\]$"):
        fit(of_maps("attention_transfer", on="small"), GIVES, C, 0)
    with pytest.raises(ConfigError, match=r"attention is of rows \[N, C, H, W\].*; the student gives \[N, 5\]"):
        fit(of_maps("attention_transfer", on="hidden"), GIVES, C, 0)


def test_a_projection_has_weights_of_its_own_seed_and_key() -> None:
    entry = {"name": "mse", "on": "tokens", "against": "tokens", "projection": "linear"}
    weights = [
        fit(terms({**entry, "key": key}), GIVEN, C, seed)[key].weight
        for key, seed in (("one", 3), ("one", 3), ("two", 3), ("one", 4))
    ]
    assert weights[0].shape == (WIDE, H)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


# --- students ---------------------------------------------------------------------------------------------------------


class Student(nn.Module):
    """[B, H] floats -> classes and a hidden layer, in a form that the test chooses."""

    def __init__(self, form: str = "dict") -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(H, H), nn.Tanh())
        self.head = nn.Linear(H, C)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        hidden = self.hidden(x)
        return FORMS[self.form](self.head(hidden), hidden)


@dataclass
class Fields:
    logits: Tensor
    hidden: Tensor
    loss: None = None


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


class Plain:
    def __init__(self, logits: Tensor, hidden: Tensor) -> None:
        self.logits, self.hidden, self.name = logits, hidden, "plain"


FORMS: dict[str, Any] = {
    "tensor": lambda logits, hidden: logits,
    "dict": lambda logits, hidden: {"logits": logits, "hidden": hidden, "loss": None},
    "dataclass": Fields,
    "named tuple": Pair,
    "object": Plain,
    "scores alone": lambda logits, hidden: {"scores": logits},
    "two of other names": lambda logits, hidden: {"scores": logits, "hidden": hidden},
    "list": lambda logits, hidden: [logits, hidden],
    "no rows": lambda logits, hidden: logits.sum(),
}


def student(input_shape: tuple[int, ...], num_classes: int, form: str = "dict") -> nn.Module:
    return Student(form)


@pytest.mark.parametrize("form", ["dict", "dataclass", "named tuple", "object"])
def test_a_student_gives_several_outputs_by_name(form: str) -> None:
    outputs = StudentOutputs(Student(form), {})(draw(B, H))
    assert {name: tuple(values.shape) for name, values in outputs.items()} == {"logits": (B, C), "hidden": (B, H)}


def test_without_a_name_the_logits_are_taken_or_the_only_output() -> None:
    assert pick(named(Student("tensor")(draw(B, H)))).shape == (B, C)
    assert pick(named(Student("dict")(draw(B, H)))).shape == (B, C)
    assert pick(named(Student("scores alone")(draw(B, H)))).shape == (B, C)
    with pytest.raises(ConfigError, match="gives scores, hidden and no 'logits': say which with `on`"):
        pick(named(Student("two of other names")(draw(B, H))))
    with pytest.raises(ConfigError, match="gave a list; it has to give a tensor, a dict of tensors"):
        named(Student("list")(draw(B, H)))


def test_an_inner_value_is_taken_by_the_name_of_its_module() -> None:
    model = Student("tensor")
    outputs = StudentOutputs(model, {"inner": "hidden.1", "before": "hidden.0"})(draw(B, H))
    assert list(outputs) == ["logits", "before", "inner"]
    assert torch.equal(outputs["inner"], outputs["before"].tanh())
    outputs["inner"].sum().backward()
    assert model.hidden[0].weight.grad is not None


def test_a_module_that_is_called_twice_a_step_is_refused_and_twice_without_a_step_is_not() -> None:
    model = nn.Sequential(shared := nn.Linear(H, H), nn.Tanh(), shared)
    outputs = StudentOutputs(model, {"inner": "0"})
    with pytest.raises(ConfigError, match=r"outputs\.inner: 0 is called more than once a step"):
        outputs(draw(B, H))
    once = Student("tensor")
    outputs = StudentOutputs(once, {"inner": "hidden"})
    for _ in range(2):  # as an evaluation does
        once(draw(B, H))
    assert list(outputs(draw(B, H))) == ["logits", "inner"]


@pytest.mark.parametrize(
    ("form", "inner", "says"),
    [
        ("tensor", {"inner": "hiden"}, "there is no module 'hiden': did you mean 'hidden'"),
        ("dict", {"hidden": "hidden.0"}, "the student gives an output of that name itself"),
    ],
)
def test_an_inner_value_that_is_none_is_refused(form: str, inner: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[student\] outputs\.\w+: {says}"):
        StudentOutputs(Student(form), inner)(draw(B, H))


def test_an_inner_value_that_a_later_module_overwrites_is_refused() -> None:
    model = nn.Sequential(nn.Linear(H, H), nn.ReLU(inplace=True), nn.Linear(H, C))
    with pytest.raises(ConfigError, match=r"outputs\.inner: what its module gives is changed in place by a later one"):
        StudentOutputs(model, {"inner": "0"})(draw(B, H))
    assert (StudentOutputs(model, {"inner": "1"})(draw(B, H))["inner"] >= 0).all()


def test_no_inner_value_stands_for_the_logits_that_evaluations_and_exports_take() -> None:
    with pytest.raises(ConfigError, match=r"outputs\.logits: evaluations and exports take the student's own output"):
        StudentOutputs(Student("scores alone"), {"logits": "hidden"})


NETWORK = Network.of("x", (H,), C, "float32")
CPU = torch.device("cpu")


def trainee(*losses: dict[str, Any], form: str = "dict", **more: Any) -> Trainee:
    settings = run(*losses, name=f"{__name__}:student", form=form, **more)
    return Trainee(settings, NETWORK, 10, 1.0, CPU, resolve(settings, ONE))


def test_a_student_is_asked_what_it_gives_before_the_first_step() -> None:
    settings = StudentSettings(f"{__name__}:student", outputs={"inner": "hidden"}, params={"form": "tensor"})
    assert probe(settings, NETWORK, 0, CPU, None) == {"logits": (C,), "inner": (H,)}
    with pytest.raises(ConfigError, match=r"output 'logits' has shape \(\) for 2 samples"):
        probe(replace(settings, params={"form": "no rows"}), NETWORK, 0, CPU, None)
    with pytest.raises(ConfigError, match=r"fails on samples of \(7,\)"):
        probe(settings, Network.of("x", (7,), C), 0, CPU, None)


KL = {"name": "forward_kl"}
HERE = Path("here")


def batch(seed: int = 0) -> Batch:
    targets: dict[str, Target] = {
        "a.logits": DenseTarget(draw(B, C, seed=seed + 1)),
        "a.hidden": FeatureTarget(draw(B, H, seed=seed + 2).half()),
    }
    return Batch(torch.arange(B), {"x": draw(B, H, seed=seed)}, LABELS, targets)


def test_adding_a_loss_leaves_the_initial_weights_as_they_are() -> None:
    plain, more = trainee(KL), trainee(KL, {"name": "mse", "on": "hidden", "against": "hidden", "projection": "linear"})
    assert weights_sha256(plain.model) == weights_sha256(more.model)
    assert weights_sha256(trainee(KL, form="tensor").model) == weights_sha256(plain.model)
    assert weights_sha256(trainee(KL, form="tensor", outputs={"inner": "hidden.0"}).model) == weights_sha256(
        plain.model
    )


def test_a_projection_learns_and_is_in_the_checkpoint_and_not_in_the_student() -> None:
    losses = (KL, {"name": "mse", "on": "hidden", "against": "hidden", "projection": "linear", "weight": 4.0})
    whole, first = trainee(*losses), trainee(*losses)
    before = whole.state()["projections"]["mse"]["weight"].clone()
    for step in range(6):
        whole.take_step(batch(step), step)
        if step < 3:
            first.take_step(batch(step), step)
    assert not torch.equal(whole.state()["projections"]["mse"]["weight"], before)
    assert not any("projection" in name for name in whole.model.state_dict())
    resumed = trainee(*losses)
    resumed.load(first.state(), HERE)
    for step in range(3, 6):
        resumed.take_step(batch(step), step)
    assert weights_sha256(resumed.model) == weights_sha256(whole.model)
    for name, values in whole.state()["projections"]["mse"].items():
        assert torch.equal(resumed.state()["projections"]["mse"][name], values)
    with pytest.raises(CheckpointError):
        trainee(*losses).load(trainee(KL).state(), HERE)


def test_an_inner_value_learns_from_features() -> None:
    entry = {"name": "mse", "on": "inner", "against": "hidden"}
    learner = trainee(entry, form="tensor", outputs={"inner": "hidden.0"})
    same = batch()
    costs = [learner.take_step(same, step).loss.item() for step in range(10)]
    assert costs[-1] < costs[0]
