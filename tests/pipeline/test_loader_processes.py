"""Loaders that are processes: the same samples and faults, one clear line where a child ends, and none left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.datasets import open_dataset
from pipeline.views import view_spec
from pipeline.views.fetch import Fetched, Fetcher
from schemas.errors import ConfigError, DistillogError, LoaderLost

HERE = "test_loader_processes"
Wait = Any


class Items:
    """Sixty items; every 11th cannot be read. Of threads it says nothing."""

    num_classes = 5

    def __len__(self) -> int:
        return 60

    def __getitem__(self, sample_id: int) -> tuple[dict[str, Any], int]:
        print("read", sample_id)  # a user's print is no answer to anybody
        if sample_id % 11 == 5:
            raise ValueError(f"sample {sample_id} is cut short")
        return {"x": np.full(4, sample_id, np.float32)}, sample_id % 5


def items() -> Items:
    return Items()


class Steered(Items):
    """Does with sample 33 what a file says, in processes alone that were started after it was written."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._does = self._file.read_text() if self._file.exists() else ""

    def __getitem__(self, sample_id: int) -> tuple[dict[str, Any], int]:
        if sample_id == 33 and self._does:
            if self._does == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self._does == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif self._does == "exit":
                os._exit(7)
            elif self._does == "sys.exit":
                sys.exit(3)
            elif self._does == "storage":
                raise OSError(5, "Input/output error")
            elif self._does == "hang":
                self._file.with_suffix(".hangs").touch()
                time.sleep(600)
        return super().__getitem__(sample_id)


steered = Steered


def jitter(sample: dict[str, Any], rng: np.random.Generator, wide: int = 0) -> dict[str, Any]:
    """A view that has none of every 17th sample, and of odd ones another shape than of even ones."""
    number = int(sample["x"].flat[0])
    if number % 17 == 2:
        raise ValueError("nothing to see")
    drawn = (sample["x"] + rng.random(4)).astype(np.float32)
    if wide == 2:
        return {"x": drawn, "process": np.array(os.getpid())}
    return {"x": drawn[: 3 + number % 2] if wide else drawn}


