"""Losses against what a teacher's features say of rows beside one another: the rows of the whole batch are compared.

Letters: B rows of a batch, D numbers of a row, however they lie; the student's D may be another than the teacher's. A
row's cost is its part, such that the mean over B is the paper's value. All ignore temperature and labels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from student_trainer.learning.losses.vectors import unit
from student_trainer.learning.targets import Target


def rkd_distance(output: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """Mean over all B^2 pairs of Huber(d_s - d_t), d = |x_i - x_j| / mean of those that are not 0 (Park et al. 2019).

    Huber's loss turns at 1, as in the authors' code, where its weight is 25. A row's part are the pairs that begin with
    it.
    """
    assert target is not None
    return functional.smooth_l1_loss(_distances(output), _distances(target.features), reduction="none").mean(dim=1)


def rkd_angle(output: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """Mean over all B^3 triples of Huber(c_s - c_t), c the cosine of the angle at i between j and k (Park et al. 2019).

    Huber's loss turns at 1; the authors' weight is 50. A row's part are the triples of which it is the corner. Memory
    grows with B^2 (B + D), and time with B^3 D.
    """
    assert target is not None
    costs = functional.smooth_l1_loss(_angles(output), _angles(target.features), reduction="none")
    return costs.mean(dim=(1, 2))


def similarity(output: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """1/B^2 |G_s - G_t|^2, G = X X^T with rows of length 1, X [B, D] (Tung & Mori 2019, similarity-preserving).

    A row's part is that of its row of G, times B; the authors' weight is 3000.
    """
    assert target is not None
    return (_similarities(output) - _similarities(target.features)).square().mean(dim=1)


def of_any_shape(row: tuple[int, ...]) -> tuple[int, ...]:
    """Return (): rows are compared with rows of their own side alone."""
    return ()


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(len(rows), -1)


def _distances(rows: Tensor) -> Tensor:
    """Return [B, B]; all 0 where no two rows differ."""
    flat = _flat(rows)
    # By differences: a matrix product loses what is near. Its gradient where a distance is 0 is 0.
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _angles(rows: Tensor) -> Tensor:
    """Return [B, B, B] cosines, by their corner first; 0 where two of the three are one."""
    flat = _flat(rows)
    towards = unit(flat[None] - flat[:, None], dim=2)
    return towards @ towards.transpose(1, 2)


def _similarities(rows: Tensor) -> Tensor:
    """Return [B, B], rows of length 1; 0 where a row is 0."""
    flat = _flat(rows)
    return unit(flat @ flat.T, dim=1)
