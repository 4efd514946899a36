"""The run's report to others: once a second, whatever the training thread is doing.

P partitions. Commits to the run's group, which has no members: how many orders of each partition lie behind it, as
offsets of the soft targets, and beside one of them a `RunReport`. Never read back by the run: the checkpoint is the
truth.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from kafka import TopicPartition

from pipeline.kafka.log import Admin, Cluster, Commit
from pipeline.names import run_group, soft_targets_topic
from pipeline.sequence import Sequence
from pipeline.streams import Stream
from schemas.commits import RUN_STATES, STATES_OVER, RunReport
from schemas.errors import NotAuthorized, RunLocked
from student_trainer.sources.base import Cursor

log = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two commits."""
_ANSWER = 5.0
"""Seconds for which one answer is waited for."""
_FAREWELL = 5.0
"""Seconds for which `close` waits for the last commit."""
_INSIST = 5
"""How often, every half period, a run that must stop says so."""


class RunReporter:
    """A `Reporter` with a thread of its own.

    It reports from the first `trained` on, which is to be called with the start, too.

    Two processes that report under one run's name notice each other and both stop: the files of a run folder are
    locked, but the same run may have been started on another machine. One that is silent is taken over from.

    A run that may not commit for its group says so once and reports nothing.

    Use as a context manager: an error inside the block makes the last report "failed", unless the run said already how
    it ended.

    Raises:
        BrokerUnavailable: no broker answered.
    """

    def __init__(
        self,
        cluster: Cluster,
        stream: Stream,
        run: str,
        teachers: Iterable[str],
        starving: Callable[[], bool] = lambda: False,
        run_id: str | None = None,
        passes: int | None = None,
        left_out: Callable[[], Cursor | None] = lambda: None,
    ) -> None:
        """Begin to report.

        Args:
            cluster, stream, run, teachers: whose reports they are.
            starving: whether the next label is missing.
            run_id: None: a random one.
            passes: how often the run goes over the stream; None where its steps end it.
            left_out: behind which order the last one ends that gave no rows, since its labels were too old. A run that
                starves stands there: no step moves its cursor, and a feeder that waits for one would wait for ever.
        """
        self.run_id = run_id or secrets.token_hex(8)
        """Random for each process."""
        self._manifest = stream.manifest
        self._sequence = Sequence.of(stream.manifest)
        self._run = run
        self._group = run_group(stream.manifest, run)
        self._topics = [soft_targets_topic(stream.manifest.stream, teacher) for teacher in teachers]
        self._first = TopicPartition(self._topics[0], 0)
        self._starving = starving
        self._left_out = left_out
        self._stood: Cursor | None = None
        """The farthest that a starving run has stood."""
        self._passes = passes
        self._host = socket.gethostname()
        # Nothing is reported before it is known: a resumed run that seems to stand at 0 would stop the feeder, whose
        # orders it may need.
        self._cursor: Cursor | None = None
        self._checkpointed = 0
        self._state = "training"
        self._committed: dict[TopicPartition, int] = {}
        self._allowed = True
        """whether the cluster lets this run report"""
        self.error: RunLocked | None = None
        """Why the run must stop: what `trained` raises; to be looked at where no step is taken."""
        self._closed = threading.Event()
        self._admin: Admin = cluster.admin(_ANSWER)
        self._thread = threading.Thread(target=self._report, name="reporter", daemon=True)
        self._thread.start()

    def trained(self, cursor: Cursor) -> None:
        """Take note of where the next step starts.

        Raises:
            RunLocked: another process reports under this run's name.
        """
        self._cursor = cursor
        if self.error is not None:
            raise self.error

    def checkpointed(self, cursor: Cursor) -> None:
        """Take note that a checkpoint with this cursor is on disk."""
        self._cursor, self._checkpointed = cursor, cursor.sequence

    def state(self, state: str) -> None:
        """Take note of what the run does: one of RUN_STATES."""
        assert state in RUN_STATES, state
        self._state = state

    def close(self) -> None:
        """Commit a last time, in the state that was told last, and end the thread; waits 5 s at most."""
        self._closed.set()
        if threading.current_thread() is not self._thread:  # as where it came to collect the garbage
            self._thread.join(timeout=_FAREWELL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and self._state not in STATES_OVER:
            self._state = "failed"
        self.close()

    def _report(self) -> None:
        try:
            last = False
            while not last and self.error is None and self._allowed:
                last = self._closed.is_set()
                self._tick()
                if self.error is None:
                    self._closed.wait(EVERY)
        finally:
            self._admin.close()

    def _tick(self) -> None:
        if self._cursor is None:
            return
        try:
            other = self._read()
            # Before the first commit it is the run's earlier process; should it still live, it will find ours.
            if self._committed and other is not None and other.run_id != self.run_id:
                self._state = "failed"
                self._commit(self._cursor)  # so that the other one notices, even if it was the later one
                self.error = RunLocked(
                    f"run {self._run!r} of stream {self._manifest.stream!r} is being trained by {other.host} too "
                    f"(run ID {other.run_id}); both stop: give one of them another name, then resume"
                )
                if not other.over:
                    self._insist(self._cursor)
                return
            self._commit(self._cursor)
        except NotAuthorized as error:
            self._allowed = False
            log.warning("%s; the run goes on, but unseen by `feed --follow`, `fleet --follow` and `topics lag`", error)
        except Exception as error:
            # Nothing that Kafka answers, or fails to answer, may end a training: the report is late, no more.
            log.debug("reporting for run %s: %s: %s", self._run, type(error).__name__, error)

    def _insist(self, cursor: Cursor) -> None:
        """Report the failure again until the other process has seen it.

        It may have looked just before the first report of the failure and written its own over it right after: then
        it would train on. Half a period later it sleeps, and what is written then is what it reads next.
        """
        for _ in range(_INSIST):
            time.sleep(EVERY / 2)
            other = self._read()
            if other is not None and other.run_id != self.run_id and other.over:
                return
            self._commit(cursor)

    def _read(self) -> RunReport | None:
        committed = self._admin.committed({self._group: [self._first]}).get(self._group, {}).get(self._first)
        return RunReport.decode(committed.metadata) if committed is not None else None

    def _commit(self, cursor: Cursor) -> None:
        state = self._state
        starving = self._starving()
        if state == "training" and starving:
            state = "starving"
        if starving:
            self._stood = self._left_out() or self._stood
        if self._stood and (cursor.pass_number, cursor.sequence) < (self._stood.pass_number, self._stood.sequence):
            cursor = self._stood
        at, place = time.time(), (cursor.pass_number, cursor.sequence, self._checkpointed)
        report = RunReport(*place, at, self.run_id, self._host, state, self._passes)
        partitions = self._manifest.partitions
        # Records that lie in the log twice are counted once: where the run reads is its source's own business.
        orders = [(self._sequence.next_in(p, cursor.sequence) - p) // partitions for p in range(partitions)]
        commits: dict[TopicPartition, Commit] = {}
        for topic in self._topics:
            for number, offset in enumerate(orders):
                partition = TopicPartition(topic, number)
                if self._committed.get(partition) != offset:
                    commits[partition] = Commit(offset)
        commits[self._first] = Commit(orders[0], report.encode())
        self._admin.commit(self._group, commits)
        self._committed |= {partition: commit.offset for partition, commit in commits.items()}
