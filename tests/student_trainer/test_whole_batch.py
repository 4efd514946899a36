"""Losses that compare rows have on several processes the value and the gradient that they have on one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from schemas.codecs import CodecSpec
from student_trainer.batches import Share
from student_trainer.learning.losses import LOSSES
from student_trainer.learning.targets import DenseTarget, FeatureTarget, Target, TargetSpec
from student_trainer.learning.terms import Term
from student_trainer.learning.total import total_loss
from student_trainer.learning.whole_batch import WholeBatch
from student_trainer.processes.world import Alone

C, T = 4, 2.0
BATCHWISE = [name for name, loss in LOSSES.items() if loss.batchwise]


class Summing:
    """What threads sum that stand for processes."""

    def __init__(self, size: int) -> None:
        self.parts: list[Tensor] = [torch.zeros(0)] * size
        self.barrier = threading.Barrier(size, timeout=30)


class Threads(Alone):
    """The world of one of several threads."""

    def __init__(self, rank: int, summing: Summing) -> None:
        self.rank, self.size, self._summing = rank, len(summing.parts), summing

    def sum(self, values: Tensor) -> None:
        self._summing.parts[self.rank] = values.clone()
        self._summing.barrier.wait()
        found = torch.stack(self._summing.parts).sum(dim=0)
        self._summing.barrier.wait()
        values.copy_(found)


def together(size: int, work: Callable[[Threads], Any]) -> list[Any]:
    summing = Summing(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, [Threads(rank, summing) for rank in range(size)]))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def term(name: str) -> Term:
    spec = (
        TargetSpec("logits", (C,), C, CodecSpec()) if name == "dist" else TargetSpec("features", (C,), 0, CodecSpec())
    )
    # Two teachers of unequal shares, and a weight of the loss's own.
    shares = {"t.y": 0.25, "u.y": 0.75}
    return Term(name, LOSSES[name], 0.5, T, {}, "", shares, dict.fromkeys(shares, spec))


@pytest.mark.parametrize("name", BATCHWISE)
@settings(max_examples=15, deadline=None)
@given(st.integers(2, 3), st.integers(3, 8), st.integers(0, 99), st.data())
def test_shares_have_the_loss_and_the_gradient_of_the_whole_batch(
    name: str, size: int, batch_size: int, seed: int, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.0, 1.0, 1.0]), min_size=batch_size, max_size=batch_size))
    student = {"logits": draw(batch_size, C, seed=seed)}
    of: Callable[[Tensor], Target] = DenseTarget if name == "dist" else FeatureTarget
    taught = {"t.y": draw(batch_size, C, seed=seed + 1), "u.y": draw(batch_size, C, seed=seed + 2)}

    def loss(first: int, last: int, whole: WholeBatch | None) -> tuple[Tensor, Tensor, Tensor]:
        """This share's part of the loss, the gradient of its rows, and what each costs."""
        own = student["logits"][first:last].clone().requires_grad_()
        targets = {key: of(each[first:last]) for key, each in taught.items()}
        rows = torch.tensor(weights)[first:last]
        # Some process may not know that a row of another counts for nothing.
        given = None if bool(rows.all()) else rows
        total = total_loss([term(name)], 1.0, whole=whole)
        value, costs = total({"logits": own}, targets, torch.full((last - first,), -1), given, 0)
        assert value.requires_grad
        value = value * ((last - first) / batch_size)  # as a step does
        value.backward()
        assert own.grad is not None
        return value.detach(), own.grad, costs[name]

    def share(world: Threads) -> tuple[Tensor, Tensor, Tensor]:
        return loss(*Share(world.rank, world.size).rows(batch_size), WholeBatch(world, batch_size))

    value, gradient, costs = loss(0, batch_size, None)
    values, gradients, rows = zip(*together(size, share), strict=True)
    torch.testing.assert_close(torch.stack(values).sum(), value)
    torch.testing.assert_close(torch.cat(gradients), gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.cat(rows), costs)
