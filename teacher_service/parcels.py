"""What goes into the logs for a labelled order: soft targets of the rows with labels, dead letters for the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.datasets.base import Faults, Ints
from schemas.avro import NEWEST
from schemas.codecs import CodecSpec, storable
from schemas.errors import DecodeError
from schemas.records import DeadLetter, Output, SoftTargets, Teacher, WorkOrder
from teacher_service.leases.chain import Job, Parcel
from teacher_service.models.session import Outputs

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
        self._codec = codec
        self._work_orders = work_orders
        """topic that the dead letters name"""
        self._pinned = pinned

    def of_no_order(self, job: Job, error: DecodeError) -> Parcel:
        """A record that is no work order is a dead letter whole."""
        return Parcel(job, (self._letter(job, None, None, error.reason, error.raw),))

    def of_labels(
        self,
        job: Job,
        order: WorkOrder,
        kept: Ints,
        faults: Faults,
        outputs: Outputs,
        num_deadly: int = 0,
    ) -> Parcel:
        """Encode the labels of an order of N samples.

        Args:
            job: the order's.
            order: what was to be labelled.
            kept: [M] int64, rising rows that were labelled.
            faults: (row, reason) of the others.
            outputs: the model's, [M, ...] of the kept rows; one that cannot be stored makes its row a fault.
            num_deadly: how many of the faults ended the process that labelled them.
        """
        kept, outputs, unfit = self._fitting(kept, outputs)
        left_out = [*faults, *unfit]
        letters = tuple(self._letter(job, row, int(order.sample_ids[row]), reason, None) for row, reason in left_out)
        value = SoftTargets(
            stream_id=order.stream_id,
            sequence=order.sequence,
            epoch=order.epoch,
            sample_ids=order.sample_ids,
            view_seed=order.view_seed,
            kept_rows=None if len(kept) == len(order.sample_ids) else kept,
            teacher=self._teacher.name,
            teacher_sha256=self._teacher.sha256,
            outputs=tuple(
                Output.of(one.name, outputs[one.name], one.stored_as(self._codec), classes=one.class_axis is not None)
                for one in self._teacher.outputs
            ),
        ).encode(self._pinned)
        reason = left_out[-1][1] if left_out else ""
        return Parcel(job, letters, value, len(order.sample_ids), len(left_out), reason, num_deadly)

    def _fitting(self, kept: Ints, outputs: Outputs) -> tuple[Ints, Outputs, list[tuple[int, str]]]:
        """Leave out the rows that cannot be stored; the last are those, with the first reason of each."""
        reasons: dict[int, str] = {}
        for one in self._teacher.outputs:
            values, codec = outputs[one.name], one.stored_as(self._codec)
            for row in np.flatnonzero(~storable(values, codec, one.num_classes)):
                why = f"is beyond what {codec} holds" if np.isfinite(values[row]).all() else "is not finite"
                reasons.setdefault(int(row), f"the teacher's output {one.name!r} {why}")
        if not reasons:
            return kept, outputs, []
        fits = np.ones(len(kept), np.bool_)
        fits[list(reasons)] = False
        unfit = [(int(kept[row]), why) for row, why in sorted(reasons.items())]
        return kept[fits], {name: values[fits] for name, values in outputs.items()}, unfit

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
