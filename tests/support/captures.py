"""Captured folders without any Kafka: labels of `reader_logs`, put into files in sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from pipeline.captured.capturing import CaptureFolder, CaptureForm
from pipeline.streams import Stream
from schemas.records import SoftTargets


def append(folder: CaptureFolder, stream: Stream, values: Iterable[SoftTargets], shift: int = 7) -> None:
    """Append a teacher's orders; their offsets are those of a log with `shift` records before the first."""
    for value in values:
        partition, place = value.sequence % stream.manifest.partitions, value.sequence // stream.manifest.partitions
        raw = value.encode(stream.manifest.schema_fingerprints)
        folder.writers[value.teacher].append(
            value.sequence, partition, place + shift, raw, f"order {value.sequence}", value.generation
        )


def captured(
    path: Path,
    stream: Stream,
    values: Iterable[SoftTargets],
    form: CaptureForm | None = None,
    save: bool = True,
    heads: Mapping[str, bytes] = MappingProxyType({}),
) -> Path:
    """Append orders of one or more teachers to a folder, in sequence of each; without `save` as a kill leaves it."""
    values = list(values)
    teachers = [stream.teacher(name) for name in dict.fromkeys(value.teacher for value in values)]
    with CaptureFolder(
        path,
        stream.manifest,
        teachers,
        form or CaptureForm(),
        heads=lambda teacher: heads,
        lineages=stream.lineages,
    ) as folder:
        append(folder, stream, values)
        if save:
            folder.save()
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of whatever lies in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
