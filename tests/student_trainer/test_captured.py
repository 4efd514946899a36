"""Captured files: what is written is read, by anybody; kills, flipped bits and foreign folders come to no harm."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reader_logs import label, make_stream
from support.captures import append, captured, files_of
from support.generations import EVERY, RUN_ID, by, moved

from pipeline.captured import container
from pipeline.captured.capturing import LOCK, CaptureFolder, CaptureForm
from pipeline.captured.contents import NAME, Contents
from pipeline.captured.folder import CapturedFolder, TeacherFiles
from pipeline.captured.header import file_header
from pipeline.captured.index import ENTRY
from pipeline.streams import Stream
from schemas.avro import REGISTRY
from schemas.errors import (
    CannotWrite,
    ConfigError,
    DecodeError,
    DistillogError,
    ManifestMismatch,
    StreamConflict,
    StreamNotFound,
)
from schemas.records import Manifest, SoftTargets, Teacher

STREAM = make_stream("s", ("cnn", "vit"), stream_id="00" * 8, schema_fingerprints=REGISTRY.fingerprints())
N = 20
LABELS = [label(STREAM, "cnn", sequence) for sequence in range(N)]
MOVED = moved(STREAM, "cnn", 3)
BY_GENERATIONS = [by(value, STREAM, value.sequence // 9) for value in LABELS]
"""The same labels by the generations 0, 1 and 2; the third one has none yet."""
HEADER = len(file_header(STREAM.manifest, STREAM.teachers["cnn"], "deflate"))
SMALL = CaptureForm("deflate", HEADER + 600)
"""A few orders a file."""


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    """No power is cut here, and a busy disk takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All orders of one teacher, in several files."""
    folder = captured(tmp_path_factory.mktemp("captured") / "whole", STREAM, LABELS, SMALL)
    assert len(list(folder.glob("cnn-*.avro"))) > 3
    return folder


@pytest.fixture(scope="module")
def whole_of_generations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, of a teacher that moves."""
    return captured(tmp_path_factory.mktemp("captured") / "moved", MOVED, BY_GENERATIONS, SMALL)


def read_all(folder: Path, name: str = "cnn") -> list[SoftTargets]:
    files = CapturedFolder(folder).teacher(name)
    try:
        found = [files.read(sequence) for sequence in range(files.num_orders)]
    finally:
        files.close()
    assert [each.partition for each in found] == [sequence % 3 for sequence in range(len(found))]
    assert [each.offset for each in found] == [7 + sequence // 3 for sequence in range(len(found))]
    return [SoftTargets.decode(each.value, each.address) for each in found]


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


@given(
    st.integers(0, N),
    st.lists(st.integers(0, N), max_size=3),
    st.floats(0, 1),
    st.floats(0, 1),
    st.binary(max_size=40),
)
def test_a_capture_that_was_cut_anywhere_goes_on_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    whole_of_generations: Path,
    stored: int,
    saved: list[int],
    left: float,
    index_left: float,
    junk: bytes,
) -> None:
    """After any number of orders, behind lists written at any time, with any part of what is not listed."""
    folder = tmp_path_factory.mktemp("cut") / "c"
    with CaptureFolder(folder, STREAM.manifest, [STREAM.teachers["cnn"]], SMALL, lineages=MOVED.lineages) as capture:
        at = 0
        for until in sorted(min(each, stored) for each in saved):
            append(capture, STREAM, BY_GENERATIONS[at:until])
            capture.save()
            at = until
        append(capture, STREAM, BY_GENERATIONS[at:stored])
    (teacher,) = Contents.read(folder).teachers.values()
    last = sorted(folder.glob("cnn-*.avro"))[-1]
    number = int(last.stem.rpartition("-")[2])
    listed = teacher.files[number].num_bytes if number < len(teacher.files) else 0
    size = last.stat().st_size
    last.write_bytes(last.read_bytes()[: listed + round(left * (size - listed))] + junk)
    full = teacher.files[number - 1].last + 1 if number else 0
    needed, size = full * ENTRY.itemsize, (folder / "cnn.index").stat().st_size
    index = (folder / "cnn.index").read_bytes()
    (folder / "cnn.index").write_bytes(index[: needed + round(index_left * (size - needed))])

    with CaptureFolder(
        folder, STREAM.manifest, [STREAM.teachers["cnn"]], CaptureForm(), lineages=MOVED.lineages
    ) as capture:
        first = capture.writers["cnn"].next_sequence
        assert first <= stored
        append(capture, STREAM, BY_GENERATIONS[first:])
        capture.save()
    assert files_of(folder) == files_of(whole_of_generations)
    shutil.rmtree(folder)


