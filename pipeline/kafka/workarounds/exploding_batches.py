"""A compressed batch may unpack to a thousand times its size: one that explodes is passed over and takes no memory.

kafka-python unpacks whatever it gets, whole: a MiB that somebody wrote as gzip becomes a GiB in every reader. None of
our writers compresses. Where a topic is set to be compressed, the broker packs what was within the topic's limit
before: rows that are mostly one number pack a hundredfold, so whoever opens a stream leaves room for its records.
"""

from __future__ import annotations

import gzip
import io
import logging
from typing import Any

import lz4.frame  # type: ignore[import-untyped]
from kafka.record.default_records import DefaultRecordBatch

log = logging.getLogger(__name__)

LEAST = 8 << 20
"""Bytes that every batch may unpack to."""
RATIO = 16
"""Times its packed size that a batch may unpack to, where that is more."""

_RECORDS = 4
"""Largest records that a batch may hold: of work orders, which are smaller, as many go together, of labels one."""

_OPENERS = {
    DefaultRecordBatch.CODEC_GZIP: lambda packed: gzip.GzipFile(fileobj=packed),
    DefaultRecordBatch.CODEC_LZ4: lz4.frame.LZ4FrameFile,
}
"""The codecs that come with our requirements; the client refuses others unless their packages are installed."""

_unbounded = DefaultRecordBatch._maybe_uncompress
_room = LEAST


def bound() -> None:
    """Let all consumers of this process unpack within the bound."""
    DefaultRecordBatch._maybe_uncompress = _bounded


def leave_room(max_record_bytes: int) -> None:
    """Let this process unpack batches of a stream whose records have up to so many bytes, from now on."""
    global _room
    _room = max(_room, _RECORDS * max_record_bytes)


def _bounded(batch: Any) -> None:
    """Unpack a batch; one that explodes becomes a batch without records, as compaction leaves them behind, too."""
    if batch._decompressed or batch.compression_type not in _OPENERS:
        _unbounded(batch)
        return
    packed = memoryview(batch._buffer)[batch._pos :]
    most = max(_room, RATIO * len(packed))
    with _OPENERS[batch.compression_type](io.BytesIO(packed)) as opened:
        records = opened.read(most + 1)
    if len(records) > most:
        log.warning(
            "passed over the compressed records %d to %d: %d bytes that unpack to more than %d; who wrote them?",
            batch.base_offset,
            batch.last_offset,
            len(packed),
            most,
        )
        records, batch._num_records = b"", 0
    batch._buffer, batch._pos, batch._decompressed = bytearray(records), 0, True
