"""Losses against a teacher's features, row by row.

Letters: B rows of a batch, C channels, H and W places of a map. FitNets' hint (Romero et al. 2015) is `mse` behind a
projection.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from schemas.errors import ConfigError
from student_trainer.learning.losses.vectors import unit
from student_trainer.learning.targets import Target


def mse(output: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """Mean over all numbers of a row of the squared difference of features [B, ...]. Ignores temperature and labels."""
    assert target is not None
    return (output - target.features).square().reshape(len(output), -1).mean(dim=1)


def cosine(output: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """1 - cosine of features [B, ..., H] along their last axis, mean over all others (DistilBERT, Sanh et al. 2019).

    Ignores temperature and labels.
    """
    assert target is not None
    nearness = functional.cosine_similarity(output, target.features, dim=-1)
    return (1 - nearness).reshape(len(output), -1).mean(dim=1)


def attention_transfer(output: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """Mean over places of (a_s - a_t)^2, a = q / |q|_2, q = mean of the channels' squares (Zagoruyko & Komodakis 2017).

    Of features [B, C, H, W], whose C may differ: the activation-based attention of p = 2, squared as in the authors'
    code, where its weight is 1000. Maps [B, H, W] are taken for q: a teacher's may be stored so (`attention@1`). A map
    of zeros stays one. Ignores temperature and labels.
    """
    assert target is not None
    return (_attention(output) - _attention(target.features)).square().mean(dim=1)


def _attention(maps: Tensor) -> Tensor:
    """Return [B, H * W] of length 1 each."""
    return unit((maps.square().mean(dim=1) if maps.ndim == 4 else maps).flatten(1), dim=1)


def places_of_map(row: tuple[int, ...]) -> tuple[int, ...]:
    """Return (H, W) of a row of either form that `attention_transfer` takes. Raises ConfigError for any other."""
    if len(row) not in (2, 3):
        raise ConfigError("attention is of rows [N, C, H, W], or [N, H, W] of what was reduced over C")
    return row[-2:]
