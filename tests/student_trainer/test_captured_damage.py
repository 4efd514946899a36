"""Captured files and lists that are damaged, or were made to mislead, are found and named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from whole_captures import no_fsync, read_all, whole_in

from pipeline.captured.contents import NAME, Contents
from pipeline.captured.folder import CapturedFolder
from schemas.errors import DecodeError, DistillogError


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    with no_fsync():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_in(tmp_path_factory.mktemp("captured"))


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
