"""The "log_mel" view: what of a waveform is heard at which pitch and when, as an image.

N: samples; L: points of a waveform; T: frames, 1 + (L - window) // hop; F: frequencies, window // 2 + 1; M: mel bands.

An FFT's bits are those of its library, compiler and CPU (twiddle factors of libm, fused multiply-adds), and a matrix
product's those of its BLAS and of the number of rows. Here points and cosines are whole numbers so small that every
partial sum of a product is one below 2^53: float64 holds it exactly, whatever the order of sums, so that a fast matrix
product gives equal bits on all machines. The rest is + - * / in one order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Arrays, Dataset, Ints, rate_of
from pipeline.hashing import normal, uniform
from pipeline.views.logarithm import ln, root
from pipeline.views.trigonometry import sin_cos
from schemas.errors import ConfigError

MAX_WINDOW = 4096
NUM_MASKS = 2
"""Of each kind, as in SpecAugment's policies LD and SM."""
NUM_DRAWS = 1 + 4 * NUM_MASKS

_POINT = 2.0**18
"""Steps of a waveform's full scale: 16 bits are exact."""
_LOUDEST = 16.0
"""Points are cut off beyond. 22 bits of them, 18 of a cosine and 12 of a sum over a window are below 2^53."""
_COSINE = 2.0**18
_FLOOR = 1e-6
"""Added before the logarithm: above what 16 bits round, below any sound. Silence is ln of it, -13.8."""
_FEATURE = 2.0**20
"""Steps of a feature where a mean is taken, as a sum of whole numbers."""
_CHUNK_FRAMES = 1 << 11
"""Of one matrix product: 13 MB of spectrum at a window of 400. Results do not depend on it."""

Floats = npt.NDArray[np.float64]


