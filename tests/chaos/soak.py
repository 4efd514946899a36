"""One soak: a calm run, isolated kills, then the schedule of faults, and in the end the checker."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

from support.processes import Child, distillog_commands

from chaos import streams, worker_logs
from chaos.checker import Checked, Facts, Logs, check_logs, check_trace, same_weights
from chaos.cluster import Brokers
from chaos.commits import CommitWatch
from chaos.fleet import Fleet
from chaos.injector import Injector
from chaos.report import Report
from chaos.roles import Command, Events, Role
from chaos.schedule import FLEET, FLEET_WORKERS, GUESTS, STUDENTS, WIRES, WORKERS, by_kind, schedule
from chaos.takeover import Labellers, Trickle, measure, num_orders
from chaos.waits import Student
from pipeline.wait import Deadline

BOOTSTRAP = "120"
"""Seconds for which a process looks for a broker at its start: longer than any fault lasts."""
READY = 120.0
"""Seconds for all to be at work."""
TAIL = 300.0
"""Seconds, after the last fault, for all to end."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a soak is to do."""

    seed: int
    num_faults: int
    every: float
    """Seconds between two faults, on average."""
    brokers: int
    """1 or 3."""
    takeovers: int
    """Isolated kills."""
    minutes: float
    """For all of it."""


