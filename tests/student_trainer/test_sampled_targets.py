"""Losses on what few classes tell: draws from the teacher's probabilities, and ever more of its likeliest."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from train_runs import digits_run

from schemas.codecs import CodecSpec, Sampled
from schemas.errors import ConfigError
from schemas.hashing import hash64
from schemas.records import Output
from student_trainer.learning.losses import LOSSES
from student_trainer.learning.mean_losses import forward_kl, sampled_cross_entropy
from student_trainer.learning.positions import PositionTarget
from student_trainer.learning.targets import SampledTarget, Target, TargetSpec, target_of
from student_trainer.learning.terms import resolve
from student_trainer.processes.frames import pack, unpack
from student_trainer.run.settings import run_settings

RNG = np.random.default_rng(0)
TEACHER = RNG.normal(0, 2, (5, 9)).astype(np.float32)
STUDENT = torch.tensor(RNG.normal(0, 2, (5, 9)).astype(np.float32))


def target(values: Any, codec: str) -> Target:
    spec = CodecSpec.parse(codec)
    rows = Output.of("y", values, spec, seeds=hash64(3, np.arange(len(values)))).values()
    columns = {name: torch.tensor(column) for name, column in rows.columns.items()}
    return target_of(rows, columns).to(torch.device("cpu")).widened()


def gradient(loss: Any, against: Target) -> Tensor:
    logits = STUDENT[:1].expand(against.shape).clone().requires_grad_()
    loss(logits, against).backward()
    assert logits.grad is not None
    return logits.grad.sum(dim=0)


def test_the_loss_and_its_gradient_are_the_cross_entropys_in_expectation() -> None:
    """4,000 labels of one sample, of 20 draws each: the mean is off by no more than five of its standard errors."""
    count = 4_000
    drawn = target(np.tile(TEACHER[:1], (count, 1)), "sampled:n=20")
    rows = LOSSES["sampled_cross_entropy"].rows(
        STUDENT[:1].expand(count, -1), drawn, torch.zeros(count, dtype=torch.long), 1.0
    )
    p = torch.tensor(TEACHER[0]).double().softmax(dim=0)
    log_q = STUDENT[0].double().log_softmax(dim=0)
    exact = -(p * log_q).sum()
    error = rows.double().std() / count**0.5
    assert error < 0.02 * exact
    assert abs(rows.double().mean() - exact) < 5 * error
    found = gradient(sampled_cross_entropy, drawn).double()
    torch.testing.assert_close(found, log_q.exp() - p, atol=5 / (count * 20) ** 0.5, rtol=0)


def test_the_likeliest_classes_alone_would_be_off_by_more_than_the_draws() -> None:
    """What the codec is for: the mass of k renormalised classes is another distribution than the teacher's."""
    count = 4_000
    drawn = target(np.tile(TEACHER[:1], (count, 1)), "sampled:n=20")
    q, p = STUDENT[0].double().softmax(dim=0), torch.tensor(TEACHER[0]).double().softmax(dim=0)
    kept = torch.where(p >= p.sort(descending=True).values[2], p, 0.0)
    exact, off = q - p, (q - kept / kept.sum() - (q - p)).abs().sum()
    assert (gradient(sampled_cross_entropy, drawn).double() - exact).abs().sum() < off / 5


def test_places_cost_their_mean_and_positions_are_rows() -> None:
    values = RNG.normal(0, 2, (4, 3, 9)).astype(np.float32)
    student, drawn = torch.tensor(values) * 0.3, target(values, "sampled:n=7")
    assert (drawn.shape, drawn.draws.dtype) == ((4, 3, 9), torch.int64)
    expected = functional.cross_entropy(
        student.flatten(0, 1).repeat_interleave(7, dim=0), drawn.draws.flatten(), reduction="mean"
    )
    torch.testing.assert_close(sampled_cross_entropy(student, drawn), expected)
    flat = target(values.reshape(12, 9), "sampled:n=7")
    at, counts = torch.arange(12), torch.full((4,), 3)
    of_positions = PositionTarget(flat, "masked", (3,), at, counts, 3.0)
    torch.testing.assert_close(
        sampled_cross_entropy(student, of_positions), sampled_cross_entropy(student.flatten(0, 1), flat)
    )


