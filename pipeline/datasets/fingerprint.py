"""What a data set contains, as one SHA-256: a label of other data must never be trained on."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Dataset, HasRaw, Ints
from pipeline.hashing import hash64, tag

NUM_SAMPLES = 4096
"""Samples whose content is hashed, at hashed positions; all of a smaller data set."""

_CHUNK = 256
_LABEL_CHUNK = 65536


def fingerprint(dataset: Dataset) -> str:
    """Hex SHA-256 over fields, size, class names, every label, and the content of up to 4,096 samples.

    Content is the stored bytes where the data set knows them (`raw`), else the arrays of `read`. Samples that cannot
    be decoded count as such. Raises OSError when the data cannot be read now.
    """
    digest = hashlib.sha256()
    head = {
        "fields": {name: [field.shape, field.dtype] for name, field in sorted(dataset.fields.items())},
        "num_samples": dataset.num_samples,
        "class_names": dataset.class_names,
    }
    digest.update(json.dumps(head, sort_keys=True).encode())
    sampled = _sampled(dataset.num_samples)
    # Content before labels: a data set that learns its labels by reading has then read those.
    for start in range(0, len(sampled), _CHUNK):
        _add(digest, dataset, sampled[start : start + _CHUNK])
    for start in range(0, dataset.num_samples, _LABEL_CHUNK):
        ids = np.arange(start, min(start + _LABEL_CHUNK, dataset.num_samples), dtype=np.int64)
        digest.update(_little_endian(dataset.labels(ids)))
    return digest.hexdigest()


def _sampled(num_samples: int) -> Ints:
    if num_samples <= NUM_SAMPLES:
        return np.arange(num_samples, dtype=np.int64)
    hashes = hash64(tag("fingerprint"), np.arange(NUM_SAMPLES))
    return np.unique((hashes % np.uint64(num_samples)).astype(np.int64))


def _add(digest: hashlib._Hash, dataset: Dataset, ids: Ints) -> None:
    if isinstance(dataset, HasRaw):
        for sample_id in ids.tolist():
            raw = dataset.raw(sample_id)
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return
    samples = dataset.read(ids)
    for name in sorted(samples.fields):
        digest.update(name.encode() + b"\0" + _little_endian(samples.fields[name]))
    digest.update(_little_endian(samples.kept_rows.astype(np.int64)))


def _little_endian(array: npt.NDArray[np.generic]) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
