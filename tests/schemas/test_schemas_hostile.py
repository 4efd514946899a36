"""Records that announce more than they hold: refused, and no memory taken for what they announce."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from schemas_examples import RECORDS

from schemas.errors import DecodeError

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.bin"))
NAMES = (
    "work_order",
    "soft_targets",
    "dead_letter",
    "teacher",
    "manifest",
    "head_chunk",
    "publisher",
    "generation",
)
TYPES = dict(zip(NAMES, RECORDS, strict=True))


def varint(number: int) -> bytes:
    """As Avro writes a long."""
    number, written = (number << 1) ^ (number >> 63), bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*written, number])


HUGE = [varint(2**62), varint(2**31), varint(-(2**62)), varint(-1)]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_huge_length_anywhere_takes_no_memory(path: Path) -> None:
    raw, record = path.read_bytes(), TYPES[path.name.partition(".")[0]]
    record.decode(raw, "here")  # whatever is loaded once
    tracemalloc.start()
    try:
        for at in range(10, len(raw)):
            for number in HUGE:
                with suppress(DecodeError):  # or it is a record, which says other things
                    record.decode(raw[:at] + number + raw[at + 1 :], "here")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
