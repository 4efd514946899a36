"""What goes into the logs for a labelled order: soft targets of the rows with labels, dead letters for the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.avro import NEWEST
from schemas.codecs import CodecSpec
from schemas.errors import DecodeError
from schemas.records import DeadLetter, SoftTargets, Teacher, WorkOrder
from teacher_service.leases.chain import Job, Parcel
from teacher_service.models.labels import Labels

_MAX_RAW = 65_536
"""Bytes of a record that is no work order which its dead letter carries."""

_MAX_REASON = 1_000
"""Characters of a reason: a user's exception may print whole arrays."""


class Parcels:
    """Makes them for one teacher; callable from any thread."""

    def __init__(
        self, teacher: Teacher, codec: CodecSpec, work_orders: str, pinned: Mapping[str, str] = NEWEST
    ) -> None:
        self._teacher = teacher
        self.codec = codec
        """the stream's"""
        self._work_orders = work_orders
        """topic that the dead letters name"""
        self._pinned = pinned

    def of_no_order(self, job: Job, error: DecodeError) -> Parcel:
        """A record that is no work order is a dead letter whole."""
        return Parcel(job, (self._letter(job, None, None, error.reason, error.raw),))

    def of_labels(
        self, job: Job, order: WorkOrder, labels: Labels, num_deadly: int = 0, by: Teacher | None = None
    ) -> Parcel:
        """Make the records of an order's labels.

        Args:
            job: the order's.
            order: what was to be labelled.
            labels: what became of its rows.
            num_deadly: how many of the faults ended the process that labelled them.
            by: the generation of the teacher that they are of; None: the teacher itself.
        """
        by = by or self._teacher
        kept, faults = labels.kept, labels.faults
        letters = tuple(self._letter(job, row, int(order.sample_ids[row]), reason, None) for row, reason in faults)
        value = SoftTargets(
            stream_id=order.stream_id,
            sequence=order.sequence,
            epoch=order.epoch,
            sample_ids=order.sample_ids,
            view_seed=order.view_seed,
            kept_rows=None if len(kept) == len(order.sample_ids) else kept,
            teacher=by.name,
            teacher_sha256=by.sha256,
            outputs=labels.outputs,
            generation=by.generation,
        ).encode(self._pinned)
        reason = faults[-1][1] if faults else ""
        return Parcel(job, letters, value, len(order.sample_ids), len(faults), reason, num_deadly)

    def _letter(self, job: Job, row: int | None, sample_id: int | None, reason: Any, raw: bytes | None) -> bytes:
        return DeadLetter(
            stream_id=self._teacher.stream_id,
            teacher=self._teacher.name,
            topic=self._work_orders,
            partition=job.chain.partition,
            offset=job.offset,
            sequence=job.sequence if row is not None else None,
            row=row,
            sample_id=sample_id,
            # A user's exception may hold anything, such as half of a file name that is no UTF-8.
            reason=str(reason).encode("utf-8", "backslashreplace").decode()[:_MAX_REASON],
            raw=raw[:_MAX_RAW] if raw is not None else None,
        ).encode(self._pinned)
