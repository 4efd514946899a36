"""A worker without its threads and its model: every turn of it is a call of the test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.kafka.log import Cluster
from pipeline.names import dead_letters_topic, soft_targets_topic, teacher_group, work_orders_topic
from schemas.errors import BrokerUnavailable, DecodeError, DistillogError
from schemas.records import Manifest, SoftTargets, Teacher
from teacher_service.leases.chain import Job, Parcel
from teacher_service.leases.intake import Intake
from teacher_service.leases.leases import Leases
from teacher_service.publisher import Publisher


class WorkerByHand:
    """Leases with their chains, intake and publisher are the real ones."""

    def __init__(self, cluster: Cluster, manifest: Manifest, teacher: Teacher) -> None:
        orders = work_orders_topic(manifest.stream)
        group = teacher_group(manifest, teacher.name)
        self.member = cluster.member(group, orders, name="w", session_timeout=6.0)
        self.publisher = Publisher(
            lambda: cluster.appender(max_record_bytes=manifest.max_record_bytes),
            soft_targets_topic(manifest.stream, teacher.name),
            dead_letters_topic(manifest.stream),
            [],
            manifest.max_record_bytes,
            1_000_000,
        )
        self.leases = Leases(cluster, self.member, manifest, teacher, lambda: self.publisher.generation, nullcontext)
        self.jobs: list[Job] = []
        guard: Any = SimpleNamespace(check=lambda now=False: None)
        self.intake = Intake(manifest, self.leases, guard)
        self.ended: DistillogError | None = None
        """why the process would have ended"""

    def poll(self) -> None:
        self._survive(lambda: self.intake.take(self.leases.poll(0.0)))
        self.jobs += self.leases.to_begin()

    def label(self, count: int) -> None:
        """As the stages do: the lowest sequence first, nothing of a lease that has ended."""
        self.jobs.sort(key=lambda job: job.sequence)
        while count and self.jobs:
            job = self.jobs.pop(0)
            if not job.chain.over:
                self.publisher.submit(label(job))
                count -= 1

    def publish(self, turns: int) -> None:
        for _ in range(turns):
            self.publisher.turn(0.0)
        self.ended = self.ended or self.publisher.failure

    def commit(self) -> None:
        self._survive(lambda: self.leases.commit(0.0))
        self.jobs += self.leases.to_begin()

    def leave(self) -> None:
        """End with grace."""
        self.leases.leave()
        self.commit()
        self.member.close()

    def round(self) -> None:
        """Everything once."""
        self.publish(1)
        self.poll()
        self.label(8)
        self.publish(24)
        self.commit()

    def _survive(self, act: Callable[[], object]) -> None:
        """What a worker outlives; anything else ends it."""
        try:
            act()
        except BrokerUnavailable:
            pass
        except DistillogError as error:
            self.ended = error


def label(job: Job) -> Parcel:
    """Soft targets without a row."""
    if isinstance(job.order, DecodeError):
        return Parcel(job, (b"letter",))
    ordered = job.order
    identity = (ordered.stream_id, ordered.sequence, ordered.epoch, ordered.sample_ids, ordered.view_seed)
    return Parcel(job, (), SoftTargets(*identity, np.empty(0, np.int64), "t", "0" * 64, ()).encode())
