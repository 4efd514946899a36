"""How large the records of soft targets may become: from the outputs' shapes, their codecs and the order size."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.topic_settings import DEFAULT_MAX_MESSAGE
from schemas.codecs import CODECS, CodecSpec
from schemas.errors import RecordTooLarge
from schemas.records import Manifest, Teacher

RECORD_OVERHEAD = 2_048
"""bytes of a record beside its IDs and outputs: names, headers, the batch's own fields"""

_OUTPUT_OVERHEAD = 512
"""bytes of an output beside its columns' data: names, shapes"""

OutputSize = tuple[CodecSpec, tuple[int, ...], int]
"""codec, shape of a row with the classes last, number of classes or 0"""


def record_bytes(order_size: int, outputs: Collection[OutputSize]) -> int:
    """Upper bound of one record in bytes."""
    return _overhead(outputs) + order_size * _per_sample(outputs)


def orders_that_fit(limit: int, outputs: Collection[OutputSize]) -> int:
    """Samples of an order whose record is `limit` bytes at most; 0 or less: none is."""
    return (limit - _overhead(outputs)) // _per_sample(outputs)


def teacher_record_bytes(manifest: Manifest, teacher: Teacher) -> int:
    """Upper bound of a teacher's records in bytes; no less than the manifest's."""
    return max(manifest.max_record_bytes, record_bytes(manifest.order_size, _sizes(manifest, teacher)))


def refuse_large_records(manifest: Manifest, teacher: Teacher) -> None:
    """Raise RecordTooLarge where a teacher's records may be larger than what a stream's topics take."""
    limit = max(DEFAULT_MAX_MESSAGE, manifest.max_record_bytes)
    outputs = _sizes(manifest, teacher)
    needed = record_bytes(manifest.order_size, outputs)
    if needed <= limit:
        return
    largest, (codec, shape, _) = max(
        zip(teacher.outputs, outputs, strict=True), key=lambda pair: _per_sample([pair[1]])
    )
    fitting = orders_that_fit(limit, outputs)
    instead = "--codec {0}=topk:k=10" if largest.num_classes else "--codec {0}=float16, or fewer or smaller outputs"
    raise RecordTooLarge(
        f"teacher {teacher.name!r}: {manifest.order_size} samples of {len(outputs)} outputs, the largest "
        f"{largest.name!r} of {'x'.join(map(str, shape))} as {codec}, need records of {needed} bytes, and the stream's "
        f"topics take {limit}: "
        + (f"create the stream with --order-size {fitting} or less, or add it with " if fitting > 0 else "add it with ")
        + instead.format(largest.name)
    )


def _sizes(manifest: Manifest, teacher: Teacher) -> list[OutputSize]:
    return [(one.stored_as(manifest.codec), one.stored_shape, one.num_classes) for one in teacher.outputs]


def _overhead(outputs: Collection[OutputSize]) -> int:
    return RECORD_OVERHEAD + _OUTPUT_OVERHEAD * (len(outputs) - 1)


def _per_sample(outputs: Collection[OutputSize]) -> int:
    of_outputs = sum(CODECS[codec.name].bytes_per_row(codec, shape, classes) for codec, shape, classes in outputs)
    return of_outputs + 8 + 8  # IDs and kept rows are at most 8 bytes each