def test_what_draws_cannot_tell_is_refused() -> None:
    drawn = target(TEACHER, "sampled:n=3")
    for asked in (
        lambda: drawn.logits,
        lambda: drawn.features,
        lambda: drawn.likeliest(),
        lambda: forward_kl(STUDENT, drawn),
    ):
        with pytest.raises(ConfigError, match=r"3 classes drawn at random.*use sampled_cross_entropy"):
            asked()
    for codec in ("float16", "int8", "topk:k=2", "topk:k=2,bits=8"):
        with pytest.raises(ConfigError, match="holds no draws"):
            sampled_cross_entropy(STUDENT, target(TEACHER, codec))


def test_draws_travel_in_32_bits_until_they_are_widened() -> None:
    rows = Output.of("y", TEACHER, CodecSpec("sampled", 3), seeds=hash64(3, np.arange(5))).values()
    assert isinstance(rows, Sampled)
    narrow = target_of(rows, {"draws": torch.tensor(rows.draws)})
    assert isinstance(narrow, SampledTarget)
    assert (narrow.draws.dtype, narrow.widened().draws.dtype) == (torch.int32, torch.int64)


@pytest.mark.parametrize("codec", ["float16", "int8", "int4", "topk:k=2", "topk:k=2,bits=8", "sampled:n=5"])
def test_a_target_reaches_another_process_as_it_is(codec: str) -> None:
    spec = CodecSpec.parse(codec)
    rows = Output.of("y", TEACHER, spec, seeds=hash64(3, np.arange(5))).values()
    sent = target_of(rows, {name: torch.tensor(column) for name, column in rows.columns.items()})
    got = unpack(pack(sent))
    assert type(got) is type(sent)
    for each in fields(sent):
        before, after = getattr(sent, each.name), getattr(got, each.name)
        if isinstance(before, Tensor):
            assert (before.dtype, before.tolist()) == (after.dtype, after.tolist())
        elif not isinstance(before, dict):
            assert before == after


@pytest.mark.parametrize(
    ("loss", "codec", "says"),
    [
        ({"name": "forward_kl"}, "sampled:n=5", "t.logits holds draws of classes; use sampled_cross_entropy"),
        ({"name": "reverse_kl"}, "sampled:n=5", "t.logits holds draws of classes; use sampled_cross_entropy"),
        ({"name": "logit_mse"}, "sampled:n=5", "t.logits holds draws of classes; use sampled_cross_entropy"),
        ({"name": "teacher_argmax"}, "sampled:n=5", "t.logits holds draws of classes; use sampled_cross_entropy"),
        ({"name": "sampled_cross_entropy", "temperature": 2.0}, "sampled:n=5", "draws of t.logits are at 1"),
        (
            {"name": "sampled_cross_entropy"},
            "topk:k=2",
            "t.logits is stored as topk:k=2,temperatures=1; use forward_kl",
        ),
        ({"name": "sampled_cross_entropy"}, "int8", "t.logits is stored as int8; use forward_kl"),
        ({"name": "forward_kl", "temperature": 2.0}, "topk:k=2,bits=8", "no stored tail mass"),
        ({"name": "reverse_kl"}, "topk:k=2,bits=8", "keeps only some"),
    ],
)
def test_a_loss_that_does_not_fit_its_codec_is_refused_before_the_first_step(
    loss: dict[str, Any], codec: str, says: str
) -> None:
    document = digits_run().as_dict() | {"source": "stream", "data": {"stream": "s"}, "teachers": [{"name": "t"}]}
    spec = TargetSpec("logits", (9,), 9, CodecSpec.parse(codec), default=True)
    with pytest.raises(ConfigError, match=says.replace(".", r"\.")):
        resolve(run_settings(document | {"losses": [loss]}), {"t.logits": spec})
    assert resolve(
        run_settings(document | {"losses": [{"name": "sampled_cross_entropy"}]}),
        {"t.logits": replace(spec, codec=CodecSpec("sampled", 5))},
    )


@pytest.mark.parametrize("bits", ["", ",bits=8"])
def test_the_gradient_of_top_k_comes_to_the_dense_one_as_k_grows(bits: str) -> None:
    """With the exact tail the classes outside the k share what is wrong, and that is less the more are kept."""
    num_classes = 200
    teacher = RNG.normal(0, 3, (4, num_classes)).astype(np.float32)
    student = torch.tensor(RNG.normal(0, 1, (4, num_classes)).astype(np.float32))

    def of(codec: str) -> Tensor:
        logits = student.clone().requires_grad_()
        forward_kl(logits, target(teacher, codec)).backward()
        assert logits.grad is not None
        return logits.grad

    dense = of("float32")
    errors = [(of(f"topk:k={k}{bits}") - dense).abs().sum().item() for k in (1, 5, 20, 80, 200)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < errors[0] / 4
    assert errors[-1] < 0.01 * dense.abs().sum().item()
