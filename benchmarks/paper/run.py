"""Makes teachers and students of the paper's table, lets them run, and says what came of it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.cores import Cores
from benchmarks.paper.costly import Costly, logits_of, make_costly, torch_differs_by
from benchmarks.paper.live import Live, environment
from benchmarks.paper.meter import Metered, Reading, peak_mib
from benchmarks.paper.plan import Plan
from benchmarks.paper.students import WARM, Students
from benchmarks.paper.turns import (
    Turns,
    against,
    in_turns,
    mean_and_deviation,
    ratios,
    samples_per_s,
    samples_per_s_by_the_clock,
)
from benchmarks.service_times import ServiceTimes
from benchmarks.simulated import KnownSamples
from benchmarks.streams import ORDER_SIZE, ORDERS_PER_EPOCH, Bench
from pipeline.datasets import open_dataset
from pipeline.processes import Process, stop

SPARE = 1.3
"""Of a student's pace, that teachers elsewhere can do at least."""


def run(bench: Bench, plan: Plan | None = None, say: Callable[[str], object] = print) -> dict[str, Any]:
    """Measure all of it; some 20 minutes. `say` is told what each comparison came to."""
    plan = plan or Plan(Turns(pairs=bench.pairs))
    cores = Cores.here()
    own = os.sched_getaffinity(0) if cores.others else set()
    if bench.broker and cores.others:
        for task in Path(f"/proc/{bench.broker}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores.others)
    try:
        if cores.others:
            os.sched_setaffinity(0, cores.others)  # what is started here starts there
        return _Table(bench, plan, cores, say).measure()
    finally:
        if own:
            os.sched_setaffinity(0, own)


class _Table:
    def __init__(self, bench: Bench, plan: Plan, cores: Cores, say: Callable[[str], object]) -> None:
        self._bench, self._plan, self._cores, self._say = bench, plan, cores, say
        self._students = Students(bench, plan, cores)
        self._folder = bench.folder / "paper"
        data = open_dataset(bench.dataset)
        ids = np.arange(ORDERS_PER_EPOCH * ORDER_SIZE)
        self._images, self._labels = data.read(ids).fields["image"], data.labels(ids)
        self._teachers: dict[int, tuple[Costly, Path]] = {}
        self._step = 0.0
        self._figures: dict[str, Any] = {"ratios": {}, "more_ratios": {}, "rows": {}, "cores": str(cores)}

    def measure(self) -> dict[str, Any]:
        figures, plan = self._figures, self._plan
        with self._students.started("none") as pure:
            pure.wait(WARM)
            taken = pure.watch(3.0)
            self._step = taken.cpu / taken.steps
        figures["step_ms"] = 1000 * self._step
        for cost in plan.costs:
            self._make_teacher(cost)
        outcomes = self._elsewhere(plan.headline, headline=True)
        outcomes |= self._afterwards()
        for cost in plan.costs_here:
            outcomes |= self._here(cost)
        for cost in plan.costs:
            if cost != plan.headline:
                self._elsewhere(cost)
        self._weights_are_equal(outcomes)
        self._accuracy(outcomes)
        return figures

    def _make_teacher(self, cost: int) -> None:
        path = self._folder / f"teacher-{cost}.onnx"
        made = make_costly(path, cost * self._step, self._images, self._labels, ORDER_SIZE)
        known = self._folder / f"known-{cost}"
        KnownSamples.write(known, self._images, logits_of(path, self._images, ORDER_SIZE))
        self._teachers[cost] = made, known
        test = open_dataset("digits?split=test")
        ids = np.arange(test.num_samples)
        answers = logits_of(path, test.read(ids).fields["image"], ORDER_SIZE).argmax(axis=1)
        self._figures.setdefault("teachers", {})[str(cost)] = {
            "enlarge": made.size.enlarge,
            "channels": list(made.size.channels),
            "forward_ms": 1000 * made.seconds,
            "torch_differs_by": torch_differs_by(path, self._images[:ORDER_SIZE]),
            "accuracy": float((answers == test.labels(ids)).mean()),
        }

    def _elsewhere(self, cost: int, headline: bool = False) -> dict[str, dict[str, Any]]:
        """Measure (2) and (4) at a cost."""
        plan, (made, known) = self._plan, self._teachers[cost]
        service = cost * self._step
        name = f"paper-far-{cost}"
        with ExitStack() as stack:
            pure = stack.enter_context(self._students.warm("none"))
            others = {
                f"online_{runtime}_r{cost}": stack.enter_context(self._students.warm(runtime, model=made.path))
                for runtime in ("torch", "onnx")
            }
            if headline:
                self._figures["over_teachers"] = {"pure_samples_per_s": self._alone(pure), "service_ms": 1000 * service}
            live = stack.enter_context(Live(self._bench, name, made, run=name))
            far = stack.enter_context(self._students.started("stream", stream=name, run=name))
            if headline:
                self._figures["over_teachers"]["samples_per_s"] = self._over_teachers(far, live, known, service)
            else:
                live.teach_elsewhere(math.ceil(SPARE * cost), known, service)
            far.wait(WARM)
            far.halt()
            others[f"live_remote_r{cost}"] = far
            readings = self._take_turns(pure, others)
            for runtime in ("torch", "onnx"):
                # Of a loop that takes 1 + cost of pure training's seconds.
                ratio = self._figures["more_ratios"][f"online_{runtime}_r{cost}"]["median"]
                self._figures["teachers"][str(cost)][f"cost_in_{runtime}"] = 1 / ratio - 1
            online = max(
                (readings[key] for key in others if key.startswith("online")),
                key=lambda taken: sorted(map(samples_per_s, taken))[len(taken) // 2],
            )
            faster = against(readings[f"live_remote_r{cost}"], online)
            self._figures["ratios" if headline else "more_ratios"][f"remote_over_online_r{cost}"] = faster
            self._figures["rows"][f"live_remote_r{cost}"]["bytes_per_sample"] = live.log_bytes(plan.equal_steps)
            self._figures["rows"][f"live_remote_r{cost}"]["teachers"] = len(live.teachers)
            if not headline:
                return {}
            self._figures["ratios"]["live_remote"] = self._figures["more_ratios"][f"live_remote_r{cost}"]
            return {key: self._students.outcome(student) for key, student in [("none", pure), *others.items()]}

    def _alone(self, student: Metered) -> float:
        """Samples/s by the clock of a student beside which no other runs."""
        student.go()
        taken = student.watch(self._plan.watched)
        student.halt()
        return samples_per_s_by_the_clock(taken)

    def _over_teachers(self, far: Metered, live: Live, known: Path, service: float) -> dict[str, float]:
        """Samples/s by the clock of a live student, which nobody stops, while more and more teachers join."""
        rates = {}
        for count in self._plan.teachers:
            live.teach_elsewhere(count, known, service)
            far.watch(self._plan.watched / 3)  # until shares have settled
            rates[str(count)] = samples_per_s_by_the_clock(far.watch(self._plan.watched))
        return rates

    def _afterwards(self) -> dict[str, dict[str, Any]]:
        """Measure (5) and (6): no teacher of the stream is there any more."""
        cost = self._plan.headline
        made, known = self._teachers[cost]
        count = math.ceil(SPARE * cost)
        with ExitStack() as stack:
            ports = stack.enter_context(self._rpc_teachers(count, made, known, cost * self._step))
            pure = stack.enter_context(self._students.warm("none"))
            others = {
                "replay": stack.enter_context(self._students.warm("stream", stream=f"paper-far-{cost}")),
                "rpc": stack.enter_context(self._students.warm("rpc", ports=ports)),
            }
            readings = self._take_turns(pure, others)
            rows = self._figures["rows"]
            rows["replay"]["bytes_per_sample"] = rows[f"live_remote_r{cost}"]["bytes_per_sample"]
            taken = readings["rpc"]
            rows["rpc"]["bytes_per_sample"] = sum(each.sent for each in taken) / (
                ORDER_SIZE * sum(each.steps for each in taken)
            )
            rows["rpc"]["teachers"] = count
            for key in others:
                self._figures["ratios"][key] = self._figures["more_ratios"].pop(key)
            return {key: self._students.outcome(student) for key, student in others.items()}

    def _here(self, cost: int) -> dict[str, dict[str, Any]]:
        """Measure (3) at a cost, by the clock: student and teacher share the cores."""
        made, _ = self._teachers[cost]
        name, key, cores = f"paper-here-{cost}", f"live_local_r{cost}", self._cores.shared
        with ExitStack() as stack:
            pure = stack.enter_context(self._students.warm("none", cores=cores))
            live = stack.enter_context(Live(self._bench, name, made, run=name))
            told: dict[str, Any] = {"stream": name, "run": name, "cores": cores}
            student = stack.enter_context(self._students.started("stream", live.teachers, **told))
            student.begun()  # so that the teacher is not ahead of it
            live.teach_here(cores)
            student.wait(WARM)
            student.halt()
            self._take_turns(pure, {key: student}, by_the_clock=True)
            self._figures["rows"][key]["bytes_per_sample"] = live.log_bytes(WARM)
            self._figures["rows"][key]["teachers"] = 1
            if cost != self._plan.headline:
                return {}
            self._figures["ratios"]["live_local"] = self._figures["more_ratios"][key]
            return {key: self._students.outcome(student)}

    def _take_turns(
        self, pure: Metered, others: dict[str, Metered], by_the_clock: bool = False
    ) -> dict[str, list[Reading]]:
        of_pure, readings = in_turns(self._plan.turns, pure, others)
        rows, rate = self._figures["rows"], samples_per_s_by_the_clock if by_the_clock else samples_per_s
        rows.setdefault("none", {"peak_mib": peak_mib(pure.process.pid)})
        for key, taken in readings.items():
            said = ratios(taken, of_pure, rate)
            said["by_the_clock"] = ratios(taken, of_pure, samples_per_s_by_the_clock)["median"]
            self._figures["more_ratios"][key] = said
            rows[key] = {"peak_mib": peak_mib(others[key].process.pid)}
            low, high = said["interval"]
            self._say(f"{key}: {said['median']:.3f} of pure training ({low:.3f} - {high:.3f})")
        return readings

    def _weights_are_equal(self, outcomes: dict[str, dict[str, Any]]) -> None:
        compared = [key for key in outcomes if key.startswith(("live", "replay"))]
        weights = {outcomes[key]["weights_sha256"] for key in compared}
        if len(weights) != 1:
            raise RuntimeError(f"weights differ after equal steps: { {key: outcomes[key] for key in compared} }")
        self._figures["equal_weights"] = {"students": compared, "sha256": weights.pop()}

    def _accuracy(self, outcomes: dict[str, dict[str, Any]]) -> None:
        """Compare students of several seeds after equal steps; those of seed 0 were measured already."""
        cost = self._plan.headline
        (made, _), online, seeds = self._teachers[cost], f"online_onnx_r{cost}", range(1, self._plan.seeds)
        scores = {key: [outcomes[key]["evaluation"]["accuracy"]] for key in ("none", online, "replay")}
        students: dict[str, dict[str, Any]] = {
            "none": {"teacher": "none"},
            online: {"teacher": "onnx", "model": made.path},
            "replay": {"teacher": "stream", "stream": f"paper-far-{cost}"},
        }
        for seed in seeds:
            with ExitStack() as stack:
                there = {
                    key: stack.enter_context(self._students.started(**told, cores=self._cores.shared, seed=seed))
                    for key, told in students.items()
                }
                for key, student in there.items():
                    scores[key].append(self._students.outcome(student)["evaluation"]["accuracy"])
        accuracy = {}
        for key, values in scores.items():
            mean, deviation = mean_and_deviation(values)
            accuracy[key] = {"mean": mean, "deviation": deviation, "values": values}
        self._figures["accuracy"] = accuracy | {"steps": self._plan.equal_steps, "online": online}

    @contextmanager
    def _rpc_teachers(self, count: int, made: Costly, known: Path, seconds: float) -> Iterator[tuple[int, ...]]:
        command: list[str | Path] = [sys.executable, "-m", "benchmarks.paper.rpc", made.path, "--known", known]
        command += ["--order-size", str(ORDER_SIZE), "--service", str(ServiceTimes.constant(seconds))]
        servers = []
        try:
            for number in range(count):
                log = self._folder / f"rpc-{number}.log"
                there = environment(self._bench)
                servers.append(Process(f"rpc {number}", command, log, environment=there, stdout=subprocess.PIPE))
            ports = []
            for server in servers:
                assert server.popen.stdout is not None
                ports.append(int(server.popen.stdout.readline() or 0))
                if not ports[-1]:
                    raise RuntimeError(f"{server.name}: {server.last_words()}")
            yield tuple(ports)
        finally:
            stop(servers)
            for server in servers:
                if server.popen.stdout is not None:
                    server.popen.stdout.close()
