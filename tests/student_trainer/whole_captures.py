"""A stream of 20 orders whose labels are made by hand, and a folder that holds all of them, in several files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from reader_logs import label, make_stream
from support.captures import captured
from support.generations import by, moved

from pipeline.captured.capturing import CaptureForm
from pipeline.captured.folder import CapturedFolder
from pipeline.captured.header import file_header
from schemas.avro import REGISTRY
from schemas.records import SoftTargets

STREAM = make_stream("s", ("cnn", "vit"), stream_id="00" * 8, schema_fingerprints=REGISTRY.fingerprints())
N = 20
LABELS = [label(STREAM, "cnn", sequence) for sequence in range(N)]
MOVED = moved(STREAM, "cnn", 3)
BY_GENERATIONS = [by(value, STREAM, value.sequence // 9) for value in LABELS]
"""The same labels by the generations 0, 1 and 2; the third one has none yet."""
HEADER = len(file_header(STREAM.manifest, STREAM.teachers["cnn"], "deflate"))
SMALL = CaptureForm("deflate", HEADER + 600)
"""A few orders a file."""


@contextmanager
def no_fsync() -> Iterator[None]:
    """No power is cut here, and a busy disk takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def whole_in(folder: Path) -> Path:
    """All orders of one teacher, in several files."""
    made = captured(folder / "whole", STREAM, LABELS, SMALL)
    assert len(list(made.glob("cnn-*.avro"))) > 3
    return made


def whole_of_generations_in(folder: Path) -> Path:
    """The same, of a teacher that moves."""
    return captured(folder / "moved", MOVED, BY_GENERATIONS, SMALL)


def read_all(folder: Path, name: str = "cnn") -> list[SoftTargets]:
    files = CapturedFolder(folder).teacher(name)
    try:
        found = [files.read(sequence) for sequence in range(files.num_orders)]
    finally:
        files.close()
    assert [each.partition for each in found] == [sequence % 3 for sequence in range(len(found))]
    assert [each.offset for each in found] == [7 + sequence // 3 for sequence in range(len(found))]
    return [SoftTargets.decode(each.value, each.address) for each in found]
