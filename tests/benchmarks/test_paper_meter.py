"""Students in turns: what they publish, and that a stop costs them nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.paper.live import ROOT
from benchmarks.paper.meter import Metered, make_page
from benchmarks.paper.turns import Turns, against, in_turns, ratios, samples_per_s
from pipeline.processes import Process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are stopped as Linux does it")

STUDENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from benchmarks.paper.meter import Meter
meter = Meter(Path(sys.argv[1]))
while True:
    meter.step()
    began = time.process_time()
    while time.process_time() - began < 0.004:
        pass
    with meter.waiting():
        time.sleep(float(sys.argv[3]))
"""


class Students:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.all: list[Process] = []

    def start(self, wait: float) -> Metered:
        name = f"student-{len(self.all)}"
        page = make_page(self._folder / f"{name}.page")
        command = [sys.executable, "-c", STUDENT, str(page), str(ROOT), str(wait)]
        self.all.append(Process(name, command, self._folder / f"{name}.log"))
        student = Metered(self.all[-1], page)
        student.wait(2)
        return student


@pytest.fixture
def students(tmp_path: Path) -> Iterator[Students]:
    here = Students(tmp_path)
    yield here
    for process in here.all:
        process.kill()


def test_a_stop_is_neither_idle_nor_on_the_clock(students: Students) -> None:
    student = students.start(0.004)
    before = student.halt()
    time.sleep(0.6)
    assert student.halt() == student.read() == before  # nothing moves meanwhile
    began = time.monotonic()
    taken = student.run(0.2, steps=3)
    ran = time.monotonic() - began
    assert taken.steps >= 3
    assert taken.cpu >= 0.004 * taken.steps
    assert taken.idle >= 0.003 * taken.steps
    # From the step before the stop to the last one: the step that was cut lasts no longer than it ran.
    assert taken.cpu + taken.idle <= taken.clock + 0.01
    assert taken.clock <= ran + 0.3


def test_who_waits_as_long_as_it_computes_is_half_as_fast(students: Students) -> None:
    pure, waiting = students.start(0.0), students.start(0.004)
    for student in (pure, waiting):
        student.halt()
    of_pure, readings = in_turns(Turns(pairs=3, seconds=0.2, steps=5), pure, {"waiting": waiting})
    assert (len(of_pure), len(readings["waiting"])) == (4, 3)
    said = ratios(readings["waiting"], of_pure)
    assert 0.1 < said["median"] < 0.7  # a late waking is idle time, too
    assert said["interval"][0] <= said["median"] <= said["interval"][1]
    assert 0.3 < said["idle"] < 0.9
    twice = against(of_pure[:3], readings["waiting"])
    assert twice["values"] == [
        samples_per_s(one) / samples_per_s(other) for one, other in zip(of_pure, readings["waiting"], strict=False)
    ]


def test_a_student_that_ended_is_said_with_its_last_words(students: Students) -> None:
    student = students.start(0.0)
    student.halt()
    students.all[0].log.write_text("error: no more labels\n")
    students.all[0].kill()
    with pytest.raises(RuntimeError, match="student-0 has ended: no more labels"):
        student.run(0.0, steps=5)
