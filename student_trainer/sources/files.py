"""source = "files": the orders of a stream as `distillog capture` stored them; neither a broker nor its client."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.captured.folder import CapturedFolder, TeacherFiles
from pipeline.captured.storage import capture_command
from pipeline.sequence import Sequence as OrderSequence
from schemas.errors import ConfigError, ManifestMismatch, Starved
from schemas.records import SoftTargets, Teacher
from student_trainer.run.spans import WHOLE_STREAM, Span
from student_trainer.sources.held import Held, Wait, check_identity
from student_trainer.sources.ledger import Captured
from student_trainer.sources.stream_settings import StreamSettings
from student_trainer.sources.teachers import TeachersSource

log = logging.getLogger(__name__)


class FilesSource(TeachersSource):
    """An `OrderSource` over a folder of captured soft targets: the same orders as from the stream.

    Its `orders` raise, beside what all such sources do, DecodeError where a file is damaged, and Starved where the
    folder ends.

    Raises:
        ConfigError: no such folder, or one of another stream than the run's.
        StreamNotFound: a teacher was not captured.
        DecodeError: a file is missing, cut or damaged.
        ManifestMismatch, DataUnavailable: as `TeachersSource`.
    """

    def __init__(self, folder: Path | str, settings: StreamSettings) -> None:
        self._captured = captured = CapturedFolder(folder)
        contents = captured.contents
        if settings.stream not in ("", contents.stream):
            raise ConfigError(
                f"[data] files: {folder} is captured from stream {contents.stream!r}, and [data] stream is "
                f"{settings.stream!r}; give the folder of that one"
            )
        self._files = [captured.teacher(name) for name in settings.teachers]
        self._spans = settings.spans
        super().__init__(self._files[0].manifest, [each.lineage for each in self._files], settings)
        self._num_read = 0
        for each in self._files:
            name, there, whole = each.teacher.name, each.num_orders, contents.num_orders
            until = self._spans.get(name, WHOLE_STREAM).until
            if there < (whole if until is None else min(until, whole)):
                log.warning("%s: holds %d of %d orders of teacher %r", folder, there, whole, name)

    def ledger(self, teacher: str) -> Captured:
        """Return the generations of a teacher that were captured, if its labels were."""
        there = teacher in self._captured.contents.teachers
        return Captured(self._captured.teacher(teacher).lineage if there else None)

    def _layers(self, teacher: Teacher) -> Mapping[str, bytes]:
        files = next(each for each in self._files if each.teacher.name == teacher.name)
        return files.heads()

    def _open_reader(self) -> FilesReader:
        return FilesReader(self._captured, self._files, self.sequence, self._stop, self._count, self._spans)

    def _count(self, num_records: int) -> None:
        self._num_read += num_records

    def statistics(self) -> dict[str, float]:
        """Return what was counted so far: records, and rows left out."""
        return {"records": self._num_read, "rows_left_out": self._rows_left_out}


class FilesReader:
    """The captured soft targets of one or several teachers, order by order; used by one thread.

    Args:
        captured: the folder.
        files: of each teacher.
        orders: the stream's sequence.
        stop: ends the reading when set.
        count: told of records that were read.
        spans: teacher -> the orders that are read of it; left out: all.
    """

    def __init__(
        self,
        captured: CapturedFolder,
        files: Sequence[TeacherFiles],
        orders: OrderSequence,
        stop: threading.Event,
        count: Callable[[int], object],
        spans: Mapping[str, Span] | None = None,
    ) -> None:
        self._captured, self._files, self._orders, self._stop, self._count = captured, files, orders, stop, count
        self._spans = spans or {}

    def seek(self, sequence: int, offsets: Sequence[Sequence[int]]) -> None:
        """Do nothing: the index finds whatever is asked for."""

    def next(self, sequence: int, on_wait: Callable[[Wait], None]) -> tuple[Held, ...] | None:
        """Return the soft targets of an order, one per teacher that counts there; None when told to stop. No waiting.

        Raises:
            Starved: the order was not captured.
            DecodeError: a file is damaged there.
            DataUnavailable: it cannot be read now.
            ManifestMismatch: the soft targets are not what the manifest says.
        """
        if self._stop.is_set():
            return None
        files = [each for each in self._files if self._spans.get(each.teacher.name, WHOLE_STREAM).holds(sequence)]
        for each in files:
            if sequence >= each.num_orders:
                stream, name = each.manifest.stream, each.teacher.name
                raise Starved(
                    f"{self._captured.path}: holds {each.num_orders} of {self._orders.num_orders} orders of teacher "
                    f"{name!r}, and order {sequence} is needed; capture on with "
                    f"{capture_command(stream, self._captured.path)}, and resume the run, or resume it with `--set "
                    "source=stream`"
                )
        held = tuple(self._held(each, sequence) for each in files)
        check_identity(self._orders, sequence, [each.lineage for each in files], held)
        self._count(len(held))
        return held

    def close(self) -> None:
        """Close the files."""
        for each in self._files:
            each.close()

    def _held(self, files: TeacherFiles, sequence: int) -> Held:
        order = files.read(sequence)
        value = SoftTargets.decode(order.value, order.address)
        if value.stream_id != files.manifest.stream_id:
            raise ManifestMismatch(
                f"{order.address}: is of stream ID {value.stream_id}, the manifest says {files.manifest.stream_id}; it "
                "is not trained on"
            )
        return Held(value, order.offset + 1, order.address, len(order.value))
