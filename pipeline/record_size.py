"""How large the records of soft targets may become: from the outputs' shapes, their codecs and the order size."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

from pipeline.topic_settings import DEFAULT_MAX_MESSAGE
from schemas.codecs import CODECS, CodecSpec
from schemas.errors import RecordTooLarge
from schemas.records import Manifest, Teacher

RECORD_OVERHEAD = 2_048
"""bytes of a record beside its IDs and outputs: names, headers, the batch's own fields"""

_OUTPUT_OVERHEAD = 512
"""bytes of an output beside its columns' data: names, shapes"""

_CHOSEN_BYTES = 12
"""of a sample's number of positions, at most 8, and of their hash"""


class OutputSize(NamedTuple):
    """What a sample has of an output, at most."""

    codec: CodecSpec
    shape: tuple[int, ...]
    """With the classes last; of one per position with their number first."""
    num_classes: int
    """0 where there are none"""
    per_position: bool = False

    @property
    def num_bytes(self) -> int:
        """On the wire, without headers."""
        of_values = CODECS[self.codec.name].bytes_per_row(self.codec, self.shape, self.num_classes)
        return of_values + (_CHOSEN_BYTES if self.per_position else 0)


def record_bytes(order_size: int, outputs: Collection[OutputSize]) -> int:
    """Upper bound of one record in bytes."""
    return _overhead(outputs) + order_size * _per_sample(outputs)


def orders_that_fit(limit: int, outputs: Collection[OutputSize]) -> int:
    """Samples of an order whose record is `limit` bytes at most; 0 or less: none is."""
    return (limit - _overhead(outputs)) // _per_sample(outputs)


def teacher_record_bytes(manifest: Manifest, teacher: Teacher) -> int:
    """Upper bound of a teacher's records in bytes; no less than the manifest's.

    How many positions a view chooses only its code says, which readers need not have: what the topics take bounds them.
    """
    needed = record_bytes(manifest.order_size, _sizes(manifest, teacher, {}))
    return max(manifest.max_record_bytes, min(needed, _limit(manifest)))


def refuse_large_records(manifest: Manifest, teacher: Teacher, max_positions: Mapping[str, int]) -> None:
    """Raise RecordTooLarge where a teacher's records may be larger than what a stream's topics take.

    `max_positions` (field -> number) are the view's; what it does not say is the field's whole length.
    """
    limit = _limit(manifest)
    outputs = _sizes(manifest, teacher, max_positions)
    needed = record_bytes(manifest.order_size, outputs)
    if needed <= limit:
        return
    largest, size = max(zip(teacher.outputs, outputs, strict=True), key=lambda pair: pair[1].num_bytes)
    fitting = orders_that_fit(limit, outputs)
    instead = "--codec {0}=topk:k=10" if largest.codec_classes else "--codec {0}=float16, or fewer or smaller outputs"
    if largest.positions:
        instead += f", or let the view say that it chooses fewer (max_positions of {largest.positions!r})"
    each = " positions x " if largest.positions else "x"
    raise RecordTooLarge(
        f"teacher {teacher.name!r}: {manifest.order_size} samples of {len(outputs)} outputs, the largest "
        f"{largest.name!r} of {each.join(map(str, size.shape))} as {size.codec}, need records of {needed} bytes, and "
        f"the stream's topics take {limit}: "
        + (f"create the stream with --order-size {fitting} or less, or add it with " if fitting > 0 else "add it with ")
        + instead.format(largest.name)
    )


def _limit(manifest: Manifest) -> int:
    """Bytes of a record that a stream's topics take."""
    return max(DEFAULT_MAX_MESSAGE, manifest.max_record_bytes)


def _sizes(manifest: Manifest, teacher: Teacher, max_positions: Mapping[str, int]) -> list[OutputSize]:
    sizes = []
    for one in teacher.outputs:
        there = math.prod(one.places)
        places = (min(there, max_positions.get(one.positions, there)),) if one.positions else ()
        codec, shape = one.stored_as(manifest.codec), (*places, *one.stored_shape)
        sizes.append(OutputSize(codec, shape, one.codec_classes, bool(one.positions)))
    return sizes


def _overhead(outputs: Collection[OutputSize]) -> int:
    return RECORD_OVERHEAD + _OUTPUT_OVERHEAD * (len(outputs) - 1)


def _per_sample(outputs: Collection[OutputSize]) -> int:
    return sum(output.num_bytes for output in outputs) + 8 + 8  # IDs and kept rows are at most 8 bytes each
