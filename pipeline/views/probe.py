"""A few views, written down when a stream is created: code that shows others is refused.

K: views; Q: pixels of each.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from pipeline.hashing import hash64, hash_int, tag, uniform
from pipeline.views import find_view
from pipeline.views.fetch import Fetcher
from pipeline.views.user import generator
from schemas.errors import BadSamples, ManifestMismatch
from schemas.records import Probe

NUM_VIEWS = 8
NUM_PIXELS = 32
TOLERANCE = 1e-5
"""Of a pixel, relative above 1. Our own views give equal bits anywhere; a user's may call sin or exp."""

_CANDIDATES = 64
_TAG = tag("probe")


def make_probe(fetcher: Fetcher) -> Probe:
    """K = 8 views at hashed IDs and seeds. Raises BadSamples when hardly a sample can be read, and OSError."""
    num_samples = fetcher.dataset.num_samples
    ids: list[int] = []
    seeds: list[int] = []
    views: list[npt.NDArray[np.float32]] = []
    reason = "they are empty"
    for number in range(_CANDIDATES):
        sample_id = hash_int(_TAG, number) % num_samples
        seed = hash_int(_TAG, number, 1) >> 1
        view = _flat(fetcher, sample_id, seed)
        if isinstance(view, str):
            reason = view
        elif len(view):
            ids.append(sample_id)
            seeds.append(seed)
            views.append(view)
        if len(ids) == NUM_VIEWS:
            break
    else:
        raise BadSamples(
            f"dataset {fetcher.dataset.uri}: {reason}; of {_CANDIDATES} samples that were tried, {len(ids)} are fit"
        )
    positions = np.stack([_positions(number, len(view)) for number, view in enumerate(views)])
    pixels = np.stack([view[places] for view, places in zip(views, positions, strict=True)])
    id_column, seed_column = np.array(ids, np.int64), np.array(seeds, np.int64)
    draws = _draws(fetcher, id_column, seed_column)
    return Probe(sample_ids=id_column, view_seeds=seed_column, draws=draws, positions=positions, pixels=pixels)


def check_probe(fetcher: Fetcher, probe: Probe) -> None:
    """Raises ManifestMismatch when the draws differ at all, or a pixel by more than 1e-5; OSError."""
    name = fetcher.view.name
    draws = _draws(fetcher, probe.sample_ids, probe.view_seeds)
    if draws != probe.draws:
        raise ManifestMismatch(
            f"view {name}: the random draws have hash {probe.draws[:12]} in the manifest, {draws[:12]} here: "
            "use the version of Distillog (and NumPy) that the stream was created with"
        )
    rows = zip(probe.sample_ids.tolist(), probe.view_seeds.tolist(), probe.positions, probe.pixels, strict=True)
    for number, (sample_id, seed, positions, pixels) in enumerate(rows):
        view = _flat(fetcher, sample_id, seed)
        # Positions follow from the length of the view, so other positions are another length.
        if isinstance(view, str) or not (len(view) and np.array_equal(positions, _positions(number, len(view)))):
            found = f"cannot be decoded ({view})" if isinstance(view, str) else f"has {len(view)} values"
            raise ManifestMismatch(f"view {name}: sample {sample_id} {found} here, unlike in the manifest")
        close = np.isclose(view[positions], pixels, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        if not close.all():
            at = int(np.flatnonzero(~close)[0])
            raise ManifestMismatch(
                f"view {name} of sample {sample_id}: value {positions[at]} is {pixels[at]:.6g} in the manifest, "
                f"{view[positions[at]]:.6g} here: the view's code or the data differ"
            )


def _flat(fetcher: Fetcher, sample_id: int, seed: int) -> npt.NDArray[np.float32] | str:
    """All values of one view, fields in the order of their names; the reason where the sample cannot be decoded."""
    fetched = fetcher.fetch(np.array([sample_id], np.int64), seed)
    if not len(fetched.kept_rows):
        return fetched.faults[0][1]
    return np.concatenate([fetched.inputs[name].ravel() for name in sorted(fetched.inputs)]).astype(np.float32)


def _positions(number: int, length: int) -> npt.NDArray[np.int64]:
    """[Q] int64"""
    return (hash64(_TAG, number, 2, np.arange(NUM_PIXELS)) % np.uint64(length)).astype(np.int64)


def _draws(fetcher: Fetcher, ids: npt.NDArray[np.int64], seeds: npt.NDArray[np.int64]) -> str:
    """Hex SHA-256 of what the view draws for the probed samples."""
    view = find_view(fetcher.view.name)
    digest = hashlib.sha256()
    for sample_id, seed in zip(ids.tolist(), seeds.tolist(), strict=True):
        for name, count in sorted(view.draws.items()):
            digest.update(uniform(seed, np.array([sample_id]), name, count).astype("<f8").tobytes())
        if ":" in fetcher.view.name:
            digest.update(generator(seed, sample_id).random(4).astype("<f8").tobytes())
    return digest.hexdigest()
