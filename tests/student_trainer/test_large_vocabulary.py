"""Top-k with exact tails of a vocabulary of 50,000, as a log has it, held against all classes in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from schemas.codecs import CodecSpec
from schemas.records import Output, SoftTargets
from student_trainer.learning.losses import LOSSES
from student_trainer.learning.positions import LabelTarget
from student_trainer.learning.targets import TopKTarget, target_of

V, P = 50_000, 48
Floats = np.ndarray[Any, np.dtype[np.float64]]


def log_probs(logits: Any, temperature: float) -> Floats:
    softened = np.asarray(logits, np.float64) / temperature
    softened -= softened.max(axis=1, keepdims=True)
    found: Floats = softened - np.log(np.exp(softened).sum(axis=1, keepdims=True))
    return found


@pytest.mark.parametrize("bits", ["", ",bits=8"])
@pytest.mark.parametrize("deviation", [0.1, 4.0, 12.0])  # of an untrained, a usual, and a very sure teacher
def test_tails_are_exact_and_the_loss_is_the_dense_one_with_all_other_classes_as_one(
    bits: str, deviation: float
) -> None:
    draw = np.random.default_rng(0)
    teacher, student = (draw.standard_normal((P, V), np.float32) * np.float32(each) for each in (deviation, 2))
    spec = CodecSpec.parse(f"topk:k=32{bits},temperatures=1|2")
    record = SoftTargets(
        "0" * 16, 0, 0, np.arange(P), 0, None, "t", "0" * 64, (Output.of("logits", teacher, spec),)
    ).encode()
    rows = SoftTargets.decode(record, "t").outputs[0].values()
    target = target_of(rows, {name: torch.tensor(column) for name, column in rows.columns.items()}).widened()
    assert isinstance(target, TopKTarget)
    kept = target.indices.numpy()
    assert np.array_equal(kept, np.argsort(-teacher, axis=1, kind="stable")[:, :32])
    for temperature in (1.0, 2.0):
        dense, learned = log_probs(teacher, temperature), log_probs(student, temperature)
        outside = np.exp(dense)
        np.put_along_axis(outside, kept, 0.0, axis=1)
        tail = np.exp(target.log_tails[temperature].double().numpy())
        # A logarithm in float32 is off by half of its last digit.
        most = 2.0**-24 * (1 + np.abs(np.log(outside.sum(axis=1))).max())
        assert np.abs(tail / outside.sum(axis=1) - 1).max() <= most

        cost = LOSSES["forward_kl"].rows(torch.tensor(student), target, torch.full((P,), -1), temperature).numpy()
        of_all = temperature**2 * (np.exp(dense) * (dense - learned)).sum(axis=1)
        assert (cost >= -1e-3).all()
        assert (cost <= of_all * (1 + 1e-3) + 1e-3).all()  # a lower bound; what was kept is rounded
        here, there = (
            np.concatenate(
                [
                    np.take_along_axis(each, kept, axis=1),
                    np.log(np.exp(each).sum(axis=1) - np.exp(np.take_along_axis(each, kept, axis=1)).sum(axis=1))[
                        :, None
                    ],
                ],
                axis=1,
            )
            for each in (dense, learned)
        )
        as_one = temperature**2 * (np.exp(here) * (here - there)).sum(axis=1)
        np.testing.assert_allclose(cost, as_one, rtol=3e-3, atol=3e-3)


def test_hard_labels_of_it_cost_little_memory_beside_the_logits_and_their_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    output = torch.randn(160, V, generator=draw).requires_grad_()
    labels = torch.randint(0, V, (160,), generator=draw)
    large: set[int] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for each in result if isinstance(result, tuple | list) else [result]:
                if isinstance(each, torch.Tensor) and each.untyped_storage().nbytes() > output.nbytes / 4:
                    large.add(each.untyped_storage().data_ptr())
            return result

    with Watch():
        rows = LOSSES["cross_entropy"].rows(output, LabelTarget(labels), labels, 1.0)
        rows.sum().backward()
    assert output.grad is not None
    assert large <= {output.data_ptr(), output.grad.data_ptr()}
    expected = functional.cross_entropy(output.detach(), labels, reduction="none")
    torch.testing.assert_close(rows.detach(), expected)
