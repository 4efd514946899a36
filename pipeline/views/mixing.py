"""The views "mixup" and "cutmix": what a sample is mixed with, in which shares, and the mix itself.

A partner is drawn from the whole dataset, by the sample's ID and the view seed: of no batch, which another run cuts in
another way. It is seen as itself would be under the same seed, then both are mixed. Shares are known without any pixel,
since hard labels come before views. N: samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Arrays, Ints
from pipeline.hashing import integers, uniform
from schemas.errors import ConfigError

Doubles = npt.NDArray[np.float64]

QUANTILES = 256
"""Steps of the table of a Beta distribution's lower half."""
_FINE = 1 << 24
"""Of 1, to which quantiles are rounded."""
_BYTE_SHARES = 1 << 16
"""Of 1, to which the shares of bytes are rounded: whole numbers alone are added up then."""


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """What N samples are mixed with."""

    partner: Ints
    """[N], place among the samples that may be partners."""
    share: Doubles
    """[N] in [0, 1], of the sample itself; its partner has the rest."""
    box: Doubles | None = None
    """[4, N]: top, left, bottom, right of what the partner covers, in fractions; None: both are everywhere."""

    def of(self, rows: Ints) -> Mixture:
        """Return what the samples at [K] places are mixed with."""
        return Mixture(self.partner[rows], self.share[rows], None if self.box is None else self.box[:, rows])


Mix = Callable[[Ints, int, int], Mixture]
"""(sample IDs [N], view seed, how many samples may be partners) -> what they are mixed with"""


def mixup(params: dict[str, Any]) -> Mix | None:
    """Return how samples are mixed by their sum, share * x_i + (1 - share) * x_j (Zhang et al. 2018).

    `alpha`: the share is drawn from Beta(alpha, alpha), 1 being uniform and 0 mixing nothing; `probability`: of being
    mixed at all. None: nothing is mixed.
    """
    if not _mixes(params):
        return None

    def mix(sample_ids: Ints, view_seed: int, count: int) -> Mixture:
        partner = integers(view_seed, sample_ids, "mixup.partner", 1, count)[:, 0]
        return Mixture(partner, _shares(uniform(view_seed, sample_ids, "mixup", 2), params))

    return mix


def cutmix(params: dict[str, Any]) -> Mix | None:
    """Return how a rectangle of the partner covers its place in an image (Yun et al. 2019); parameters as `mixup`.

    Its sides are sqrt(1 - share) of the image's, around a point drawn anywhere; what lies outside is cut off, and the
    share is that of the rest.
    """
    if not _mixes(params):
        return None

    def mix(sample_ids: Ints, view_seed: int, count: int) -> Mixture:
        partner = integers(view_seed, sample_ids, "cutmix.partner", 1, count)[:, 0]
        draws = uniform(view_seed, sample_ids, "cutmix", 4)
        half = np.sqrt(1.0 - _shares(draws, params)) * 0.5  # IEEE rounds a root correctly: equal bits anywhere
        top, left = np.maximum(draws[:, 2] - half, 0.0), np.maximum(draws[:, 3] - half, 0.0)
        bottom, right = np.minimum(draws[:, 2] + half, 1.0), np.minimum(draws[:, 3] + half, 1.0)
        return Mixture(partner, 1.0 - (bottom - top) * (right - left), np.stack([top, left, bottom, right]))

    return mix


def mixed(view: str, own: Arrays, partners: Arrays, mixture: Mixture) -> Arrays:
    """Return the mix of N samples and their N partners, field by field: of floats, and of images of bytes as bytes.

    A pixel that a box covers in part has as much of both. Raises ConfigError for a field that cannot be mixed.
    """
    return {name: _mixed(view, name, values, partners[name], mixture) for name, values in own.items()}


