"""Bytes of every version of every schema, kept in `golden/`: old logs and captured files must be read for ever.

A file is `SCHEMA.VERSION[.EXAMPLE].bin`. A file is never changed; a new schema version brings new ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from schemas_examples import examples, plain

from schemas.avro import REGISTRY
from schemas.codecs import Dense
from schemas.errors import EncodeError
from schemas.head import HeadChunk
from schemas.records import DeadLetter, Generation, Manifest, Publisher, SoftTargets, Teacher, WorkOrder

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.bin"))
EXAMPLES = examples()
RECORD: dict[str, Any] = {
    "dead_letter": DeadLetter,
    "generation": Generation,
    "head_chunk": HeadChunk,
    "manifest": Manifest,
    "publisher": Publisher,
    "soft_targets": SoftTargets,
    "teacher": Teacher,
    "work_order": WorkOrder,
}


def parts(file: Path) -> tuple[str, int, str]:
    """schema, version, name of the example"""
    schema, version, *rest = file.stem.split(".")
    return schema, int(version), " ".join([schema, *(one.replace("_", " ") for one in rest)])


def test_bytes_of_every_schema_version_are_kept() -> None:
    versions = {tuple(path.stem.split(".")) for path in REGISTRY.folder.glob("*.avsc")}
    assert {tuple(file.stem.split(".")[:2]) for file in GOLDEN} == versions
    assert set(EXAMPLES) <= {parts(file)[2] for file in GOLDEN}


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_bytes_that_were_written_once_are_read_for_ever(file: Path) -> None:
    schema, version, example = parts(file)
    raw = file.read_bytes()
    assert raw[2:10] == REGISTRY.fingerprint(schema, version)
    record = RECORD[schema].decode(raw, file.name)
    if example in EXAMPLES:
        assert plain(record) == plain(EXAMPLES[example])


@pytest.mark.parametrize("file", [file for file in GOLDEN if parts(file)[2] in EXAMPLES], ids=lambda file: file.stem)
def test_a_stream_that_pins_a_version_gets_its_very_bytes(file: Path) -> None:
    schema, version, example = parts(file)
    pinned = {schema: REGISTRY.fingerprint(schema, version).hex()}
    record = EXAMPLES[example]
    if schema == "manifest":  # it has what it pins within, and this one does not say it of itself
        assert REGISTRY.encode(schema, REGISTRY.decode(schema, record.encode(), ""), pinned) == file.read_bytes()
    else:
        assert record.encode(pinned) == file.read_bytes()


def test_float16_rows_of_before_the_shift_are_read_as_they_were() -> None:
    raw = (Path(__file__).parent / "golden" / "soft_targets.1.float16_unshifted.bin").read_bytes()
    values = SoftTargets.decode(raw, "").output("logits").values()
    assert isinstance(values, Dense)
    assert values.logits.tolist() == np.arange(8.0).reshape(2, 4).tolist()


def test_a_stream_of_before_holds_labels_of_generation_0_and_no_others() -> None:
    pinned = {"soft_targets": REGISTRY.fingerprint("soft_targets", 1).hex()}
    label = EXAMPLES["soft_targets float32"]
    assert SoftTargets.decode(label.encode(pinned), "").generation == 0
    with pytest.raises(
        EncodeError, match=r"version 1, which the stream pins, .* has no room for generation; the stream"
    ):
        EXAMPLES["soft_targets generation"].encode(pinned)
