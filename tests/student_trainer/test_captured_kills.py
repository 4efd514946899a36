"""A capture that a kill, a power cut or its disk ended goes on to the same bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.captures import append, captured, files_of
from whole_captures import BY_GENERATIONS, LABELS, MOVED, SMALL, STREAM, N, no_fsync, read_all, whole_in
from whole_captures import whole_of_generations_in as whole_of

from pipeline.captured.capturing import CaptureFolder, CaptureForm
from pipeline.captured.contents import NAME, Contents
from pipeline.captured.folder import CapturedFolder
from pipeline.captured.index import ENTRY
from schemas.errors import CannotWrite, DecodeError


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    with no_fsync():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_in(tmp_path_factory.mktemp("captured"))


@pytest.fixture(scope="module")
def whole_of_generations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_of(tmp_path_factory.mktemp("captured"))


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


def test_what_lies_behind_the_list_is_nobodys(tmp_path: Path) -> None:
    """As while a capture goes on."""
    folder = captured(tmp_path / "c", STREAM, LABELS[:6])
    captured(folder, STREAM, LABELS[6:9], save=False)
    assert len(read_all(folder)) == 6
    CapturedFolder(folder).verify()


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
