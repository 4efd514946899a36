"""A day of a fleet on spot machines, simulated: a student, a feeder, and workers that come late and are taken away.

Everything is drawn from a seed, and the same day can be lived through with any rule for the size.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from teacher_service.fleet.size import Reading

DAY = 86_400.0
STEP = 1.0
"""seconds of one step"""
READ_EVERY = 2.0
ORDER_SIZE = 256
PARTITIONS = 32
LOW, HIGH = 4 * PARTITIONS, 8 * PARTITIONS
SPEED = 500.0
"""samples/s of a worker, more or less"""
TAKEOVER = 2.5
"""seconds in which nothing follows in sequence after a worker was lost"""
MOST = 8
EVALUATION_EVERY, EVALUATION = 600.0, 15.0

Rule = Callable[[Reading], int]


@dataclass(slots=True)
class Machine:
    ready: float
    """when its worker labels"""
    taken: float
    """when it is taken away"""
    speed: float


@dataclass(frozen=True, slots=True)
class Day:
    """What happens, whatever the fleet does."""

    runs: tuple[tuple[float, float, float], ...]
    """(begin, end, samples/s that it takes)"""
    market: tuple[tuple[float, int], ...]
    """(from when on, machines that can be had)"""
    seconds: float = DAY
    mean_life: float = 5400.0
    """seconds until a machine is taken away; 0: never"""
    spread: float = 0.1
    """of the workers' speeds"""
    told: float = 1.0
    """times their true speed, which is what workers say"""

    @classmethod
    def draw(cls, seed: int) -> Day:
        rng = random.Random(seed)
        runs, at = [], rng.uniform(0, 3600)
        while at < DAY:
            end = at + rng.uniform(0.5, 3.0) * 3600
            runs.append((at, min(DAY, end), rng.uniform(200, 3000)))
            at = end + rng.choice([60.0, 600.0, 5400.0])
        market, at = [(0.0, MOST)], 0.0
        while at < DAY:
            at += rng.uniform(0.5, 2.0) * 3600
            market.append((at, rng.choice([4, 6, MOST, MOST])))
        return cls(tuple(runs), tuple(market))


@dataclass(slots=True)
class Life:
    """How the day went."""

    starved: float = 0.0
    """seconds in which the student wanted labels and had none"""
    machine_hours: float = 0.0
    changes: int = 0
    sizes: list[int] = field(default_factory=list)
    """at every reading"""

    @property
    def cost(self) -> float:
        """Machine hours; an hour of a waiting student is worth those of a whole fleet."""
        return self.machine_hours + MOST * self.starved / 3600


def live(day: Day, seed: int, rule: Rule | None = None, size: int = 1) -> Life:
    """Live through a day with `rule` deciding on the size, which begins as `size`; it stays so without a rule."""
    rng = random.Random(seed)
    life, machines = Life(), list[Machine]()
    fed = labelled = trained = 0.0
    stalled, read_at, run_before = 0.0, 0.0, -1
    for step in range(int(day.seconds / STEP)):
        now = step * STEP
        available = next(number for since, number in reversed(day.market) if since <= now)
        running = next((i for i, (begin, end, _) in enumerate(day.runs) if begin <= now < end), -1)
        if running != run_before:
            run_before, trained = running, labelled  # another run, over what is labelled from now on
        # The market takes machines away, the fleet asks for others.
        lost = [one for one in machines if one.taken <= now] or machines[available:]
        if any(one.ready <= now for one in lost):
            stalled = now + TAKEOVER
        machines = [one for one in machines if one not in lost]
        while len(machines) < min(size, available):
            ready = now + rng.uniform(15, 40)
            taken = ready + rng.expovariate(1 / day.mean_life) if day.mean_life else day.seconds
            machines.append(Machine(ready, taken, SPEED * rng.uniform(1 - day.spread, 1 + day.spread)))
        machines = machines[:size]
        life.machine_hours += len(machines) * STEP / 3600
        # Feed, label, train.
        if running >= 0 and fed - trained < LOW:
            fed = trained + HIGH
        working = [one for one in machines if one.ready <= now]
        capacity = sum(one.speed for one in working) * STEP / ORDER_SIZE
        busy = min(1.0, (fed - labelled) / capacity) if working else 0.0
        if now >= stalled:
            labelled += busy * capacity
        if running >= 0:
            begin, _, pace = day.runs[running]
            wanted = (
                0.0 if (now - begin) % EVALUATION_EVERY > EVALUATION_EVERY - EVALUATION else pace * STEP / ORDER_SIZE
            )
            taken = min(wanted, labelled - trained)
            trained += taken
            life.starved += STEP * (1 - taken / wanted) if wanted else 0.0
        if rule is not None and now >= read_at:
            read_at = now + READ_EVERY
            speeds = tuple(day.told * one.speed for one in working)
            at = int(trained) if running >= 0 else None
            reading = Reading(
                now, int(fed), int(labelled), busy, speeds, len(machines), len(machines) - len(working), 25.0, at
            )
            before, size = size, rule(reading)
            life.changes += size != before
            life.sizes.append(size)
    return life