class Soak:
    """The running soak; `run` fills the report."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.report = Report(plan.seed, plan.brokers, kept=str(folder))
        self.events = Events(folder / "events.jsonl")
        self._folder = folder
        self._hurry = folder / "hurry"
        self._runs = folder / "runs"
        self._calm_runs = folder / "calm"
        self._faults = schedule(plan.seed, plan.num_faults, plan.every, plan.brokers)
        self._end = Deadline(plan.minutes * 60)
        disturbed = self._faults[-1].at if self._faults else 0.0
        # A student that is struck falls behind its pace, so this lasts longer than the faults do.
        self._orders = int(streams.PACE * (disturbed + 60.0))
        self._copies = 1 if plan.brokers == 1 else 3

    def run(self) -> None:
        """Do all of it.

        Raises:
            AssertionError: something did not happen in time; the report says what was found until then.
        """
        began = time.monotonic()
        try:
            with ExitStack() as closing:
                self._brokers = closing.enter_context(Brokers(self._folder / "brokers", self.plan.brokers))
                commands = distillog_commands(self._brokers.direct, self._folder)
                self._distillog = closing.enter_context(commands)
                self._model = streams.make_model(self._folder)
                calm = streams.facts("calm", self._orders)
                self._calm(calm)
                if self.plan.takeovers:
                    self._take_over()
                soaked = streams.facts("soaked", self._orders)
                self.report.orders = soaked.num_orders
                self._soak(soaked)
                self._check(soaked)
        finally:
            self.report.minutes = round((time.monotonic() - began) / 60, 2)
            self.events.close()

    def _calm(self, facts: Facts) -> None:
        """The undisturbed run: all labels, and both students without their pauses."""
        streams.make(self._distillog, facts, self._model, self.plan.seed, self._copies)
        feeder = self._distillog.start("feed", facts.stream)
        worker = self._distillog.start(*streams.teach(facts, self._model, "calm", 0.0), "--until-idle")
        files = {name: streams.run_file(self._folder, facts, name, None) for name in STUDENTS}
        runs = [self._distillog.start("runs", "start", files[name], "--folder", self._calm_runs) for name in STUDENTS]
        for child in (feeder, *runs, worker):
            child.succeed(self._left)
        self.events.add("calm run done", orders=facts.num_orders)

    def _take_over(self) -> None:
        """Kills with nothing else going on, over a stream of its own."""
        facts = streams.facts("takeover", num_orders(self.plan.takeovers))
        streams.make(self._distillog, facts, self._model, self.plan.seed, self._copies)
        command = partial(streams.teach, facts, self._model, delay=streams.SLOW / 4)
        roles = [self._role(name, WIRES[0], partial(command, name)) for name in WORKERS]
        labellers = Labellers(self._brokers.direct.bootstrap_servers, facts)
        try:
            for role in roles:
                role.start()
            with Trickle(self._brokers.direct, facts.stream):
                seconds = measure(labellers, roles, self.plan.takeovers, self.events)
        finally:
            labellers.close()
            self._end_all(roles)
        self.report.takeover_median_s = round(statistics.median(seconds), 2)
        self.report.takeover_worst_s = round(max(seconds), 2)

    def _soak(self, facts: Facts) -> None:
        streams.make(self._distillog, facts, self._model, self.plan.seed, self._copies)
        began = time.monotonic()
        fleet, students = self._fleet(facts), self._students(facts)
        roles = self._cast(facts) | {FLEET: fleet, **students}
        watch = CommitWatch(
            lambda: self._brokers.direct.bootstrap_servers, facts.stream, facts.teacher, facts.partitions
        )
        injector = Injector(self._faults, roles, fleet.workers, self._brokers, facts, self.events)
        try:
            for name in (*WORKERS, FLEET, *STUDENTS, "feeder"):
                roles[name].start()
            self._wait(lambda: all(self._steps(name) for name in STUDENTS), roles, READY, "both students' first steps")
            injector.start()
            self._wait(lambda: injector.done, roles, self._end.left, "the last fault")
            early = [name for name in STUDENTS if roles[name].done]
            if early:
                self.report.problems.append(
                    f"student {early[0]} was done before the last fault: the stream is too short"
                )
            self._hurry.touch()
            ending = ("feeder", *STUDENTS)
            self._wait(lambda: all(roles[name].done for name in ending), roles, TAIL, "the end of feeder and students")
            self._end_all([roles[name] for name in (*WORKERS, *GUESTS, FLEET)])
        finally:
            injector.stop()
            watch.close()
            fleet.close()
            self.report.soak_minutes = round((time.monotonic() - began) / 60, 2)
            self.report.faults = len(injector.injected)
            self.report.by_kind = by_kind(injector.injected)
            self.report.commits_looked_at = watch.looks
            for student in students.values():
                student.take_note()
                self.report.longest_wait_s = max(self.report.longest_wait_s, round(student.longest_wait, 2))
            self._read_logs([log for name in (*WORKERS, *GUESTS, FLEET) for log in roles[name].logs], fleet)
            for role in roles.values():
                self.report.refused_starts += role.refused_starts
                self.report.problems += [
                    f"{each.role} ended with {each.code}: {each.words} ({each.log})" for each in role.unexpected
                ]
            self.report.problems += injector.problems + watch.problems[:5]
            if watch.looks < self.report.soak_minutes:
                self.report.problems.append(f"only {watch.looks} looks at the commits were answered")
            for log in sorted(self._folder.glob("*.stderr")):
                if re.search(r"Traceback|most recent call first", log.read_text(errors="replace")):
                    self.report.problems.append(f"a traceback was shown: {log}")

    def _read_logs(self, logs: list[Path], fleet: Fleet) -> None:
        """Take from the workers' logs what only they tell."""
        told = worker_logs.read(logs)
        self.report.probations, self.report.apart = told.probations, len(told.apart)
        self.report.refused_starts += told.refused_starts
        self.report.problems += told.ends
        for worker in fleet.workers.values():
            if told.kills[worker.name] > worker.kills:
                self.report.problems.append(
                    f"{worker.name} was killed {told.kills[worker.name]} times, {worker.kills} of them by the soak"
                )

    def _cast(self, facts: Facts) -> dict[str, Role]:
        """Workers on the two wires in turn, and the feeder."""
        roles = {}
        for name, wire in zip((*WORKERS, *GUESTS), cycle(WIRES), strict=False):
            roles[name] = self._role(name, wire, partial(streams.teach, facts, self._model, name))
        roles["feeder"] = self._role("feeder", WIRES[1], partial(streams.feed, facts), _all_fed)
        return roles

    def _fleet(self, facts: Facts) -> Fleet:
        command, address = partial(streams.fleet, facts, self._model), self._brokers.address(WIRES[1])
        return Fleet(FLEET, command, self._distillog, address, self.events, workers=FLEET_WORKERS, model=self._model)

    def _students(self, facts: Facts) -> dict[str, Student]:
        """One on each wire."""
        students = {}
        for name, wire in zip(STUDENTS, WIRES, strict=True):
            file = streams.run_file(self._folder, facts, name, self._hurry)
            command, address = partial(streams.resume, self._runs, name, file), self._brokers.address(wire)
            over = partial(self._finished, name)
            folder = self._runs / name
            students[name] = Student(name, command, self._distillog, address, self.events, over, folder=folder)
        return students

    def _role(
        self, name: str, wire: str, command: Command, over: Callable[[Child], bool] = lambda child: False
    ) -> Role:
        return Role(name, command, self._distillog, self._brokers.address(wire), self.events, over)

    def _finished(self, name: str, child: Child) -> bool:
        path = self._runs / name / "report.json"
        return path.exists() and bool(json.loads(path.read_text())["finished"])

    def _steps(self, name: str) -> bool:
        path = self._runs / name / "trace.jsonl"
        return path.exists() and path.stat().st_size > 0

    def _wait(self, predicate: Callable[[], bool], roles: dict[str, Role], seconds: float, what: str) -> None:
        """Wait, and start again whoever ends although nobody asked; three such ends are enough."""
        deadline = Deadline(min(seconds, self._end.left))
        while not predicate():
            for role in roles.values():
                if role.look():
                    role.start()
            assert sum(len(role.unexpected) for role in roles.values()) < 3, (
                "three processes ended that nobody had struck"
            )
            assert not deadline.over, (
                f"{what} did not come within {seconds:.0f} s (or the {self.plan.minutes:g} minutes)"
            )
            time.sleep(0.2)

    def _end_all(self, roles: list[Role]) -> None:
        with ThreadPoolExecutor(len(roles)) as pool:
            list(pool.map(lambda role: role.end(), roles))

    @property
    def _left(self) -> float:
        return max(1.0, self._end.left)

    def _check(self, facts: Facts) -> None:
        found = Checked()
        kept = check_logs(Logs(self._brokers.direct.bootstrap_servers, facts), facts, found)
        for name in STUDENTS:
            trace = self._runs / name / "trace.jsonl"
            check_trace(trace, kept, facts, streams.PASSES[name], streams.BATCH[name], found)
        report = self.report
        report.lost, report.duplicates, report.early = found.lost, found.duplicates, found.early
        report.dead_letters, report.repeated_letters = found.dead_letters, found.repeated_letters
        report.problems += found.problems
        if found.num_problems > len(found.problems):
            report.problems.append(f"and {found.num_problems - len(found.problems)} more")
        differing = [name for name in STUDENTS if not same_weights(self._runs / name, self._calm_runs / name)]
        report.identical = not differing
        if differing:
            report.problems.append(f"the weights of student {differing[0]} are not those of the undisturbed run")
        if report.faults < self.plan.num_faults:
            report.problems.append(f"only {report.faults} of {self.plan.num_faults} faults were injected")


def _all_fed(child: Child) -> bool:
    return "all orders are fed" in child.stdout