def log_mel(
    samples: Arrays, sample_ids: Ints, view_seed: int, params: dict[str, Any], size: tuple[int, ...] | None
) -> Arrays:
    """The one float field [N, 1, L] as a field "log_mel" [N, 1, M, T] float32; other fields pass unchanged.

    ln(1e-6 + energy) of M triangles, equally wide and spaced in mel, 2595 log10(1 + f / 700), from 0 to half of `rate`;
    of frames of `window` points (Hann), `hop` apart. `shift`: +- fraction of L by which the waveform moves, silence
    comes in; `noise`: sigma, added to it. `time_mask` and `mel_mask`: two stretches each, of up to this fraction of
    frames and bands, become the sample's mean (SpecAugment, Park et al. 2019). `stride` > 0: a field "heard"
    [N, ceil(T / stride)] uint8 besides, 1 where the frames from k * stride on have a point of the shifted waveform that
    is not 0: positions of a network that strides so.

    Raises ConfigError for other fields, a window that the waveform or the bands do not fit, and any other size.
    """
    names = sorted(name for name, array in samples.items() if array.ndim == 3 and array.dtype.kind == "f")
    shapes = {name: array.shape[1:] for name, array in samples.items()}
    if len(names) != 1 or shapes[names[0]][0] != 1:
        raise ConfigError(f"view log_mel needs one float field [1, length], the dataset has {shapes}")
    waves = samples[names[0]][:, 0].astype(np.float32, copy=False)
    count, length = waves.shape
    window, hop, mels = (int(params[name]) for name in ("window", "hop", "mels"))
    if length < window:
        raise ConfigError(f"view log_mel: a window of {window} points is longer than the waveform, {length}")
    num_frames = 1 + (length - window) // hop
    if size and tuple(size) != (mels, num_frames):
        raise ConfigError(
            f"view log_mel gives [{mels}, {num_frames}] (bands, frames), not {list(size)}: change mels, hop or window"
        )
    draws = uniform(view_seed, sample_ids, "log_mel", NUM_DRAWS)
    if params["shift"]:
        waves = _shifted(waves, np.rint(params["shift"] * length * (draws[:, 0] * 2.0 - 1.0)).astype(np.int64))
    result = {name: array for name, array in samples.items() if name != names[0]}
    if params["stride"]:
        result["heard"] = _heard(waves, num_frames, window, hop, int(params["stride"]))
    if params["noise"]:
        waves = waves + normal(view_seed, sample_ids, "log_mel.noise", length) * np.float32(params["noise"])
    tables = _tables(window, mels, params["rate"])
    features = np.empty((count, mels, num_frames), np.float32)
    step = max(1, _CHUNK_FRAMES // num_frames)
    for start in range(0, count, step):
        some = slice(start, start + step)
        features[some] = _features(waves[some], num_frames, hop, tables)
    _mask(features, draws[:, 1:], params["time_mask"], params["mel_mask"])
    return result | {"log_mel": features[:, None]}


def fits_rate(params: Mapping[str, Any], dataset: Dataset) -> None:
    """Raise ConfigError where the dataset says another rate than the parameters."""
    there, taken = rate_of(dataset), params["rate"]
    if there and taken != there:
        raise ConfigError(
            f"view log_mel: rate is {taken:g}, and dataset {dataset.uri} has {there:g} points a second: bands would "
            f"lie at other pitches than they say; give rate = {there:g}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """What one window, number of bands and rate come to."""

    waves: Floats
    """[2F, window] whole numbers: cosines, then sines, under a Hann window."""
    bands: tuple[tuple[int, tuple[float, ...]], ...]
    """M of: a band's first frequency, and the weights from there on."""


@lru_cache(maxsize=8)
def _tables(window: int, mels: int, rate: float) -> _Tables:
    half = window // 2 + 1
    # Whole turns are taken out as whole numbers.
    at = np.arange(half)[:, None] * np.arange(window)[None] % window
    sine, cosine = sin_cos(np.arange(window) * np.float64(360.0 / window))
    waves = np.rint(np.concatenate([cosine[at], sine[at]]) * (0.5 - 0.5 * cosine) * _COSINE)
    # Equal steps of mel are equal factors of 1 + f / 700.
    factor = root(1.0 + rate / 2.0 / 700.0, mels + 1)
    edges, power = [0.0], 1.0
    for _ in range(mels + 1):
        power *= factor
        edges.append(700.0 * (power - 1.0))
    edge = np.array(edges)
    places = np.arange(half) * (rate / window)
    rise = (places[None] - edge[:-2, None]) / (edge[1:-1] - edge[:-2])[:, None]
    fall = (edge[2:, None] - places[None]) / (edge[2:] - edge[1:-1])[:, None]
    triangles = np.maximum(np.minimum(rise, fall), 0.0)
    inside = triangles > 0
    if not inside.any(axis=1).all():
        band = int(np.flatnonzero(~inside.any(axis=1))[0])
        raise ConfigError(
            f"view log_mel: {mels} bands are too many for a window of {window} points at rate {rate:g}: none of its "
            f"frequencies lies in band {band}; give fewer mels or a longer window"
        )
    bands = tuple(
        (int(np.flatnonzero(at)[0]), tuple(row[at].tolist())) for row, at in zip(triangles, inside, strict=True)
    )
    return _Tables(waves, tuple(bands))


def _features(waves: npt.NDArray[np.float32], num_frames: int, hop: int, tables: _Tables) -> Floats:
    """[n, M, T] of [n, L]"""
    window = tables.waves.shape[1]
    points = np.rint(np.clip(waves.astype(np.float64), -_LOUDEST, _LOUDEST) * _POINT)
    frames = np.lib.stride_tricks.sliding_window_view(points, window, axis=1)[:, : num_frames * hop : hop]
    spectrum = tables.waves @ np.ascontiguousarray(frames).reshape(-1, window).T
    spectrum *= 1.0 / (_POINT * _COSINE)
    spectrum *= spectrum
    half = len(spectrum) // 2
    power = spectrum[:half] + spectrum[half:]
    energy = np.full((len(tables.bands), power.shape[1]), _FLOOR)
    for band, (first, weights) in enumerate(tables.bands):
        for place, weight in enumerate(weights, first):
            energy[band] += power[place] * weight
    return ln(energy).reshape(len(energy), len(waves), num_frames).transpose(1, 0, 2)


def _shifted(waves: npt.NDArray[np.float32], by: Ints) -> npt.NDArray[np.float32]:
    """[N, L]: each later by so many points, earlier where it is negative."""
    length = waves.shape[1]
    at = np.arange(length)[None] - by[:, None]
    there = np.take_along_axis(waves, np.clip(at, 0, length - 1), axis=1)
    return np.where((at >= 0) & (at < length), there, np.float32(0.0))


def _heard(waves: npt.NDArray[np.float32], num_frames: int, window: int, hop: int, stride: int) -> Any:
    """[N, ceil(T / stride)] uint8: 1 where a frame of these has a point that is not 0."""
    sums = np.zeros((len(waves), waves.shape[1] + 1), np.int64)
    np.cumsum(waves != 0, axis=1, out=sums[:, 1:])
    first = np.arange(0, num_frames, stride)
    last = np.minimum(first + stride, num_frames) - 1
    return (sums[:, last * hop + window] > sums[:, first * hop]).astype(np.uint8)


def _mask(features: npt.NDArray[np.float32], draws: Floats, time_mask: float, mel_mask: float) -> None:
    """Put each sample's mean into its masked frames and bands; `draws` is [N, 4 * NUM_MASKS]."""
    if not (time_mask or mel_mask):
        return
    _, mels, num_frames = features.shape
    hidden = np.zeros(features.shape, bool)
    for number in range(NUM_MASKS):
        width, start, high, low = draws[:, 4 * number : 4 * number + 4].T
        hidden |= _stretch(width, start, num_frames, time_mask)[:, None, :]
        hidden |= _stretch(high, low, mels, mel_mask)[:, :, None]
    # A sum of whole numbers, since that of floats depends on its order.
    sums = np.rint(features.astype(np.float64) * _FEATURE).astype(np.int64).sum(axis=(1, 2))
    means = (sums / (mels * num_frames) / _FEATURE).astype(np.float32)
    np.copyto(features, means[:, None, None], where=hidden)


def _stretch(width: Floats, start: Floats, count: int, share: float) -> npt.NDArray[np.bool_]:
    """[N, count]: a stretch of 0 to share * count places, anywhere."""
    wide = np.floor(width * (np.floor(share * count) + 1.0))
    first = np.floor(start * (count - wide + 1.0))
    at = np.arange(count)[None]
    return np.asarray((at >= first[:, None]) & (at < (first + wide)[:, None]))
