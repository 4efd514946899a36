from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import DemoError, Processes
from signals import NUMBERS, Signals, Stopped


@pytest.fixture
def signals() -> Iterator[Signals]:
    with Signals() as made:
        yield made


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_becomes_an_exception_with_the_shells_exit_code(signals: Signals, number: int):
    with pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), number)
    assert stopped.value.exit_code == 128 + number


def test_a_held_signal_comes_at_the_end_of_the_block(signals: Signals):
    done = []

    def work() -> None:
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(True)

    with pytest.raises(Stopped):
        work()
    assert done


def test_while_everything_is_stopped_signals_are_ignored(signals: Signals):
    signals.ignore()
    os.kill(os.getpid(), signal.SIGTERM)
    signals.check()


def test_the_handlers_of_before_come_back():
    before = [signal.getsignal(number) for number in NUMBERS]
    with Signals():
        pass
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_a_process_that_heeds_no_sigterm_is_killed(signals: Signals, tmp_path: Path, eventually):
    processes = Processes(signals, tmp_path)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    child = processes.start("deaf", [sys.executable, "-c", deaf])
    eventually(lambda: "deaf" in child.log.read_text(), what="the child's first word")
    processes.stop(child, timeout=0.2)
    assert child.popen.returncode == -signal.SIGKILL


def test_a_process_that_fails_is_reported_with_its_own_error(signals: Signals, tmp_path: Path, eventually):
    processes = Processes(signals, tmp_path)
    child = processes.start("worker", [sys.executable, "-c", "print('error: no disk'); print('bye'); exit(1)"])
    eventually(lambda: not child.running, what="the child's end")
    with pytest.raises(DemoError, match=r"worker ended with 1: no disk"):
        processes.check()


def test_a_process_that_the_demo_ended_is_no_failure(signals: Signals, tmp_path: Path):
    processes = Processes(signals, tmp_path)
    child = processes.start("worker", [sys.executable, "-c", "import time; time.sleep(60)"])
    processes.stop(child)
    processes.check()
