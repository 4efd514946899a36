"""Losses that compare the rows of a batch, where each process of a run has a share of them.

Letters: B rows of the whole batch, b of this process's share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from student_trainer.batches import Share
from student_trainer.learning.losses import Loss
from student_trainer.learning.targets import DenseTarget, FeatureTarget, Target
from student_trainer.processes.world import World


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """The batch of all processes, which call its methods together and in the same order."""

    world: World
    batch_size: int
    """B."""

    def rows(
        self,
        loss: Loss,
        output: Tensor,
        target: Target,
        labels: Tensor,
        temperature: float,
        weights: Tensor | None,
        params: Mapping[str, Any],
    ) -> Tensor:
        """Return [b]: what the rows of this process cost among all.

        Each process computes the whole loss, of its own rows with their gradients and of all others' as constants. What
        its rows change in the cost of others' rows is their gradient, too: it is spread over them such that b / B of
        their weighted mean has the gradient that the mean over all B has by them. So the sum over all processes has
        that of the loss.

        Args:
            loss: one that is batchwise.
            output, labels, weights: of the share, [b, ...], [b], and [b] or None for ones.
            target: of the share; its rows are samples.
            temperature, params: as the loss takes them.
        """
        first, last = Share(self.world.rank, self.world.size).rows(self.batch_size)
        weights = output.new_ones(len(output)) if weights is None else weights
        soft: Target
        if "features" in loss.needs:
            soft = FeatureTarget(self._gathered(target.features, first, last))
        else:
            soft = DenseTarget(self._gathered(target.logits, first, last))
        of_all = self._gathered(weights, first, last)
        given, labels = self._gathered(output, first, last), self._gathered(labels, first, last)
        costs = loss.rows(given, soft, labels, temperature, of_all, **params)
        mean, own = (costs * of_all).sum(), weights.sum()
        spread = (mean - mean.detach()) / torch.where(own > 0, own, 1.0)
        return costs[first:last].detach() + spread

    def _gathered(self, own: Tensor, first: int, last: int) -> Tensor:
        """Return [B, ...] of all shares; of [b, ...] of this one with the gradient."""
        whole = own.new_zeros(self.batch_size, *own.shape[1:])
        whole[first:last] = own.detach()
        self.world.sum(whole.view(-1))
        return torch.cat([whole[:first], own, whole[last:]])
