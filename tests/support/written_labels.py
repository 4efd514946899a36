"""Soft targets that a test writes into a teacher's topic itself, true ones and forged ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from support.streams import order

from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import soft_targets_topic
from pipeline.streams import Stream
from pipeline.views.fetch import Fetched, Fetcher
from schemas.records import SoftTargets
from teacher_service.models.labels import Asked, Labels, label
from teacher_service.models.session import OnnxTeacher


class Labelling:
    """What a worker gives for orders, one after the other."""

    def __init__(self, stream: Stream, source: Fetcher, model: OnnxTeacher) -> None:
        self.stream, self.source, self.model = stream, source, model

    def record(
        self,
        sequence: int,
        *,
        labelled_as: int | None = None,
        by: OnnxTeacher | None = None,
        changed: Callable[[Fetched], Fetched] = lambda fetched: fetched,
        seen: Fetcher | None = None,
    ) -> SoftTargets:
        """The record of an order, with the labels of another one, by another model, of other views, if so asked."""
        manifest, told = self.stream.manifest, order(self.stream.manifest, sequence)
        real = told if labelled_as is None else order(manifest, labelled_as)
        fetched = (seen or self.source).fetch(real.sample_ids, real.view_seed, self.model.size)
        asked = Asked(real.sample_ids, real.view_seed)
        labels: Labels = label(by or self.model, changed(fetched), manifest.codec, asked)
        kept = None if len(labels.kept) == len(told.sample_ids) else labels.kept
        teacher = self.model.teacher
        return SoftTargets(
            manifest.stream_id,
            sequence,
            told.epoch,
            told.sample_ids,
            told.view_seed,
            kept,
            teacher.name,
            teacher.sha256,
            labels.outputs,
            teacher.generation,
        )


def rolled(fetched: Fetched) -> Fetched:
    """The views of all samples, each one place further."""
    return replace(fetched, inputs={name: np.roll(values, 1, axis=0) for name, values in fetched.inputs.items()})


def write(
    settings: KafkaSettings, stream: Stream, values: Iterable[SoftTargets], worker: str = "w", header: str = "worker"
) -> None:
    """Append records, each to its partition."""
    manifest = stream.manifest
    appender = KafkaCluster(settings).appender(max_record_bytes=1 << 20, batch_bytes=1 << 16)
    try:
        sent = [
            appender.append(
                soft_targets_topic(manifest.stream, value.teacher),
                value.sequence % manifest.partitions,
                value.encode(manifest.schema_fingerprints),
                headers=[(header, worker.encode())],
            )
            for value in values
        ]
        for future in sent:
            future.result(30)
    finally:
        appender.close(5)
