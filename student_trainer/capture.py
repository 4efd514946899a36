"""Captures a stream: what a student would read of its teachers' logs becomes files, byte by byte."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kafka import TopicPartition

from pipeline.captured.capturing import CaptureFolder, CaptureForm
from pipeline.captured.folder import CapturedFolder
from pipeline.captured.writer import TeacherWriter
from pipeline.chain_ends import soft_targets_end
from pipeline.heads import read_heads
from pipeline.kafka.log import Cluster
from pipeline.manifest_log import READ_TIMEOUT, ManifestFollower
from pipeline.names import soft_targets_topic
from pipeline.progress import Progress
from pipeline.sequence import Sequence as OrderSequence
from pipeline.streams import Stream
from pipeline.wait import Deadline
from schemas.errors import BrokerUnavailable, ConfigError, DistillogError, LogTrimmed, ManifestMismatch, SequenceGap
from schemas.records import Lineage
from student_trainer.sources.held import Held, Wait
from student_trainer.sources.reader import SoftTargetReader

log = logging.getLogger(__name__)

_IN_TURN = 1_024
"""Orders of a teacher at once: others may be as far behind, and what is stored is to be listed."""
_SHOW_EVERY = 64
"""Orders between two looks at the progress."""
_AGAIN = 0.1
"""Seconds before Kafka is asked once more."""
_MOST_PACKERS = 4
"""Threads: so many keep up with a reader, which has one."""


@dataclass(frozen=True, slots=True)
class CapturedOrders:
    """How far a teacher is captured."""

    teacher: str
    num_orders: int
    """0, 1, ... without a gap."""
    num_new: int
    """Of these, how many this capture took."""
    num_bytes: int
    """Of its files."""


class _AtEnd(Exception):
    """All that is there was read."""


def capture(
    cluster: Cluster,
    stream: Stream,
    folder: Path,
    teachers: Sequence[str] = (),
    form: CaptureForm | None = None,
    *,
    follow: bool = False,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
) -> list[CapturedOrders]:
    """Store what is there of some teachers' soft targets, up to the end of the contiguous sequence.

    It goes on where a capture into this folder ended, however that ended. What is read is what a student reads: first
    copies by the reader's rule, each held against the manifest, and a hole is an error. A record's bytes are copied.

    Args:
        cluster: where the stream is.
        stream: what to capture.
        folder: made where it is missing.
        teachers: whose labels; (): all teachers of the stream.
        form: of the files; None: as the folder has it.
        follow: go on until the stream's last order.
        stop: ends it early when set; what was stored until then is listed.
        progress: is shown how far it is.

    Raises:
        StreamNotFound: no such teacher.
        ConfigError, StreamConflict, CannotWrite, DecodeError: as `CaptureFolder`.
        SequenceGap, LogTrimmed, ManifestMismatch: as `SoftTargetReader`, once the other teachers are captured.
        StreamChanged, BrokerUnavailable, NotAuthorized: as `SoftTargetReader`.
    """
    names = list(dict.fromkeys(teachers)) or list(stream.teachers)
    lineages = {name: stream.lineage(name) for name in names}
    if not lineages:
        name = stream.manifest.stream
        raise ConfigError(
            f"stream {name!r} has no teacher, so there is nothing to capture; add one with "
            f"`distillog topics add-teacher {name} TEACHER MODEL.onnx`"
        )
    stop = stop or threading.Event()
    orders = OrderSequence.of(stream.manifest)
    heads = partial(read_heads, cluster, stream.manifest)
    with (
        CaptureFolder(
            folder,
            stream.manifest,
            [each.teacher for each in lineages.values()],
            form or CaptureForm(),
            heads,
            lineages,
        ) as captured,
        ExitStack() as stack,
    ):
        writers = captured.writers
        begun = {name: writer.next_sequence for name, writer in writers.items()}
        shown = _Shown(progress, writers, orders.num_orders)
        packers = min(_MOST_PACKERS, os.cpu_count() or 1)
        pool = stack.enter_context(ThreadPoolExecutor(packers, "packer"))
        try:
            readers: dict[str, SoftTargetReader] = {}
            until = dict.fromkeys(writers, orders.num_orders)
            for name, writer in writers.items():
                if writer.next_sequence == orders.num_orders:
                    continue
                if not follow:
                    until[name] = _labelled(cluster, stream, name)
                reader = SoftTargetReader(cluster, stream, [name], stop, keep_raw=True)
                readers[name] = stack.enter_context(closing(reader))
                reader.seek(writer.next_sequence, [_read_on(folder, orders, name)])
            failed: list[DistillogError] = []
            while readers and not stop.is_set():
                for name, reader in list(readers.items()):
                    first = writers[name].next_sequence
                    behind = min(until[name], first + _IN_TURN)
                    try:
                        _take(reader, _Packing(pool, 2 * packers, captured, name), orders, behind, shown)
                    except (SequenceGap, LogTrimmed, ManifestMismatch) as error:
                        failed.append(error)
                        del readers[name]
                        if readers:
                            log.error("%s; no more of teacher %r is captured, but of the others", error, name)
                        continue
                    now = writers[name].next_sequence
                    if now >= until[name] or (not follow and now < behind):
                        del readers[name]
                captured.save()
            if failed:
                raise failed[0]
            _learn(cluster, stream, captured, stop)
        finally:
            captured.save()  # what was stored is whole, whatever ended it
            shown.now()
        return [
            CapturedOrders(name, each.next_sequence, each.next_sequence - begun[name], each.num_bytes)
            for name, each in writers.items()
        ]


def _learn(cluster: Cluster, stream: Stream, captured: CaptureFolder, stop: threading.Event) -> None:
    """Read who publishes by now: that a folder says as of its end, whenever its capture began."""
    deadline = Deadline(READ_TIMEOUT)
    with closing(ManifestFollower(cluster, stream.manifest)) as follower:
        while not stop.is_set():
            try:
                known = follower.read().lineages
            except BrokerUnavailable:
                if deadline.over:
                    raise
                stop.wait(_AGAIN)
                continue
            captured.lineages |= {name: known[name] for name in captured.lineages if name in known}
            return


def _read_on(folder: Path, orders: OrderSequence, teacher: str) -> list[int]:
    """[P] offsets behind the last captured record of each partition of a teacher's topic: what a reader never left.

    From there the first copy of an order is what it was to a reader that was not interrupted.
    """
    with closing(CapturedFolder(folder).teacher(teacher)) as files:
        offsets = [0] * orders.partitions
        for sequence in range(max(0, files.num_orders - orders.partitions), files.num_orders):
            offsets[orders.partition(sequence)] = files.read(sequence).offset + 1
    return offsets


class _Packing:
    """Packs orders on other threads, ahead of appending them in sequence."""

    def __init__(self, pool: ThreadPoolExecutor, depth: int, captured: CaptureFolder, teacher: str) -> None:
        self.writer = captured.writers[teacher]
        self._captured, self._teacher = captured, teacher
        self._pool = pool
        self._depth = depth
        self._packed: deque[tuple[int, int, Future[bytes]]] = deque()

    def take(self, sequence: int, partition: int, held: Held, lineage: Lineage) -> None:
        """Take an order, and append the first of those that wait if they are too many."""
        self._captured.lineages[self._teacher] = lineage
        packed = self._pool.submit(self.writer.pack, partition, held.next_offset - 1, held.raw, held.address)
        self._packed.append((sequence, held.value.generation, packed))
        if len(self._packed) > self._depth:
            self._append()

    def append_all(self) -> None:
        """Append what waits."""
        while self._packed:
            self._append()

    def _append(self) -> None:
        sequence, generation, packed = self._packed[0]
        self.writer.add(sequence, packed.result(), generation)
        self._packed.popleft()


def _labelled(cluster: Cluster, stream: Stream, teacher: str) -> int:
    """The order behind the last one that a teacher has labelled by now: a live stream's end is not waited for."""
    manifest = stream.manifest
    topic = soft_targets_topic(manifest.stream, teacher)
    partitions = [TopicPartition(topic, number) for number in range(manifest.partitions)]
    with closing(cluster.reader()) as reader:
        try:
            return max(soft_targets_end(reader, each, manifest.stream_id, manifest.partitions) for each in partitions)
        except (BrokerUnavailable, SequenceGap):  # the reader waits for the one, and says what is missing of the other
            return OrderSequence.of(manifest).num_orders