def _mixed(
    view: str, name: str, own: npt.NDArray[Any], partner: npt.NDArray[Any], mixture: Mixture
) -> npt.NDArray[Any]:
    is_image, is_bytes = own.ndim == 4, own.dtype == np.uint8
    if mixture.box is not None and not is_image:
        raise ConfigError(
            f"view {view}: cutmix is for images [channels, height, width], and field {name!r} is "
            f"{list(own.shape[1:])}; use mixup"
        )
    if not (own.dtype.kind == "f" or (is_image and is_bytes)):
        raise ConfigError(
            f"view {view} mixes floats and images of bytes, and field {name!r} is {own.dtype} {list(own.shape[1:])}: "
            "numbers such as those of tokens or classes have no sum"
        )
    shares = mixture.share.reshape(-1, *[1] * (own.ndim - 1))
    if mixture.box is not None:
        shares = 1.0 - _covered(mixture.box, *own.shape[2:])[:, None]
    if is_bytes:
        whole = np.floor(shares * _BYTE_SHARES + 0.5).astype(np.uint32)
        total = own * whole + partner * (_BYTE_SHARES - whole) + np.uint32(_BYTE_SHARES // 2)
        return np.asarray(total // _BYTE_SHARES).astype(np.uint8)
    dtype = np.float64 if own.dtype.itemsize == 8 else np.float32
    both = own.astype(dtype, copy=False) * shares.astype(dtype)
    both += partner.astype(dtype, copy=False) * (1.0 - shares).astype(dtype)
    return np.asarray(both.astype(own.dtype.newbyteorder("="), copy=False))


def _covered(box: Doubles, height: int, width: int) -> Doubles:
    """[N, H, W]: how much of each pixel a box covers."""
    top, left, bottom, right = box[:, :, None]
    y, x = np.arange(height), np.arange(width)
    tall = np.clip(np.minimum(bottom * height, y + 1.0) - np.maximum(top * height, y), 0.0, 1.0)
    wide = np.clip(np.minimum(right * width, x + 1.0) - np.maximum(left * width, x), 0.0, 1.0)
    return np.asarray(tall[:, :, None] * wide[:, None, :])


def _mixes(params: dict[str, Any]) -> bool:
    return bool(params["alpha"] > 0 and params["probability"] > 0)


def _shares(draws: Doubles, params: dict[str, Any]) -> Doubles:
    """[N]: 1 where a sample is not mixed, else a quantile of Beta(alpha, alpha), linear between the table's."""
    table = beta_quantiles(float(params["alpha"]))
    upper = draws[:, 1] >= 0.5
    place = np.where(upper, 1.0 - draws[:, 1], draws[:, 1]) * (2 * QUANTILES)
    first = np.minimum(place.astype(np.int64), QUANTILES - 1)
    lower = table[first] + (table[first + 1] - table[first]) * (place - first)
    return np.where(draws[:, 0] < params["probability"], np.where(upper, 1.0 - lower, lower), 1.0)


@lru_cache(maxsize=16)
def beta_quantiles(alpha: float) -> Doubles:
    """[QUANTILES + 1] float64: the quantiles of Beta(alpha, alpha) at 0, ..., 1/2, in equal steps, rounded to 2^-24.

    By decimal arithmetic, which rounds logarithms exactly, too: the same bits on any machine. For x up to 1/2 the
    distribution function is F(x) = 1/2 f(x) / f(1/2) with f(x) = (x (1 - x))^alpha * the sum over n of
    (2 alpha)_n / (alpha + 1)_n x^n (DLMF 8.17.8), all of whose terms are positive.
    """
    with localcontext(Context(prec=28, rounding=ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999)):
        exact, half = Decimal(alpha), Decimal("0.5")
        coefficients = _coefficients(exact)

        def series(x: Decimal) -> Decimal:
            total = Decimal(0)
            for each in coefficients:
                total = total * x + each
            return total

        of_half = series(half) * 2

        def below(x: Decimal) -> Decimal:
            return (exact * (4 * x * (1 - x)).ln()).exp() * series(x) / of_half

        found, least = [0], 0
        for step in range(1, QUANTILES):
            wanted, most = Decimal(step) / (2 * QUANTILES), _FINE // 2
            while least < most:  # the first of which the middle to the next one is not below
                between = (least + most) // 2
                if below((between + half) / _FINE) < wanted:
                    least = between + 1
                else:
                    most = between
            found.append(least)
    table = np.array([*found, _FINE // 2], np.float64) / _FINE
    table.flags.writeable = False
    return table


def _coefficients(alpha: Decimal) -> list[Decimal]:
    """(2 alpha)_n / (alpha + 1)_n, the last first: as many as still count where x is 1/2."""
    found = [Decimal(1)]
    while found[-1] * 10**24 > 2 ** len(found):
        n = len(found) - 1
        found.append(found[-1] * (2 * alpha + n) / (alpha + 1 + n))
    return found[::-1]
