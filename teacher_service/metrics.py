"""What a worker did and what it does at this moment, and the metrics that show it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.metrics import Heart, Metric
from teacher_service.leases.leases import Leases
from teacher_service.publisher import Publisher
from teacher_service.stages import Stages

LOOP = 120.0
"""seconds in which the polling thread goes round, also without a broker, whose calls give up before"""


@dataclass(slots=True)
class WorkerReport:
    """What a worker did."""

    orders: int = 0
    samples: int = 0
    faults: int = 0
    """rows that went to the dead letters"""
    not_orders: int = 0
    """records that went there whole"""
    repetitions: int = 0
    rebalances: int = 0


@dataclass(slots=True)
class Labelling:
    """Written by the worker's threads, read by any; all but the report is of the last second."""

    report: WorkerReport
    loading_seconds: float = 0.0
    inference_seconds: float = 0.0
    waiting_seconds: float = 0.0
    publishing_seconds: float = 0.0
    in_group: bool = False
    partitions: int = 0
    in_hand: int = 0
    lag: int = 0
    speed: float = 0.0
    generation: int = 0
    heart: Heart = field(default_factory=lambda: Heart(LOOP))

    def look(self, leases: Leases, stages: Stages, publisher: Publisher) -> None:
        """Take down how things stand."""
        self.loading_seconds, self.inference_seconds = stages.loading.total, stages.inferring.total
        self.waiting_seconds, self.publishing_seconds = stages.waited, publisher.unacknowledged_seconds
        self.in_group = leases.member_id is not None
        self.partitions, self.in_hand, self.lag = len(leases.chains), leases.in_hand, leases.lag
        self.speed, self.generation = stages.speed, stages.model.teacher.generation

    def end(self) -> None:
        """The worker has left its group."""
        self.heart.rest()
        self.in_group = False
        self.partitions = self.in_hand = self.lag = 0
        self.speed = 0.0

    @property
    def unready(self) -> str:
        """Why nothing is labelled here now."""
        return "" if self.in_group else "is no member of its group"


METRICS: tuple[Metric[Labelling], ...] = (
    Metric("orders_total", "orders labelled and acknowledged", lambda now: now.report.orders),
    Metric("samples_total", "samples labelled and acknowledged", lambda now: now.report.samples),
    Metric(
        "dead_letters_total",
        "samples, and records that are no work orders, that went to the dead letters",
        lambda now: now.report.faults + now.report.not_orders,
    ),
    Metric("repetitions_total", "orders dropped since they were taken before", lambda now: now.report.repetitions),
    Metric("rebalances_total", "times that partitions were shared out anew", lambda now: now.report.rebalances),
    Metric("loading_seconds_total", "spent on loading the views of orders", lambda now: now.loading_seconds),
    Metric("inference_seconds_total", "spent on inference and encoding", lambda now: now.inference_seconds),
    Metric("waiting_seconds_total", "in which inference waited for an order", lambda now: now.waiting_seconds),
    Metric(
        "publishing_seconds_total",
        "from sending each order's labels to their acknowledgement, which overlap",
        lambda now: now.publishing_seconds,
    ),
    Metric("partitions", "partitions held", lambda now: now.partitions),
    Metric("orders_in_hand", "orders taken and not acknowledged yet", lambda now: now.in_hand),
    Metric("lag_orders", "orders of the partitions held that are not acknowledged yet", lambda now: now.lag),
    Metric("generation", "of the teacher, by which the next order is labelled", lambda now: now.generation),
    Metric("samples_per_second", "as fast as it labels while it has work", lambda now: now.speed),
)