def _take(reader: SoftTargetReader, packing: _Packing, orders: OrderSequence, behind: int, shown: _Shown) -> None:
    """Store what is there now of a teacher, up to an order."""

    def waits(wait: Wait) -> None:
        shown.now()
        if wait.at_end:
            raise _AtEnd

    try:
        for sequence in range(packing.writer.next_sequence, behind):
            held = reader.next(sequence, waits)
            if held is None:
                return
            packing.take(sequence, orders.partition(sequence), held[0], reader.known[held[0].value.teacher])
            if sequence % _SHOW_EVERY == 0:
                shown.now()
    except _AtEnd:
        return
    finally:
        packing.append_all()  # what was read before a hole, too


class _Shown:
    """Shows how far each teacher is."""

    def __init__(self, progress: Progress | None, writers: dict[str, TeacherWriter], num_orders: int) -> None:
        self._progress = progress
        self._writers = writers
        self._num_orders = num_orders

    def now(self) -> None:
        """Show it as it is."""
        if self._progress is None:
            return
        figures: dict[str, object] = {"MB": sum(each.num_bytes for each in self._writers.values()) / 1e6}
        figures |= {name: f"{each.next_sequence:,}/{self._num_orders:,}" for name, each in self._writers.items()}
        self._progress.update(**figures)
