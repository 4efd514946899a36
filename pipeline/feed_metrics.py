"""What a feeder does at this moment, and the metrics that show it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.metrics import Heart, Metric

LOOP = 120.0
"""seconds in which a feeder goes round, also without a broker, whose calls give up before"""


@dataclass(slots=True)
class Feeding:
    """Written by the feeder's thread alone, read by any."""

    orders: int
    """of the whole stream"""
    published: int = 0
    """orders acknowledged, repetitions after a failure included"""
    next_sequence: int | None = None
    """the lowest sequence that is not in the topic; None: the topic was not read"""
    position: int | None = None
    """the order that the run trains on which is kept pace with; None: nobody is followed"""
    followed: int = 0
    """runs"""
    credit_seconds: float = 0.0
    """waited for a followed run"""
    publishing_seconds: float = 0.0
    """waited for acknowledgements"""
    over: bool = False
    heart: Heart = field(default_factory=lambda: Heart(LOOP))

    def end(self) -> None:
        """Nothing more is published."""
        self.heart.rest()
        self.over = True

    @property
    def ahead(self) -> int | None:
        """Orders between that run and the feeder."""
        if self.position is None or self.next_sequence is None:
            return None
        return self.next_sequence - self.position

    @property
    def unready(self) -> str:
        """Why no order could be published now."""
        if self.over:
            return "has ended"
        return "the work orders were not read yet" if self.next_sequence is None else ""


METRICS: tuple[Metric[Feeding], ...] = (
    Metric("orders_total", "orders acknowledged, repetitions after a failure included", lambda now: now.published),
    Metric("stream_orders", "orders of the whole stream", lambda now: now.orders),
    Metric("fed_orders", "orders that lie in the topic without a gap", lambda now: now.next_sequence),
    Metric(
        "lead_orders",
        "orders ahead of the followed run that --pace names",
        lambda now: None if now.over else now.ahead,
    ),
    Metric("followed_runs", "runs that are followed", lambda now: 0 if now.over else now.followed),
    Metric("credit_seconds_total", "waited until a followed run came closer", lambda now: now.credit_seconds),
    Metric("publishing_seconds_total", "waited for acknowledgements", lambda now: now.publishing_seconds),
)
