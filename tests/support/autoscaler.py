"""A fleet of teachers under KEDA and Kubernetes' horizontal autoscaler, in a simulated time of one-second steps.

Written from their documentation: desired = ceil(lag / threshold), within a tolerance of 10 %; the window of scaleUp
takes the lowest recommendation in it, that of scaleDown the highest; then policies bound the step. KEDA itself goes
from 0 to 1 and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.follow import Lead

LOOKS_EVERY = 15
"""seconds between two looks of the autoscaler"""
TOLERANCE = 0.1
START = 60
"""seconds from a replica to a worker that labels"""


@dataclass
class Day:
    """What is asked of the fleet."""

    partitions: int
    orders: int
    worker: float
    """orders that one worker labels in a second"""
    student: Callable[[int], float]
    """second -> orders that the student can train on in it"""
    follow: bool = True
    """whether the feeder stays ahead of the student, or publishes all at once"""


@dataclass
class Fleet:
    """Replicas over time."""

    replicas: list[int] = field(default_factory=list)
    """[T] of each second"""
    starved: list[bool] = field(default_factory=list)
    """[T] whether the student wanted more labels than there were"""
    trained: float = 0.0


class Autoscaler:
    """A ScaledObject at work: `step` gives the replicas of the next second."""

    def __init__(self, scaled: dict[str, Any], partitions: int) -> None:
        spec = scaled["spec"]
        trigger = spec["triggers"][0]["metadata"]
        self._partitions = partitions
        self._threshold = int(trigger["lagThreshold"])
        self._activation = int(trigger["activationLagThreshold"])
        self._least, self._most = spec["minReplicaCount"], spec["maxReplicaCount"]
        self._polls_every, self._cool_down = spec["pollingInterval"], spec["cooldownPeriod"]
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        self._up, self._down = behavior["scaleUp"], behavior["scaleDown"]
        self._wanted: list[tuple[int, int]] = []
        self._changes: list[tuple[int, int]] = []
        self._active_at = 0

    def step(self, now: int, lag: float, replicas: int) -> int:
        if now % self._polls_every == 0 and lag > self._activation:
            self._active_at = now
            replicas = max(1, replicas)
        if now % self._polls_every == 0 and now - self._active_at > self._cool_down:
            return self._least
        if replicas and now % LOOKS_EVERY == 0:
            after = self._look(now, lag, replicas)
            self._changes.append((now, after - replicas))
            return after
        return replicas

    def _look(self, now: int, lag: float, replicas: int) -> int:
        lag = min(lag, self._partitions * self._threshold)
        usage = lag / (self._threshold * replicas)
        wanted = replicas if abs(usage - 1) <= TOLERANCE else math.ceil(lag / self._threshold)
        if not self._wanted:
            self._wanted.append((now, replicas))
        self._wanted.append((now, min(self._most, max(1, wanted))))

        def within(window: int) -> list[int]:
            return [each for at, each in self._wanted if now - at <= window]

        after = max(replicas, min(within(self._up["stabilizationWindowSeconds"])))
        after = min(after, max(within(self._down["stabilizationWindowSeconds"])))
        return min(self._limit(self._up, now, replicas, +1), max(self._limit(self._down, now, replicas, -1), after))

    def _limit(self, rules: dict[str, Any], now: int, replicas: int, sign: int) -> int:
        """The furthest that the policies let go in one direction; `selectPolicy: Max`, as by default."""
        limits = []
        for policy in rules["policies"]:
            recent = (by for at, by in self._changes if now - at < policy["periodSeconds"] and by * sign > 0)
            before = replicas - sum(recent)
            value = policy["value"] if policy["type"] == "Pods" else before * policy["value"] / 100
            limits.append(before + sign * value)
        return math.ceil(max(limits)) if sign > 0 else max(0, math.floor(min(limits)))


def live(scaled: dict[str, Any], day: Day, seconds: int) -> Fleet:
    """Let feeder, teachers, student and autoscaler run for that long."""
    scaler, fleet, lead = Autoscaler(scaled, day.partitions), Fleet(), Lead.of(None, day.partitions)
    fed = labelled = 0.0
    replicas, started = 0, []
    for now in range(seconds):
        if fed - fleet.trained < lead.low:
            fed = min(day.orders, fleet.trained + lead.high if day.follow else day.orders)
        started = started[:replicas] + [now] * (replicas - len(started))
        ready = sum(now - at >= START for at in started)
        labelled = min(fed, labelled + ready * day.worker)
        wish = min(day.orders, fleet.trained + day.student(now))
        fleet.starved.append(wish > labelled)
        fleet.trained = min(wish, labelled)
        replicas = scaler.step(now, fed - labelled, replicas)
        fleet.replicas.append(replicas)
    return fleet
