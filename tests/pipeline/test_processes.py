"""Child processes: started with a log, asked to end, killed where they do not."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.processes import HeardProcess, Process, stop

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEP
Start = Callable[[str], Process]
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can do it")


@pytest.fixture
def start(tmp_path: Path, eventually: Callable[..., object]) -> Iterator[Start]:
    started: list[Process] = []

    def begin(program: str) -> Process:
        process = Process("child", [sys.executable, "-c", program], tmp_path / f"{len(started)}.log")
        started.append(process)
        eventually(lambda: process.log.read_text(), what="its first word")
        return process

    yield begin
    for process in started:
        process.kill()


def test_a_process_that_is_asked_to_end_ends(start: Start) -> None:
    process = start(SLEEP)
    stop([process])
    assert process.popen.returncode == -signal.SIGTERM
    assert not process.running


def test_a_process_that_heeds_no_sigterm_is_killed(start: Start) -> None:
    process = start(DEAF)
    stop([process], timeout=0.2)
    assert process.popen.returncode == -signal.SIGKILL


def test_a_frozen_process_is_asked_too(start: Start) -> None:
    process = start(SLEEP)
    process.send(signal.SIGSTOP)
    stop([process])
    assert process.popen.returncode == -signal.SIGTERM


def test_what_a_process_started_itself_ends_with_it(start: Start, eventually: Callable[..., object]) -> None:
    child = f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); print(c.pid); c.wait()"
    process = start(f"{child}")
    eventually(lambda: len(process.log.read_text().split()) == 2, what="the grandchild's first word")
    process.kill()
    number = next(word for word in process.log.read_text().split() if word.isdecimal())
    eventually(lambda: _ended(int(number)), what="the grandchild's end")


def _ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_a_signal_to_a_process_that_has_ended_reaches_nobody(start: Start) -> None:
    process = start("print('error: no disk'); print('bye')")
    process.popen.wait(10)
    process.send(signal.SIGKILL)
    assert process.popen.returncode == 0
    assert process.last_words() == "no disk"


def test_what_a_process_writes_is_heard_line_by_line_and_its_last_error_are_its_last_words() -> None:
    heard: list[str] = []
    program = "import sys; print('one'); print('error: no disk', file=sys.stderr); print('bye'); sys.exit(3)"
    process = HeardProcess("child", [sys.executable, "-u", "-c", program], heard.append)
    assert process.popen.wait(10) == 3
    assert process.last_words() == "no disk"
    assert heard == ["one", "error: no disk", "bye"]


@linux
def test_a_heard_process_runs_on_the_cores_that_it_was_given() -> None:
    core = max(os.sched_getaffinity(0))
    heard: list[str] = []
    program = "import os; print(sorted(os.sched_getaffinity(0)))"
    process = HeardProcess("child", [sys.executable, "-c", program], heard.append, cores=[core])
    process.popen.wait(10)
    process.last_words()
    assert heard == [str([core])]


@linux
@pytest.mark.parametrize("hangup", ["SIG_DFL", "SIG_IGN"])  # the latter as under nohup
def test_a_heard_process_is_told_when_whoever_started_it_is_killed(
    hangup: str, tmp_path: Path, eventually: Callable[..., object]
) -> None:
    parent = (
        "import signal, sys, time; from pipeline.processes import HeardProcess;"
        f"signal.signal(signal.SIGHUP, signal.{hangup});"
        f"child = HeardProcess('child', [sys.executable, '-c', {SLEEP!r}], print);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    process = Process("parent", [sys.executable, "-c", parent], tmp_path / "parent.log")
    try:
        eventually(lambda: "up" in process.log.read_text(), what="the child's first word")
        number = next(word for word in process.log.read_text().split() if word.isdecimal())
        assert not _ended(int(number))
    finally:
        process.kill()
    eventually(lambda: _ended(int(number)), what="the child's end")
