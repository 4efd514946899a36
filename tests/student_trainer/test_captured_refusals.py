"""What a capture does not write into, and what it does not take."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reader_logs import label, make_stream
from support.captures import captured, files_of
from whole_captures import HEADER, LABELS, SMALL, STREAM, no_fsync, whole_in

from pipeline.captured.capturing import CaptureFolder, CaptureForm
from pipeline.captured.folder import CapturedFolder
from pipeline.captured.parquet import write_tables
from pipeline.streams import Stream
from schemas.avro import REGISTRY
from schemas.errors import CannotWrite, ConfigError, DistillogError, ManifestMismatch, StreamConflict


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    with no_fsync():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_in(tmp_path_factory.mktemp("captured"))


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


def test_a_record_in_another_version_than_is_pinned_is_not_changed(tmp_path: Path) -> None:
    raw = bytearray(LABELS[0].encode())
    raw[2] ^= 1
    with CaptureFolder(tmp_path, STREAM.manifest, [STREAM.teachers["cnn"]], SMALL) as folder:
        with pytest.raises(ManifestMismatch, match=r"here: is written in schema .* labels are never encoded anew"):
            folder.writers["cnn"].append(0, 0, 0, bytes(raw), "here")
        assert folder.writers["cnn"].next_sequence == 0


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


@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_the_place_of_an_unfinished_table_is_refused_and_not_written_through(
    tmp_path: Path, there: bool
) -> None:
    folder = CapturedFolder(captured(tmp_path / "c", STREAM, LABELS[:3]))
    if there:
        (tmp_path / "thesis").write_text("mine")
    (tmp_path / ".new-cnn.parquet").symlink_to(tmp_path / "thesis")
    with pytest.raises(CannotWrite, match=r"\.new-cnn\.parquet: is a link"):
        write_tables(folder, tmp_path)
    assert (tmp_path / "thesis").exists() is there
    assert not there or (tmp_path / "thesis").read_text() == "mine"
    assert (tmp_path / ".new-cnn.parquet").is_symlink()
    assert not (tmp_path / "cnn.parquet").exists()