def test_a_folder_says_which_generations_its_labels_are_of(whole_of_generations: Path, whole: Path) -> None:
    contents = json.loads((whole_of_generations / NAME).read_text())
    (listed,) = contents["teachers"].values()
    assert listed["publisher"] == {"run": "online", "run_id": RUN_ID, "every": EVERY}
    assert [(each["number"], each["step"]) for each in listed["generations"]] == [(1, 10), (2, 20)]
    assert not {"publisher", "generations"} & set(*json.loads((whole / NAME).read_text())["teachers"].values())
    files = CapturedFolder(whole_of_generations).teacher("cnn")
    lineage, wanted = files.lineage, MOVED.lineages["cnn"]
    files.close()
    assert (lineage.publisher, lineage.generations) == (wanted.publisher, wanted.generations[:2])
    assert [each.generation for each in read_all(whole_of_generations)] == [each.generation for each in BY_GENERATIONS]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda teacher: teacher["generations"].reverse(), "generation 2 is listed behind 0"),
        (lambda teacher: teacher["generations"][0].update(number=-1), "-1 is no number"),
        (lambda teacher: teacher["generations"][0].update(sha256="ab"), "a SHA-256 is 64 lower-case hex digits"),
        (lambda teacher: teacher["publisher"].update(every=0), "publishes every 0 orders"),
        (lambda teacher: teacher["publisher"].update(run="a/b"), "run name 'a/b'"),
        (lambda teacher: teacher.pop("generations"), "misses 'generations'"),
        (lambda teacher: teacher.update(generations=[]), "does not match its own SHA-256"),
    ],
)
def test_a_list_of_generations_that_no_capture_wrote_is_refused(
    change: Any, said: str, whole_of_generations: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole_of_generations, tmp_path / "c"))
    contents = json.loads((folder / NAME).read_text())
    change(contents["teachers"]["cnn"])
    (folder / NAME).write_text(json.dumps(contents))
    with pytest.raises(DecodeError, match=f"{NAME}: is damaged .*{re.escape(said)}"):
        CapturedFolder(folder)


def test_what_lies_behind_the_list_is_nobodys(tmp_path: Path) -> None:
    """As while a capture goes on."""
    folder = captured(tmp_path / "c", STREAM, LABELS[:6])
    captured(folder, STREAM, LABELS[6:9], save=False)
    assert len(read_all(folder)) == 6
    CapturedFolder(folder).verify()


@given(st.integers(0), st.integers(0, 7), st.sampled_from(["*.avro", "*.index", NAME]))
def test_a_flipped_bit_is_found_and_its_file_named(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, place: int, bit: int, which: str
) -> None:
    folder = tmp_path_factory.mktemp("flipped") / "c"
    shutil.copytree(whole, folder)
    files = sorted(folder.glob(which))
    path = files[place % len(files)]
    raw = bytearray(path.read_bytes())
    raw[place // len(files) % len(raw)] ^= 1 << bit
    path.write_bytes(raw)
    with pytest.raises(DistillogError) as caught:
        read_all(folder)
    named = {path.name, NAME} if which == NAME else {path.name}
    if which == "*.index":  # of an entry that is damaged, either the file that it names is, or the entry
        named |= {each.name for each in folder.iterdir()}
    assert any(name in str(caught.value) for name in named) or str(folder) in str(caught.value)
    if which != NAME:
        assert isinstance(caught.value, DecodeError)
        with pytest.raises(DecodeError, match=path.name):
            CapturedFolder(folder).verify()
    shutil.rmtree(folder)


def test_a_damaged_file_is_not_gone_on_with(tmp_path: Path) -> None:
    folder = captured(tmp_path / "c", STREAM, LABELS[:6], CaptureForm("null"))
    path = folder / "cnn-00000.avro"
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DecodeError, match=r"cnn-00000\.avro: is damaged: its SHA-256"):
        captured(folder, STREAM, LABELS[6:])
    path.write_bytes(raw[:-50])
    with pytest.raises(DecodeError, match=r"cnn-00000\.avro: is cut: \d+ bytes of the \d+ that are listed"):
        read_all(folder)
    path.unlink()
    with pytest.raises(DecodeError, match=r"cnn-00000\.avro: is missing"):
        read_all(folder)


