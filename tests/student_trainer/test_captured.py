"""Captured files: what is written is read, by anybody."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reader_logs import label
from support.captures import captured, files_of
from whole_captures import HEADER, LABELS, SMALL, STREAM, N, no_fsync, read_all, whole_in

from pipeline.captured import container
from pipeline.captured.capturing import LOCK, CaptureForm
from pipeline.captured.contents import NAME, Contents
from pipeline.captured.folder import CapturedFolder, TeacherFiles
from pipeline.captured.index import ENTRY
from pipeline.streams import Stream
from schemas.errors import StreamNotFound
from schemas.records import Manifest, Teacher


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    with no_fsync():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_in(tmp_path_factory.mktemp("captured"))


@pytest.mark.parametrize("codec", container.CODECS)
def test_what_was_captured_is_read_byte_by_byte(codec: str, tmp_path: Path) -> None:
    if codec == "zstandard":
        pytest.importorskip("backports.zstd")
    form = CaptureForm(codec, SMALL.max_file_bytes)
    folder = captured(tmp_path / "c", STREAM, LABELS, form)
    pinned = STREAM.manifest.schema_fingerprints
    files = CapturedFolder(folder).teacher("cnn")
    assert [files.read(n).value for n in range(N)] == [each.encode(pinned) for each in LABELS]
    assert (files.manifest.encode(), files.teacher.sha256) == (STREAM.manifest.encode(), STREAM.teachers["cnn"].sha256)
    assert all(len(raw) <= HEADER + 600 for name, raw in files_of(folder).items() if name.endswith(".avro"))
    with pytest.raises(IndexError, match="order 20 of 20"):
        files.read(N)
    files.close()


def test_an_order_larger_than_a_file_has_one_of_its_own(tmp_path: Path) -> None:
    folder = captured(tmp_path / "c", STREAM, LABELS[:3], CaptureForm("null", 1))
    assert len(list(folder.glob("cnn-*.avro"))) == 3
    assert [each.sequence for each in read_all(folder)] == [0, 1, 2]


def test_any_reader_of_avro_reads_the_files(whole: Path) -> None:
    """And decodes the records of manifest and teacher by the schemas beside them."""
    found: list[dict[str, Any]] = []
    for path in sorted(whole.glob("cnn-*.avro")):
        with path.open("rb") as file:
            reader = fastavro.reader(file)
            found += list(reader)
            metadata = reader.metadata
    assert [each["soft_targets"]["sequence"] for each in found] == list(range(N))
    (values,) = found[5]["soft_targets"]["outputs"][0]["columns"]
    logits = np.frombuffer(values["data"], values["dtype"]).reshape(values["shape"])
    assert np.array_equal(logits, LABELS[5].outputs[0].columns["values"])
    for name, fields in (("manifest", {"stream": "s", "seed": 1}), ("teacher", {"name": "cnn"})):
        raw = base64.b64decode(metadata[f"distillog.{name}"])
        schema = fastavro.parse_schema(json.loads(metadata[f"distillog.{name}.schema"]))
        datum = fastavro.schemaless_reader(io.BytesIO(raw[10:]), schema, None)
        assert fields.items() <= datum.items()
    assert Manifest.decode(base64.b64decode(metadata["distillog.manifest"]), "").stream_id == STREAM.manifest.stream_id
    assert Teacher.decode(base64.b64decode(metadata["distillog.teacher"]), "").name == "cnn"


def test_the_list_says_which_files_hold_which_orders(whole: Path) -> None:
    contents = json.loads((whole / NAME).read_text())
    (teacher,) = contents["teachers"].values()
    assert teacher["files"][0]["from"] == 0
    assert teacher["files"][-1]["to"] == N - 1
    assert [each["bytes"] for each in teacher["files"]] == [
        (whole / each["file"]).stat().st_size for each in teacher["files"]
    ]
    assert teacher["index"]["bytes"] == N * 20 == (whole / "cnn.index").stat().st_size
    CapturedFolder(whole).verify()


def test_a_teacher_that_is_captured_later_joins_the_others(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "c")
    captured(folder, STREAM, [label(STREAM, "vit", sequence) for sequence in range(4)])
    assert [len(read_all(folder, name)) for name in ("cnn", "vit")] == [N, 4]
    theirs = {name: raw for name, raw in files_of(whole).items() if name.startswith("cnn")}
    assert theirs.items() <= files_of(folder).items()
    with pytest.raises(StreamNotFound, match=r"no soft targets of teacher 'bert' \(there: cnn, vit\).*--teacher bert"):
        CapturedFolder(folder).teacher("bert")


def bytes_read() -> int:
    """By this process, by whatever reads files but memory maps."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_million_orders_are_opened_at_any_of_them_by_what_that_one_needs(tmp_path: Path) -> None:
    """Of orders that all lie in one place, but for the index that is what a million of them are."""
    count = 600_000
    manifest = replace(STREAM.manifest, epochs=count // 10, partitions=1)
    stream = Stream(manifest, STREAM.teachers)
    middle = LABELS[0]
    captured(tmp_path, stream, [middle], CaptureForm("null"))
    contents = Contents.read(tmp_path)
    entry = contents.teachers["cnn"]
    index = np.repeat(np.fromfile(tmp_path / "cnn.index", ENTRY), count)
    index.tofile(tmp_path / "cnn.index")
    files = (replace(entry.files[0], last=count - 1),)
    replace(contents, teachers={"cnn": replace(entry, files=files)}).write(tmp_path)

    before = bytes_read()
    opened: TeacherFiles = CapturedFolder(tmp_path).teacher("cnn")
    assert opened.num_orders == count
    for sequence in (count - 1, count // 2, 0):
        assert opened.read(sequence).value == middle.encode(manifest.schema_fingerprints)
    opened.close()
    assert bytes_read() - before < 200_000
    assert (tmp_path / LOCK).stat().st_size == 0


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_numbers_are_avros(value: int) -> None:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, {"type": "long"}, value)
    assert container.encode_long(value) == out.getvalue()
    assert container.decode_long(out.getvalue() + b"x", 0) == (value, len(out.getvalue()))