def double(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {"x": 2 * sample["x"]}


def same(one: Fetched, other: Fetched) -> bool:
    return (
        one.kept_rows.tolist() == other.kept_rows.tolist()
        and one.labels.tolist() == other.labels.tolist()
        and one.faults == other.faults
        and {name: (v.dtype, v.shape, v.tobytes()) for name, v in one.inputs.items()}
        == {name: (v.dtype, v.shape, v.tobytes()) for name, v in other.inputs.items()}
    )


def opened(uri: str, view: str, processes: int, **params: Any) -> Fetcher:
    return Fetcher(open_dataset(uri), view_spec(view, params), processes or 1, processes=processes > 0)


def children() -> list[int]:
    """Processes of loaders whose parent is this one."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = status.read_text().rpartition(")")[2].split()
            command = status.with_name("cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended
        if int(words[1]) == os.getpid() and b"pipeline.views.child" in command:
            found.append(int(status.parent.name))
    return found


@pytest.fixture(autouse=True)
def _none_left(eventually: Wait) -> Iterator[None]:
    yield
    gc.collect()
    eventually(lambda: not children(), 10, "the end of all children")


@pytest.mark.parametrize(
    ("uri", "view", "params", "size"),
    [
        ("mnist1d?n=60", "signal", {"noise": 0.1}, None),
        (f"{HERE}:items", f"{HERE}:jitter", {}, None),
        # What is usual is what most of the first request are, of which the children see nothing.
        (f"{HERE}:items", f"{HERE}:jitter+{HERE}:double", {"jitter.wide": 1}, None),
    ],
)
def test_any_number_of_processes_gives_the_same_as_one_loader(
    uri: str, view: str, params: dict[str, Any], size: Any
) -> None:
    first = np.array([1, 3, 4])
    ids = np.random.default_rng(1).integers(0, 60, 50)
    ids[[0, 20, 49]] = (-1, 5, 2**40)
    wanted: list[Fetched] = []
    for processes in (0, 1, 3):
        fetcher = opened(uri, view, processes, **params)
        got = [fetcher.fetch(part, 3, size) for part in (first, ids, ids[::-1], ids[:1], ids[:0])]
        wanted = wanted or got
        assert all(map(same, wanted, got))
        assert processes == 0 or fetcher.busy > 0
        fetcher.close()
        assert same(fetcher.fetch(ids, 3, size), wanted[1])
    assert len(wanted[1].faults) >= 2


def test_each_process_views_a_share_and_none_is_this_one() -> None:
    fetcher = opened(f"{HERE}:items", f"{HERE}:jitter", 2, wide=2)
    fetcher.fetch(np.arange(1), 0)
    views = {process for _ in range(20) for process in fetcher.fetch(np.arange(60), 0).inputs["process"].tolist()}
    assert len(views) == 2
    assert os.getpid() not in views
    fetcher.close()


@pytest.mark.parametrize(
    ("does", "kind", "says"),
    [
        ("kill", LoaderLost, r"asked for samples 32, 33, 34, 35.* and 8 more ended \(SIGKILL, as the system does"),
        ("segfault", LoaderLost, r"asked for samples 32, 33, .* ended \(SIGSEGV\)"),
        ("exit", LoaderLost, r"asked for samples 32, 33, .* ended \(exit code 7\)"),
        ("sys.exit", ConfigError, r"__getitem__\(33\) raised SystemExit: 3"),
        ("storage", OSError, r"^\[Errno 5\] Input/output error$"),
    ],
)
def test_how_a_child_fares_is_one_line_that_names_the_data_and_the_samples(
    does: str, kind: type[Exception], says: str, tmp_path: Path
) -> None:
    steer = tmp_path / "steer"
    fetcher = opened(f"{HERE}:steered?file={steer}", f"{HERE}:jitter", 1)
    fetcher.fetch(np.arange(1), 0)
    steer.write_text(does)
    with pytest.raises(kind, match=says) as raised:
        fetcher.fetch(np.arange(32, 48), 0)
    assert "\n" not in str(raised.value)
    if kind is LoaderLost:
        assert f"dataset {HERE}:steered?file={steer} under view {HERE}:jitter: " in str(raised.value)
        with pytest.raises(LoaderLost):  # the next request finds it gone
            fetcher.fetch(np.arange(32), 0)
    else:
        assert len(fetcher.fetch(np.arange(32), 0).kept_rows) == 27
    fetcher.close()


def test_a_child_that_hangs_is_no_matter_to_whoever_closes_and_none_is_left(tmp_path: Path, eventually: Wait) -> None:
    steer = tmp_path / "steer"
    fetcher = opened(f"{HERE}:steered?file={steer}", "none", 2)
    fetcher.fetch(np.arange(1), 0)
    steer.write_text("hang")
    raised: list[BaseException] = []

    def fetch() -> None:
        try:
            fetcher.fetch(np.arange(32, 48), 0)
        except DistillogError as error:
            raised.append(error)

    waits = threading.Thread(target=fetch)
    waits.start()
    eventually(steer.with_suffix(".hangs").exists, 30)
    assert len(children()) == 2
    fetcher.close()
    waits.join(10)
    assert "the loaders were closed" in str(raised[0])
    eventually(lambda: not children(), 10)


def test_an_answer_that_does_not_come_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.views.children._ROW", 0.01)
    steer = tmp_path / "steer"
    fetcher = opened(f"{HERE}:steered?file={steer}", "none", 1)
    fetcher.fetch(np.arange(1), 0)
    steer.write_text("hang")
    fetcher.fetch(np.arange(2), 0)
    monkeypatch.setattr("pipeline.views.children._BEGIN", 0.5)
    with pytest.raises(LoaderLost, match="asked for samples 33 gave no answer within 1 s"):
        fetcher.fetch(np.array([33]), 0)
    fetcher.close()


def test_a_long_silence_is_warned_of_at_doubling_times_by_data_and_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steer = tmp_path / "steer"
    fetcher = opened(f"{HERE}:steered?file={steer}", "none", 1)
    fetcher.fetch(np.arange(1), 0)
    steer.write_text("hang")
    fetcher.fetch(np.arange(2), 0)
    monkeypatch.setattr("pipeline.views.children._ROW", 0.01)
    monkeypatch.setattr("pipeline.views.children._BEGIN", 4.0)
    monkeypatch.setattr("pipeline.views.children._SILENCE", 0.5)
    with pytest.raises(LoaderLost):
        fetcher.fetch(np.array([33, 1]), 0)
    fetcher.close()
    said = [record.getMessage() for record in caplog.records]
    place = f"dataset {HERE}:steered?file={steer} under view none"
    assert said[0] == (
        f"{place}: the process of a loader that was asked for samples 33, 1 gave no answer for 1 s; "
        "waiting up to 4 s for it"
    )
    assert 2 <= len(said) <= 3


def test_they_end_with_whoever_knew_them(eventually: Wait) -> None:
    fetcher = opened(f"{HERE}:items", "none", 2)
    fetcher.fetch(np.arange(1), 0)
    assert not children()  # nobody needs them yet
    fetcher.fetch(np.arange(20), 0)
    assert len(children()) == 2
    del fetcher
    gc.collect()
    eventually(lambda: not children(), 10)


PARENT = f"""
import sys, threading, time
import numpy as np
from pipeline.datasets import open_dataset
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher

fetcher = Fetcher(open_dataset("{HERE}:items"), view_spec("{HERE}:jitter", {{"wide": 2}}), 2, processes=True)
fetcher.fetch(np.arange(1), 0)
def fetch():
    processes = {{each for _ in range(20) for each in fetcher.fetch(np.arange(60), 0).inputs["process"].tolist()}}
    print("children", *processes, flush=True)
starter = threading.Thread(target=fetch)  # they outlive the thread that asked first
starter.start(); starter.join()
time.sleep(0.5)
fetch()
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_they_end_with_their_parent_and_print_nothing_between_its_lines(
    number: signal.Signals, eventually: Wait
) -> None:
    path = os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[2])))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    signal.signal(signal.SIGINT, before)
    assert parent.stdout is not None
    lines = [parent.stdout.readline().split() for _ in range(4)]
    assert [line[0] for line in lines] == ["read", "read", "children", "children"]
    parent.send_signal(number)
    parent.communicate(timeout=20)

    def gone() -> bool:
        return not any(Path(f"/proc/{each}").exists() for each in lines[-1][1:])

    eventually(gone, 10)