def edited(document: dict[str, Any], *path: str | int, value: Any) -> None:
    for key in path[:-1]:
        document = document[key]  # type: ignore[index]
    document[path[-1]] = value  # type: ignore[index]


@pytest.mark.parametrize("name", ["../cnn-00000.avro", "/etc/passwd", "sub/cnn-00000.avro", "cnn-00001.avro", ""])
def test_a_list_that_names_a_file_outside_of_its_folder_is_refused(name: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "c")
    (tmp_path / "cnn-00000.avro").write_bytes((whole / "cnn-00000.avro").read_bytes())
    for path in (("files", 0, "file"), ("index", "file")):
        document = json.loads((whole / NAME).read_text())
        edited(document, "teachers", "cnn", *path, value=name)
        (tmp_path / "c" / NAME).write_text(json.dumps(document))
        with pytest.raises(DecodeError, match=r"contents\.json: is damaged \(it names .*lies in its own folder"):
            CapturedFolder(tmp_path / "c")


def test_a_list_with_a_teacher_that_is_a_path_is_refused(whole: Path, tmp_path: Path) -> None:
    document = json.loads((whole / NAME).read_text())
    document["teachers"]["../cnn"] = document["teachers"].pop("cnn")
    (tmp_path / NAME).write_text(json.dumps(document))
    with pytest.raises(DecodeError, match="is no name of a teacher"):
        CapturedFolder(tmp_path)


