"""What a dataset contains, as one SHA-256: a label of other data must never be trained on.

A fingerprint names its algorithm: `v2:` and 64 hex digits, or 64 hex digits alone for the first, which hashed every
label and is still computed where a manifest pins it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Dataset, HasRaw, Ints, once_readable, vocabulary_of
from pipeline.fault_limit import LEAST, LIMIT
from pipeline.hashing import hash64, tag
from pipeline.progress import Progress
from schemas.errors import BadSamples, ManifestMismatch

log = logging.getLogger(__name__)

NUM_SAMPLES = 4096
"""Samples whose content is hashed, at hashed positions; all of a smaller dataset."""
NUM_LABELS = 65536
"""Samples whose labels are hashed, at hashed positions; all of a smaller dataset."""
NUM_AT_ENDS = 4096
"""Labels that are hashed at either end besides: there, data grow and are cut."""

_V2 = "v2:"
_CHUNK = 256
_LABEL_CHUNK = 65536


def fingerprint(dataset: Dataset, like: str = _V2) -> str:
    """Hex SHA-256 over fields, size, class names, some labels, and the content of some samples, all at fixed IDs.

    Content is the stored bytes where the dataset knows them (`raw`), else the arrays of `read`. Samples that cannot
    be decoded count as such. Of texts the tokenizer's SHA-256 counts, and how many bytes (`num_bytes`) all files have.
    `like` is a fingerprint whose algorithm is taken, the newest if not said.

    Raises DataUnavailable when the data cannot be read now, BadSamples where the stored bytes of more than 1 % of the
    samples (of at least 1,000) cannot be read, ManifestMismatch for an algorithm of a newer Distillog.
    """
    algorithm, colon, _ = like.rpartition(":")
    if algorithm + colon not in (_V2, ""):
        raise ManifestMismatch(f"fingerprint {like[:20]}... was made by a newer Distillog: use that version here too")
    head: dict[str, object] = {
        "fields": {name: [field.shape, field.dtype] for name, field in sorted(dataset.fields.items())},
        "num_samples": dataset.num_samples,
        "class_names": dataset.class_names,
    }
    if vocabulary := vocabulary_of(dataset).sha256:
        head["vocabulary"] = vocabulary
    if num_bytes := getattr(dataset, "num_bytes", 0):
        head["num_bytes"] = num_bytes
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    with once_readable(dataset.uri), Progress(title=f"reading {dataset.uri}", after=2.0) as progress:
        # Content before labels: a dataset that learns its labels by reading has then read those.
        content = content_ids(dataset.num_samples)
        faults: list[str] = []
        for start in range(0, len(content), _CHUNK):
            progress.update(samples=start)
            for reason in _add(digest, dataset, content[start : start + _CHUNK]):
                faults.append(reason)
                if isinstance(dataset, HasRaw) and len(faults) > LIMIT * max(len(content), LEAST):
                    raise BadSamples(
                        f"dataset {dataset.uri}: the stored bytes of more than {len(faults) - 1} of {len(content)} "
                        f"samples cannot be read, the last because of: {reason}: that is no matter of single samples "
                        "(a broken mount? another version of the data?)"
                    )
        if faults:
            log.warning(
                "dataset %s: %d of %d samples cannot be read or decoded, the last because of: %s",
                dataset.uri,
                len(faults),
                len(content),
                faults[-1],
            )
        labelled = _labelled(dataset.num_samples) if algorithm else None
        num_labels = dataset.num_samples if labelled is None else len(labelled)
        step = _LABEL_CHUNK if labelled is None else NUM_SAMPLES
        for start in range(0, num_labels, step):
            progress.update(labels=start)
            end = min(start + step, num_labels)
            ids = np.arange(start, end, dtype=np.int64) if labelled is None else labelled[start:end]
            digest.update(_little_endian(dataset.labels(ids)))
    return algorithm + colon + digest.hexdigest()


def content_ids(num_samples: int) -> Ints:
    """Rising IDs of the samples whose content is hashed: whoever has made a fingerprint has read these."""
    return _sampled("fingerprint", num_samples, NUM_SAMPLES)


def _sampled(name: str, num_samples: int, count: int) -> Ints:
    """Rising IDs, all of them or nearly `count`."""
    if num_samples <= count:
        return np.arange(num_samples, dtype=np.int64)
    hashes = hash64(tag(name), np.arange(count))
    return np.unique((hashes % np.uint64(num_samples)).astype(np.int64))


def _labelled(num_samples: int) -> Ints:
    inner = _sampled("fingerprint.labels", num_samples, NUM_LABELS)
    ends = np.arange(min(NUM_AT_ENDS, num_samples), dtype=np.int64)
    return np.unique(np.concatenate([ends, inner, num_samples - 1 - ends]))


def _add(digest: hashlib._Hash, dataset: Dataset, ids: Ints) -> Iterator[str]:
    """Add the content of some samples; yields why for each that cannot be decoded, as far as that is seen."""
    if isinstance(dataset, HasRaw):
        for sample_id in ids.tolist():
            raw = b""
            try:
                raw = dataset.raw(sample_id)
            except BadSamples as error:
                yield str(error)
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return
    samples = dataset.read(ids)
    for name in sorted(samples.fields):
        digest.update(name.encode() + b"\0" + _little_endian(samples.fields[name]))
    digest.update(_little_endian(samples.kept_rows.astype(np.int64)))
    yield from (reason for _, reason in samples.faults)


def _little_endian(array: npt.NDArray[np.generic]) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
