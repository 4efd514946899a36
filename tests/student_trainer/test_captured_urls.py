"""Captured files behind a URL: ranges alone, ahead of whoever reads in sequence, and one line for what fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from reader_logs import label, make_stream
from support.captures import captured, files_of

from pipeline.captured import remote
from pipeline.captured.capturing import CaptureForm
from pipeline.captured.folder import CapturedFolder
from pipeline.captured.reading_ahead import ReadingAhead
from pipeline.captured.storage import LocalFolder, storage_of
from schemas.avro import REGISTRY
from schemas.errors import ConfigError, DataUnavailable, DecodeError, DistillogError, StreamNotFound

STREAM = make_stream("s", ("cnn",), stream_id="00" * 8, schema_fingerprints=REGISTRY.fingerprints())
N = 20
LABELS = [label(STREAM, "cnn", sequence) for sequence in range(N)]
URL = "memory://bucket/labels"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All orders, in several files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        return captured(tmp_path_factory.mktemp("urls") / "c", STREAM, LABELS, CaptureForm("null", 9000))


@pytest.fixture
def store(whole: Path) -> Iterator[MemoryFileSystem]:
    """A store in memory with the folder in it."""
    files = fsspec.filesystem("memory")
    for name, raw in files_of(whole).items():
        files.pipe(f"{URL}/{name}", raw)
    yield files
    files.store.clear()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_DEADLINE", 0.5)
    monkeypatch.setattr(remote, "_ATTEMPT", 0.2)


def test_a_url_gives_the_bytes_of_the_folder(whole: Path, store: MemoryFileSystem) -> None:
    here, there = CapturedFolder(whole), CapturedFolder(f"{URL}/")
    assert (there.path, there.contents) == (f"{URL}/", here.contents)
    local, far = here.teacher("cnn"), there.teacher("cnn")
    for sequence in (*range(N), 3, 19, 0):
        one, other = local.read(sequence), far.read(sequence)
        assert (one.value, one.offset, one.partition) == (other.value, other.offset, other.partition)
        assert other.address == one.address.replace(str(whole), URL)
    local.close()
    far.close()
    there.verify()
    with pytest.raises(StreamNotFound, match=f"{URL}/: holds no .* 'vit' .* s FOLDER --teacher vit`, then upload it"):
        there.teacher("vit")


def test_what_is_damaged_behind_a_url_is_named_by_its_url(store: MemoryFileSystem) -> None:
    raw = bytearray(store.cat_file(f"{URL}/cnn-00001.avro"))
    raw[-30] ^= 1
    store.pipe(f"{URL}/cnn-00001.avro", bytes(raw))
    with pytest.raises(DecodeError, match=rf"{URL}/cnn-00001\.avro: is damaged: its SHA-256"):
        CapturedFolder(URL).verify()
    store.pipe(f"{URL}/cnn-00001.avro", bytes(raw[:-1]))
    with pytest.raises(DecodeError, match=rf"{URL}/cnn-00001\.avro: is cut: \d+ bytes"):
        CapturedFolder(URL).teacher("cnn")
    files = storage_of(URL)
    store.rm(f"{URL}/cnn-00001.avro")
    with pytest.raises(DecodeError, match=rf"{URL}/cnn-00001\.avro: is missing"):
        CapturedFolder(URL).teacher("cnn")
    with pytest.raises(DataUnavailable, match=rf"{URL}/cnn-00001\.avro: is gone"):
        files.open("cnn-00001.avro", 9000).read(10, 0)
    store.rm(f"{URL}/contents.json")
    with pytest.raises(ConfigError, match=r"no captured .*`distillog capture STREAM FOLDER`, then upload it"):
        CapturedFolder(URL)


def failing(monkeypatch: pytest.MonkeyPatch, errors: list[BaseException | None]) -> list[str]:
    """Let requests of ranges fail, each with the next of these errors; the list of paths that were asked for."""
    real, asked = MemoryFileSystem.cat_file, []

    def cat_file(self: MemoryFileSystem, path: str, *arguments: Any, **more: Any) -> bytes:
        asked.append(path)
        error = errors.pop(0) if errors else None
        if error is not None:
            raise error
        return real(self, path, *arguments, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return asked


def test_a_store_that_fails_for_a_moment_is_asked_again(
    store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing(monkeypatch, [OSError(5, "Slow Down"), None, ConnectionError("reset"), RuntimeError("closed")])
    assert CapturedFolder(URL).teacher("cnn").num_orders == N
    assert [each.getMessage().partition("(")[2] for each in caplog.records] == [
        "OSError: [Errno 5] Slow Down); trying again",
        "ConnectionError: reset); trying again",
        "RuntimeError: closed); trying again",
    ]


class NoCredentialsError(Exception):
    """As botocore has one."""


@pytest.mark.parametrize("error", [PermissionError(13, "Access Denied"), NoCredentialsError("Unable to locate")])
def test_a_store_that_forbids_is_not_asked_again(
    error: Exception, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = failing(monkeypatch, [error])
    with pytest.raises(ConfigError, match=rf"{URL}/contents\.json: cannot be read: {type(error).__name__}.*credential"):
        CapturedFolder(URL)
    assert len(asked) == 1


@pytest.mark.usefixtures("impatient")
def test_the_wait_for_a_store_ends(store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    files = CapturedFolder(URL).teacher("cnn")
    failing(monkeypatch, [OSError("away")] * 99)
    with pytest.raises(DataUnavailable, match=rf"{URL}/cnn\.index: cannot be read now \(OSError: away\); tried for"):
        files.read(0)
    never = threading.Event()
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *arguments, **more: never.wait())
    with pytest.raises(DataUnavailable, match=r"contents\.json: cannot be read now \(no answer\)"):
        CapturedFolder(URL)
    never.set()


@given(
    st.binary(min_size=1, max_size=400),
    st.lists(st.tuples(st.booleans(), st.integers(0, 500), st.integers(0, 90)), max_size=30),
    st.integers(1, 40),
    st.integers(1, 60),
)
@settings(max_examples=60)
def test_reading_ahead_gives_what_lies_there(
    data: bytes, reads: list[tuple[bool, int, int]], least: int, most: int
) -> None:
    """In sequence or anywhere, and asks for no byte behind the end."""
    asked = []

    def begin(size: int, offset: int) -> Future[bytes]:
        assert size > 0
        assert offset + size <= len(data)
        asked.append(size)
        future: Future[bytes] = Future()
        future.set_result(data[offset : offset + size])
        return future

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.captured.reading_ahead._LEAST", least)
        patch.setattr("pipeline.captured.reading_ahead._MOST", most)
        file = ReadingAhead(begin, lambda future, size, offset: future.result(), len(data))
        at = 0
        for onwards, offset, size in reads:
            at = at if onwards else offset
            assert file.read(size, at) == data[at : at + size]
            at = min(at + size, max(at, len(data)))
        file.close()


def test_reading_in_sequence_takes_few_requests_and_reading_anywhere_no_more_than_is_needed() -> None:
    size, step, asked = 64 << 20, 64 << 10, []

    def begin(count: int, offset: int) -> Future[bytes]:
        asked.append((offset, count))
        future: Future[bytes] = Future()
        future.set_result(bytes(count))
        return future

    file = ReadingAhead(begin, lambda future, count, offset: future.result(), size)
    for offset in range(0, size, step):
        assert len(file.read(step, offset)) == step
    assert len(asked) < 30
    assert sum(count for _, count in asked) == size
    asked.clear()
    file.read(100, 7)
    assert asked == [(7, 100)]


@given(st.integers(0, 9), st.booleans())
@settings(max_examples=20)
def test_a_range_that_fails_or_is_short_is_asked_for_again(bad: int, short: bool) -> None:
    data, count = bytes(range(250)), 0

    def finish(future: Future[bytes], size: int, offset: int) -> bytes:
        nonlocal count
        count += 1
        if count == bad + 1:
            if short:
                return data[offset : offset + size // 2]
            raise DataUnavailable("away")
        return data[offset : offset + size]

    file = ReadingAhead(lambda size, offset: Future(), finish, len(data))
    for offset in range(0, 250, 10):
        while True:
            try:
                found = file.read(10, offset)
            except DataUnavailable:
                continue
            if found == data[offset : offset + 10]:
                break
    assert count > 1


REFUSED: dict[str, tuple[str, str]] = {
    "password": ("s3://KEY:SECRET@bucket/labels", "has credentials or a query in it"),
    "token": ("https://SECRET@host/labels", "has credentials or a query in it"),
    "query": ("https://host/labels?X-Amz-Signature=SECRET", "has credentials or a query in it"),
    "unknown": ("nope://bucket/labels", "nope://bucket/labels: cannot be opened: Protocol not known: nope"),
    "not installed": ("gs://bucket/labels", r"gs://bucket/labels: needs a package: .*distillog\[fsspec\].*gcsfs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_url_that_cannot_be_read_is_refused_in_one_line(name: str) -> None:
    url, says = REFUSED[name]
    with pytest.raises(ConfigError, match=says) as caught:
        CapturedFolder(url)
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_store_says_is_shown_without_credentials(
    store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = "cannot connect to http://me:SEC/SECRET@proxy/a?X-Amz-Signature=SECRET&b=SECRET"
    failing(monkeypatch, [OSError(text), PermissionError(text)])
    with pytest.raises(ConfigError, match=r"cannot connect to http://\.\.\.proxy/a\?\.\.\.; look") as caught:
        CapturedFolder(URL)
    assert "trying again" in caplog.text
    assert "SECRET" not in caplog.text + str(caught.value)


def without(package: str, action: str) -> str:
    """What is said where a package is not installed."""
    code = f"""
