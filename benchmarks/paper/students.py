"""Starts a student as a process and says what it came to."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.paper.cores import Cores
from benchmarks.paper.live import environment
from benchmarks.paper.meter import LONGEST, Metered, make_page
from benchmarks.paper.orders import TEACHER, Orders
from benchmarks.paper.plan import Plan
from benchmarks.streams import ORDER_SIZE, Bench
from pipeline.processes import Process
from pipeline.wait import Deadline

STEPS = 10_000
"""More than any student comes to."""
WARM = 10
"""Steps before anything is measured."""


STEADY_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
"""For glibc: a process keeps what it has freed. Else a student gives memory back to the system and asks for it anew in
each step or in none, as chance has placed its other memory: 4,000 page faults, a quarter of the step (measured)."""


class Students:
    """Students of one plan, each in a process and a folder of its own."""

    def __init__(self, bench: Bench, plan: Plan, cores: Cores) -> None:
        self._bench, self._plan, self._cores = bench, plan, cores
        self._folder = bench.folder / "paper"
        self._folder.mkdir()
        self._outcomes: dict[int, Path] = {}
        self._number = 0

    @contextmanager
    def warm(self, teacher: str, **told: Any) -> Iterator[Metered]:
        """A student that has come to its first steps and is stopped."""
        with self.started(teacher, **told) as student:
            student.wait(WARM)
            student.halt()
            yield student

    @contextmanager
    def started(self, teacher: str, company: Sequence[Process] = (), **told: Any) -> Iterator[Metered]:
        """A student in a process of its own, from its start on; `company` stands still whenever it does."""
        orders = self.orders(teacher, **told)
        place = Path(orders.folder).parent
        command = [sys.executable, "-m", "benchmarks.paper.student", str(orders.write(place / "orders.json"))]
        there = {**environment(self._bench), **STEADY_MEMORY}
        process = Process(f"student {place.name}", command, place / "log", environment=there)
        self._outcomes[process.pid] = Path(orders.outcome)
        try:
            yield Metered(process, Path(orders.page), company)
        finally:
            process.kill()

    def orders(
        self,
        teacher: str,
        stream: str = "",
        run: str = "",
        model: Path | None = None,
        ports: tuple[int, ...] = (),
        cores: Collection[int] | None = None,
        seed: int = 0,
    ) -> Orders:
        """Make a student's folder and what it is told."""
        self._number += 1
        name = run or f"student-{self._number}"
        place = self._folder / name
        place.mkdir()
        return Orders(
            teacher=teacher,
            document=self._document(teacher, name, stream, seed),
            equal_steps=self._plan.equal_steps,
            page=str(make_page(place / "page")),
            outcome=str(place / "outcome.json"),
            folder=str(place / "run"),
            cores=tuple(self._cores.student if cores is None else cores),
            model=str(model or ""),
            num_classes=10,
            ports=ports,
        )

    def _document(self, teacher: str, name: str, stream: str, seed: int) -> dict[str, Any]:
        steps = self._plan.equal_steps
        document: dict[str, Any] = {
            "name": name,
            "source": "dataset",
            "data": {"dataset": self._bench.dataset, "order_size": ORDER_SIZE},
            "student": self._plan.student,
            "losses": [{"name": "cross_entropy"}],
            "train": {"batch_size": ORDER_SIZE, "steps": STEPS, "threads": 1, "device": "cpu", "seed": seed},
            "evaluation": {"dataset": "digits?split=test", "every": steps},
            "checkpoint": {"every": steps},
        }
        if teacher != "none":
            document |= {"source": "stream", "teachers": [{"name": TEACHER}], "losses": [{"name": "forward_kl"}]}
            document["data"]["stream"] = stream or "none"
        return document

    def outcome(self, student: Metered) -> dict[str, Any]:
        """What a student came to after the equal steps; it goes on until it has, and is stopped."""
        path, deadline = self._outcomes[student.process.pid], Deadline(LONGEST)
        student.go()
        while not path.exists():
            if deadline.over or not student.process.running:
                raise RuntimeError(f"{student.process.name}: {student.process.last_words()}; at {student.read()}")
            time.sleep(0.05)
        student.halt()
        outcome: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return outcome