WRONG: dict[str, tuple[tuple[str | int, ...], Any, str]] = {
    "another form": (("format",), 2, "it is of form 2, 1 here"),
    "a gap": (("teachers", "cnn", "files", 1, "from"), 19, r"holds 19 to \d+, where \d+ follows"),
    "a text": (("teachers", "cnn", "files", 0, "bytes"), "many", "'many' is no number"),
    "no file": (("teachers", "cnn", "files"), [], "has no file"),
    "another sum": (("num_orders",), 21, "its own SHA-256"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_list_that_makes_no_sense_is_refused(name: str, whole: Path, tmp_path: Path) -> None:
    path, value, says = WRONG[name]
    document = json.loads((whole / NAME).read_text())
    edited(document, *path, value=value)
    (tmp_path / NAME).write_text(json.dumps(document))
    with pytest.raises(DecodeError, match=says):
        CapturedFolder(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("stream", "birds"), ("num_orders", 7), ("stream_id", "ab" * 8)])
def test_a_list_of_another_stream_than_its_files_is_refused(
    key: str, value: object, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "c")
    replace(Contents.read(whole), **{key: value}).write(tmp_path / "c")  # type: ignore[arg-type]
    with pytest.raises(DecodeError, match="is of another stream or teacher than its list says"):
        CapturedFolder(tmp_path / "c").teacher("cnn")


def test_a_folder_without_a_list_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no captured soft targets .*distillog capture STREAM"):
        CapturedFolder(tmp_path)


def other_stream(**changes: Any) -> Stream:
    return make_stream("s", ("cnn",), schema_fingerprints=REGISTRY.fingerprints(), **changes)


REFUSED: dict[str, tuple[Callable[[], Stream], CaptureForm, type[DistillogError], str]] = {
    "another stream": (lambda: other_stream(stream_id="11" * 8), SMALL, StreamConflict, "from stream 's' .* another"),
    "another manifest": (lambda: other_stream(stream_id="00" * 8, seed=2), SMALL, StreamConflict, "another manifest"),
    "another model": (lambda: other_stream(stream_id="00" * 8), SMALL, StreamConflict, "teacher 'cnn' is captured"),
    "another codec": (
        lambda: STREAM,
        CaptureForm("null"),
        ConfigError,
        rf"with --codec deflate --max-file-size {HEADER + 600}",
    ),
    "another size": (lambda: STREAM, CaptureForm(None, 64), ConfigError, "go on with these"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_of_something_else_is_refused_and_left_as_it_is(name: str, whole: Path) -> None:
    make, form, error, says = REFUSED[name]
    stream, before = make(), files_of(whole)
    with pytest.raises(error, match=says):
        CaptureFolder(whole, stream.manifest, [stream.teachers["cnn"]], form)
    assert files_of(whole) == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match=r"holds other files \(thesis\.tex\)"):
        captured(tmp_path, STREAM, LABELS[:1])
    assert files_of(tmp_path)["thesis.tex"] == b"years"


def test_two_captures_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with (
        CaptureFolder(tmp_path, STREAM.manifest, [STREAM.teachers["cnn"]], SMALL),
        pytest.raises(CannotWrite, match="another capture is under way"),
    ):
        captured(tmp_path, STREAM, [label(STREAM, "vit", 0)])
    captured(tmp_path, STREAM, [label(STREAM, "vit", 0)])


def test_a_teacher_that_is_captured_later_joins_the_others(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "c")
    captured(folder, STREAM, [label(STREAM, "vit", sequence) for sequence in range(4)])
    assert [len(read_all(folder, name)) for name in ("cnn", "vit")] == [N, 4]
    theirs = {name: raw for name, raw in files_of(whole).items() if name.startswith("cnn")}
    assert theirs.items() <= files_of(folder).items()
    with pytest.raises(StreamNotFound, match=r"no soft targets of teacher 'bert' \(there: cnn, vit\).*--teacher bert"):
        CapturedFolder(folder).teacher("bert")


def test_a_record_in_another_version_than_is_pinned_is_not_changed(tmp_path: Path) -> None:
    raw = bytearray(LABELS[0].encode())
    raw[2] ^= 1
    with CaptureFolder(tmp_path, STREAM.manifest, [STREAM.teachers["cnn"]], SMALL) as folder:
        with pytest.raises(ManifestMismatch, match=r"here: is written in schema .* labels are never encoded anew"):
            folder.writers["cnn"].append(0, 0, 0, bytes(raw), "here")
        assert folder.writers["cnn"].next_sequence == 0


def test_a_disk_that_is_full_ends_a_capture_in_one_line_and_what_was_stored_stays(tmp_path: Path) -> None:
    with CaptureFolder(tmp_path, STREAM.manifest, [STREAM.teachers["cnn"]], SMALL) as folder:
        append(folder, STREAM, LABELS[:5])
        folder.save()
        with open("/dev/full", "wb") as full:
            os.dup2(full.fileno(), folder.writers["cnn"]._file)
        with pytest.raises(CannotWrite, match=r"cnn-\d+\.avro: cannot be written: No space left on device"):
            append(folder, STREAM, LABELS[5:])
    captured(tmp_path, STREAM, LABELS[5:])
    assert [each.sequence for each in read_all(tmp_path)] == list(range(N))


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


def test_what_a_power_cut_left_behind_the_list_is_taken_only_where_the_index_has_it(tmp_path: Path) -> None:
    folder = captured(tmp_path / "c", STREAM, LABELS[:10], CaptureForm("null"), save=False)
    data = (folder / "cnn-00000.avro").read_bytes()
    values = LABELS[7].outputs[0].columns["values"].tobytes()
    at = data.rindex(values)
    assert data.count(values) == 1
    (folder / "cnn-00000.avro").write_bytes(data[:at] + bytes(len(values)) + data[at + len(values) :])
    with CaptureFolder(folder, STREAM.manifest, [STREAM.teachers["cnn"]], CaptureForm()) as again:
        assert again.writers["cnn"].next_sequence == 7
        append(again, STREAM, LABELS[7:])
        again.save()
    assert files_of(folder) == files_of(captured(tmp_path / "w", STREAM, LABELS, CaptureForm("null")))


@pytest.mark.parametrize("call", range(1, 9))
def test_a_disk_that_refuses_once_leaves_what_was_listed_whole(
    tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the calls that the second file begins with, each in turn."""
    folder, first = tmp_path / "c", LABELS[:1]
    form = CaptureForm("null", 1)  # each order begins a file
    calls, real, real_open = 0, os.pwrite, os.open

    def once(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(5, "Input/output error")

    def pwrite(*args: Any) -> int:
        once()
        return real(*args)

    def opened(path: Any, *args: Any, **more: Any) -> int:
        if str(path).endswith(".avro"):
            once()
        return real_open(path, *args, **more)

    with CaptureFolder(folder, STREAM.manifest, [STREAM.teachers["cnn"]], form) as capture:
        append(capture, STREAM, first)
        capture.save()
        monkeypatch.setattr(os, "pwrite", pwrite)
        monkeypatch.setattr(os, "open", opened)
        try:
            append(capture, STREAM, LABELS[1:3])
        except CannotWrite:
            capture.save()
        monkeypatch.undo()
        assert [each.sequence for each in read_all(folder)] == list(
            range(CapturedFolder(folder).teacher("cnn").num_orders)
        )
    with CaptureFolder(folder, STREAM.manifest, [STREAM.teachers["cnn"]], CaptureForm()) as again:
        append(again, STREAM, LABELS[again.writers["cnn"].next_sequence :])
        again.save()
    assert files_of(folder) == files_of(captured(tmp_path / "w", STREAM, LABELS, form))


def test_a_list_that_is_older_than_its_files_says_what_to_do_and_that_helps(whole: Path, tmp_path: Path) -> None:
    folder = captured(tmp_path / "c", STREAM, LABELS[:2], SMALL)
    older = (folder / NAME).read_bytes()
    with CaptureFolder(folder, STREAM.manifest, [STREAM.teachers["cnn"]], SMALL) as capture:
        append(capture, STREAM, LABELS[2:])
        capture.save()
    (folder / NAME).write_bytes(older)
    with pytest.raises(DecodeError, match=r"the list is older .* remove cnn-00001\.avro, cnn-00002\.avro") as refused:
        CaptureFolder(folder, STREAM.manifest, [STREAM.teachers["cnn"]], SMALL)
    for path in folder.glob("cnn-*.avro"):
        if path.name in str(refused.value).partition("remove")[2]:
            path.unlink()
    with CaptureFolder(folder, STREAM.manifest, [STREAM.teachers["cnn"]], SMALL) as capture:
        append(capture, STREAM, LABELS[capture.writers["cnn"].next_sequence :])
        capture.save()
    assert files_of(folder) == files_of(whole)


@pytest.mark.parametrize(
    "name",
    ["cnn-00000.avro", "cnn.index", "cnn-00000.avro as a link", "lock as a link", ".new-contents.json as a link"],
)
def test_what_no_capture_has_made_is_not_overwritten(name: str, tmp_path: Path) -> None:
    folder, mine = tmp_path / "c", tmp_path / "mine"
    with CaptureFolder(folder, STREAM.manifest, [], SMALL):
        pass  # its list is there, and no teacher in it
    mine.write_text("mine")
    path = folder / name.partition(" ")[0]
    path.unlink(missing_ok=True)
    if name.endswith("link"):
        path.symlink_to(mine)
    else:
        path.write_text("mine")
    with pytest.raises(CannotWrite, match=re.escape(str(path))) as refused:
        CaptureFolder(folder, STREAM.manifest, [STREAM.teachers["cnn"]], SMALL)
    assert "\n" not in str(refused.value)
    assert mine.read_text() == path.read_text() == "mine"


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_orders", "20"), ("num_orders", 20.0), ("stream", 3), ("codec", ["null"]), ("max_file_bytes", None)],
)
def test_a_list_of_wrong_types_is_damaged_and_no_crash(key: str, value: object, whole: Path, tmp_path: Path) -> None:
    document = json.loads((whole / NAME).read_text())
    del document["sha256"]
    document[key] = value
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    (tmp_path / NAME).write_text(json.dumps(document | {"sha256": digest}))
    with pytest.raises(DecodeError, match="is damaged"):
        CapturedFolder(tmp_path)