import sys
sys.modules[{package!r}] = None
from pipeline.captured.folder import CapturedFolder
from schemas.errors import ConfigError
assert not {{"fsspec.core", "s3fs.core"}} & sys.modules.keys()
try:
    {action}
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_package_that_is_missing_is_named_with_what_to_install_and_a_folder_needs_none(whole: Path) -> None:
    said = without("fsspec", f"CapturedFolder({str(whole)!r}).verify(); CapturedFolder('s3://bucket/labels')")
    assert said == "s3://bucket/labels: needs a package: `pip install 'distillog[s3]'`"
    assert "`pip install 'distillog[s3]'`" in without("s3fs", "CapturedFolder('s3://bucket/labels')")
    assert "distillog[fsspec]" in without("fsspec", "CapturedFolder('memory://bucket/labels')")


def test_only_what_has_a_scheme_is_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(storage_of("s3/labels"), LocalFolder)
    assert isinstance(storage_of(Path("s3://labels")), LocalFolder)
    assert str(storage_of(f"{URL}//")) == URL
    outcomes: list[Callable[[], object]] = [lambda: CapturedFolder("labels"), lambda: CapturedFolder("")]
    monkeypatch.chdir(tmp_path)
    for outcome in outcomes:
        with pytest.raises(DistillogError, match="holds no captured soft targets"):
            outcome()
