"""Captured files that somebody made up, cut or locked away: one line each, and never the end of the process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reader_logs import label, make_stream
from support.captures import captured

from pipeline.captured import container
from pipeline.captured.capturing import CaptureFolder, CaptureForm
from pipeline.captured.contents import NAME
from pipeline.captured.folder import CapturedFolder
from pipeline.captured.header import file_header
from schemas.avro import REGISTRY
from schemas.errors import ConfigError, DecodeError, DistillogError
from schemas.records import SoftTargets

STREAM = make_stream("s", ("cnn",), stream_id="00" * 8, schema_fingerprints=REGISTRY.fingerprints())
HEADER = file_header(STREAM.manifest, STREAM.teachers["cnn"], "null")
FEW = 40
TREE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("../x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten orders, in several files."""
    labels = [label(STREAM, "cnn", sequence) for sequence in range(10)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        return captured(
            tmp_path_factory.mktemp("foreign") / "c", STREAM, labels, CaptureForm("null", len(HEADER) + 600)
        )


def read_all(folder: Path) -> None:
    files = CapturedFolder(folder).teacher("cnn")
    try:
        for sequence in range(min(files.num_orders, 100)):
            order = files.read(sequence)
            SoftTargets.decode(order.value, order.address)
    finally:
        files.close()


def said_by(action: Callable[[], object]) -> str:
    """What is said of what was refused; "" where nothing was."""
    try:
        action()
    except DistillogError as error:
        return str(error)
    return ""


def signed(folder: Path, document: dict[str, Any]) -> None:
    """Write a list with the sum that it has to have."""
    body = {key: value for key, value in document.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (folder / NAME).write_text(json.dumps(body | {"sha256": digest}))


def places(document: Any, *path: str | int) -> list[tuple[str | int, ...]]:
    """Where a value stands in a document, of all values."""
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [path, *(place for key, value in inner for place in places(value, *path, key))]


@settings(max_examples=FEW)
@given(st.data())
def test_a_list_with_any_value_in_any_place_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, data: st.DataObject
) -> None:
    """By whoever reads, and by whoever would capture on."""
    folder = tmp_path_factory.mktemp("list") / "c"
    shutil.copytree(whole, folder)
    document = json.loads((folder / NAME).read_text())
    path = data.draw(st.sampled_from([place for place in places(document) if place]))
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = data.draw(TREE)
    signed(folder, document)

    def go_on() -> None:
        with CaptureFolder(folder, STREAM.manifest, [STREAM.teachers["cnn"]], CaptureForm()):
            pass

    for action in (lambda: read_all(folder), lambda: CapturedFolder(folder).verify(lambda count: None), go_on):
        assert "\n" not in said_by(action)
    shutil.rmtree(folder)


@settings(max_examples=FEW)
@given(st.data())
def test_a_header_of_other_metadata_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, data: st.DataObject
) -> None:
    """Whose sums are those that the list says."""
    folder = tmp_path_factory.mktemp("header") / "c"
    shutil.copytree(whole, folder)
    metadata = container.read_header(HEADER)
    key = data.draw(st.sampled_from([key for key in sorted(metadata) if not key.endswith("schema")]))
    text = metadata[key]
    at = data.draw(st.integers(0, len(text)))
    metadata[key] = data.draw(
        st.sampled_from([text[:at], "", "null", "snappy", text + "A", text[:at] + "B" + text[at + 1 :]])
        | st.text(max_size=9)
    )
    raw = container.header(metadata)
    made = data.draw(st.sampled_from([raw, raw[:-1], raw[: len(raw) // 2], b"", b"Obj\x01" + bytes(40)]))
    document = json.loads((folder / NAME).read_text())
    document["teachers"]["cnn"] |= {"header_bytes": len(made), "header_sha256": hashlib.sha256(made).hexdigest()}
    first = folder / "cnn-00000.avro"
    first.write_bytes(made + first.read_bytes()[len(HEADER) :])
    document["teachers"]["cnn"]["files"][0]["bytes"] = first.stat().st_size
    signed(folder, document)
    assert "\n" not in said_by(lambda: read_all(folder))
    shutil.rmtree(folder)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_text(path: Path) -> None:
    path.write_text("a thesis, and no labels. " * 1000)


@pytest.mark.parametrize("name", ["cnn-00000.avro", "cnn-00001.avro", "cnn.index", NAME])
@pytest.mark.parametrize("change", [cut, as_folder, as_pipe, as_text, Path.unlink])
def test_a_file_that_is_none_of_ours_is_named_in_one_line(
    change: Callable[[Path], None], name: str, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "c")
    change(tmp_path / "c" / name)
    said = []
    for action in (lambda: read_all(tmp_path / "c"), lambda: CapturedFolder(tmp_path / "c").verify()):
        with pytest.raises((ConfigError, DecodeError)) as caught:
            action()
        said.append(str(caught.value))
    assert all(name in text and "\n" not in text for text in said)


@pytest.mark.parametrize("name", ["cnn-00000.avro", "cnn-00001.avro", "cnn.index", NAME])
def test_a_file_that_may_not_be_read_is_named_in_one_line(
    name: str, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read anything, so the system's answer is given in its place."""
    real = os.open

    def refused(path: Any, *arguments: Any, **more: Any) -> int:
        if Path(os.fsdecode(path)).name == name:
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refused)
    for action in (lambda: read_all(whole), lambda: CapturedFolder(whole).verify()):
        with pytest.raises(ConfigError, match=f"{name}: cannot be read: Permission denied"):
            action()


@pytest.mark.parametrize("name", ["cnn-00000.avro", "cnn.index"])
def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_not_the_end_of_the_process(
    name: str, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(whole, folder)
    files = CapturedFolder(folder).teacher("cnn")
    files.read(0)
    os.truncate(folder / name, 0)
    with pytest.raises(DecodeError, match=name):
        files.read(1)
    files.close()


def test_a_path_that_no_system_has_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path / "a\0b", tmp_path / ("n" * 300), Path("/dev/null/labels")):
        with pytest.raises(ConfigError):
            CapturedFolder(folder)
