"""How a slot of a fleet starts, restarts and gives up its worker: real processes, and a clock of the test's own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.exit_codes import CRASHED, FINAL, PASSING
from pipeline.processes import HeardProcess
from schemas.errors import FleetFailed
from teacher_service.fleet.places import Place
from teacher_service.fleet.slot import Limits, Slot

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEP
Wait = Callable[..., Any]


class Machine:
    """A slot whose workers run the program that is set at the time."""

    def __init__(self) -> None:
        self.program = ""
        self.heard: list[str] = []
        self.started: list[HeardProcess] = []
        self.slot = Slot("w-1", Place("core 0", 1), self._launch, Limits(drain=5.0))

    def _launch(self, name: str, place: Place) -> HeardProcess:
        self.started.append(HeardProcess(name, [sys.executable, "-c", self.program], self.heard.append))
        return self.started[-1]

    def live(
        self, now: float, seconds: float, code: int, worked: bool = True, joined: bool = True, labelled: int = 0
    ) -> str:
        """Start a worker at a time that ends with a code after some seconds, and say what follows."""
        self.program = f"import sys; print('error: code {code}'); sys.exit({code})"
        self.slot.look(now)
        (process,) = self.started[-1:]
        assert process is self.slot.process
        self.slot.ready_at = now if joined else None
        process.popen.wait(20)
        ended = self.slot.look(now + seconds)
        assert ended is process
        return self.slot.again(ended, now + seconds, worked, joined, labelled)


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    made.slot.want(0.0)
    yield made
    for process in made.started:
        process.kill()


def test_a_worker_is_started_again_at_once_and_then_after_growing_pauses(machine: Machine) -> None:
    now = 0.0
    pauses = []
    for _ in range(9):
        machine.live(now, 1.0, PASSING)
        pauses.append(machine.slot.starts_at - now - 1.0)
        assert machine.slot.look(machine.slot.starts_at - 0.01) is None
        assert pauses[-1] == 0 or machine.slot.process is None
        now = machine.slot.starts_at
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30, 30]


def test_crashes_in_a_row_end_the_fleet_and_a_worker_that_lived_for_long_begins_another_row(machine: Machine) -> None:
    for at in (0, 100, 200, 300):
        assert machine.live(at, 59.0, 1).startswith("ended with exit code 1; another one")
    assert machine.live(400, 61.0, 1).endswith("another one starts now")
    for at in (500, 600, 700, 800):
        machine.live(at, 59.0, 1)
    with pytest.raises(FleetFailed, match=r"worker w-1 \(core 0\) crashed 5 times in a row; .* code 1"):
        machine.live(900, 59.0, 1)


@pytest.mark.parametrize("joined", [False, True])
def test_a_worker_that_crashes_slowly_ends_the_fleet_too(machine: Machine, joined: bool) -> None:
    """Its start takes minutes, or it tells of a child that was lost only after minutes."""
    for at in range(0, 4000, 1000):
        said = machine.live(at, 300.0, CRASHED if joined else 1, joined=joined)
        assert said.startswith("ended with exit code")
    with pytest.raises(FleetFailed, match="crashed 5 times in a row"):
        machine.live(4000, 300.0, CRASHED if joined else 1, joined=joined)


def test_crashes_between_which_the_work_goes_on_are_no_row(machine: Machine) -> None:
    pauses = []
    for at in range(0, 2000, 100):  # each sample that ends its workers takes two, and is left behind
        machine.live(at, 5.0, CRASHED, labelled=at // 200)
        pauses.append(machine.slot.starts_at - at - 5.0)
    assert pauses[:5] == [0, 1, 2, 4, 8]
    assert pauses[-1] == 30


def test_crashes_before_a_worker_joins_are_a_row_whatever_others_do(machine: Machine) -> None:
    for at in range(0, 400, 100):
        machine.live(at, 5.0, CRASHED, joined=False, labelled=at)
    with pytest.raises(FleetFailed, match="crashed 5 times"):
        machine.live(400, 5.0, CRASHED, joined=False, labelled=400)


def test_errors_that_may_come_right_never_end_a_fleet_that_has_worked(machine: Machine) -> None:
    for at in range(0, 1000, 100):
        machine.live(at, 1.0, PASSING)


def test_but_one_that_never_worked(machine: Machine) -> None:
    for at in range(0, 400, 100):
        machine.live(at, 1.0, PASSING, worked=False)
    with pytest.raises(FleetFailed, match="code 75"):
        machine.live(400, 1.0, PASSING, worked=False)


def test_a_bare_1_is_a_crash_since_an_interpreter_that_is_ended_says_it_too(machine: Machine) -> None:
    assert machine.live(0, 1000.0, 1).startswith("ended with exit code 1; another one")


def test_an_error_before_it_joins_may_be_its_machines_where_others_work(machine: Machine) -> None:
    for at in range(0, 400, 100):
        assert "another one starts" in machine.live(at, 5.0, FINAL, joined=False)
    with pytest.raises(FleetFailed, match=r"crashed 5 times in a row; .*code 78"):
        machine.live(400, 5.0, FINAL, joined=False)
    with pytest.raises(FleetFailed, match=r"^worker w-1: code 78$"):
        machine.live(500, 5.0, FINAL, worked=False, joined=False)


@pytest.mark.parametrize("code", [FINAL, 2])
def test_an_error_that_cannot_come_right_ends_the_fleet_at_once(machine: Machine, code: int) -> None:
    with pytest.raises(FleetFailed, match=f"^worker w-1: code {code}$"):
        machine.live(0, 1000.0, code)


@pytest.mark.parametrize(("program", "number"), [(SLEEP, signal.SIGTERM), (DEAF, signal.SIGKILL)])
def test_a_worker_that_is_dismissed_leaves_or_is_killed_in_the_end(
    machine: Machine, program: str, number: signal.Signals, eventually: Wait
) -> None:
    machine.program = program
    machine.slot.look(0.0)
    eventually(lambda: machine.heard == ["up"], what="its first word")
    machine.started[0].send(signal.SIGSTOP)  # a frozen one is asked, too
    machine.slot.dismiss(10.0)
    assert not machine.slot.free
    ended = machine.slot.look(14.9)  # where this process waited for a core, it may have left already
    if number is signal.SIGKILL:
        assert ended is None
        assert machine.slot.process is not None
        machine.slot.look(15.0)
    ended = ended or eventually(lambda: machine.slot.look(14.9), what="its end")
    assert ended.popen.returncode == -number
    assert machine.slot.free
    assert machine.slot.look(100.0) is None
    assert machine.slot.process is None
