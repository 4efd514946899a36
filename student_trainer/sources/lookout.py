"""A thread that asks Kafka about the teachers while a reader waits, so that the reader never blocks on an answer.

Every 5 s it compares the topics' identities; while the reader waits it looks, once a second, whether the topics that
workers need are still there (a replay does without), at the teacher groups' commits, at the ends of the logs behind
them, and at how many members the groups have. A student that may not see these learns all the same, but proves no hole,
and says so once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from kafka import TopicPartition

from pipeline.kafka.log import Admin, Cluster
from pipeline.names import dead_letters_topic, manifest_topic, soft_targets_topic, teacher_group, work_orders_topic
from pipeline.readers_rule import Look, TeacherPartition
from pipeline.streams import Stream, TopicGuard, topic_missing
from schemas.commits import decode_next_sequence
from schemas.errors import DistillogError, NotAuthorized, StreamChanged

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds between two looks while the reader waits."""
_GUARD_EVERY = 5.0
_ANSWER = 5.0
"""Seconds that one question may take; with 30 s would let a broker that is back wait for an old question."""
_SLOW = 2.0
"""Seconds after which a question counts as unanswered."""


class Lookout:
    """Answers lie in `looks`, `members` and `trouble`; what ends the run is raised by `check`.

    Raises:
        StreamChanged: the manifest's topic, or one of the teachers', does not exist.
        NotAuthorized: one of them may not be seen.
        BrokerUnavailable: no broker answered.
    """

    def __init__(self, cluster: Cluster, stream: Stream, teachers: Sequence[str]) -> None:
        self._stream = stream
        self._teachers = tuple(teachers)
        topics = [soft_targets_topic(stream.manifest.stream, teacher) for teacher in teachers]
        topics.append(manifest_topic(stream.manifest.stream))
        self._guard = TopicGuard(cluster, topics, _GUARD_EVERY)
        try:
            self._admin: Admin = cluster.admin(_ANSWER)
        except BaseException:
            self._guard.close()
            raise
        self._changed = threading.Condition()
        self._wanted: tuple[TeacherPartition, ...] = ()
        self._fresh = False
        self._suspicious = False
        self._closed = False
        self._proves = True
        """whether what proofs of holes need may be seen"""
        self._error: DistillogError | None = None
        self._looks: dict[TeacherPartition, Look] = {}
        self.members: dict[str, int] = {}
        """Teacher -> members of its group, as far as they are known."""
        self._trouble = ""
        self._asking_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)
        self._thread.start()

    def want(self, logs: Sequence[TeacherPartition]) -> dict[TeacherPartition, Look]:
        """Say what the reader waits for, and take what is known about it; () when it waits no longer."""
        wanted = tuple(logs)
        with self._changed:
            if wanted != self._wanted:
                # A look at an earlier wait says nothing: the group may have been rewound since.
                self._wanted, self._looks, self._fresh = wanted, {}, bool(wanted)
                self._changed.notify()
            return dict(self._looks)

    @property
    def trouble(self) -> str:
        """Why Kafka gave no answer lately; empty if it did."""
        since = self._asking_since
        if since is not None and (seconds := time.monotonic() - since) > _SLOW:
            return f"silent for {seconds:.0f} s"
        return self._trouble

    def suspect(self) -> None:
        """Compare the topics' identities now: a record of another stream was met."""
        with self._changed:
            self._suspicious = True
            self._changed.notify()

    def check(self) -> None:
        """Raise what the thread found.

        Raises:
            StreamChanged: a topic was deleted, or deleted and made again.
            NotAuthorized: one may not be seen any more.
        """
        if self._error is not None:
            raise self._error

    def check_now(self) -> None:
        """Compare the topics' identities in the caller's thread, which may wait for seconds; raises StreamChanged."""
        self._guard.check(now=True)

    def close(self) -> None:
        """End the thread; it closes its clients itself, since it may be in the middle of a question."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=0.3)

    def _run(self) -> None:
        try:
            self._try_rights()
            while self._wait():
                self._look()
        except DistillogError as error:
            self._error = error
        finally:
            self._guard.close()
            self._admin.close()

    def _try_rights(self) -> None:
        """Ask once at the start: a missing right is not to be found out only when a label is missing."""
        with suppress(StreamChanged):  # a replay does without those topics
            self._answer([(teacher, 0) for teacher in self._teachers])

    def _wait(self) -> bool:
        """Sleep until there is something to ask; False when closed."""
        with self._changed:
            if not (self._fresh or self._suspicious or self._closed):
                self._changed.wait(LOOK_EVERY)
            self._fresh = False
            return not self._closed

    def _look(self) -> None:
        with self._changed:
            wanted, suspicious, self._suspicious = self._wanted, self._suspicious, False
        self._asking_since = time.monotonic()
        try:
            self._guard.check(now=suspicious)
            looks = self._answer(wanted) if wanted else {}
        finally:
            self._asking_since = None
        if looks is not None:
            with self._changed:
                if wanted == self._wanted:
                    self._looks = looks

    def _answer(self, wanted: Sequence[TeacherPartition]) -> dict[TeacherPartition, Look] | None:
        """Ask; None, and `trouble`, where there is no answer. Raises StreamChanged: no label will ever come."""
        try:
            looks = self._ask(wanted) if self._proves else self._at_ends(wanted, {})
        except StreamChanged:
            raise
        except NotAuthorized as error:
            if self._proves:
                log.warning("%s; the run goes on, but a label that is lost is waited for, not proven missing", error)
            self._proves, self.members, self._trouble = False, {}, ""
            return {}
        except Exception as error:
            # A broker that is away, restarting, half-informed or unwilling answers with much more than errors of ours,
            # and none of it says anything about the log: the reader's own deadline ends the wait, and quotes this.
            self._trouble = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
            log.debug("asking about %s: %s", wanted, self._trouble)
            return None
        self._trouble = ""
        return looks

    def _ask(self, wanted: Sequence[TeacherPartition]) -> dict[TeacherPartition, Look]:
        manifest = self._stream.manifest
        groups = {teacher_group(manifest, teacher): teacher for teacher, _ in wanted}
        orders = work_orders_topic(manifest.stream)
        for topic, identity in self._admin.identities([orders, dead_letters_topic(manifest.stream)]).items():
            if identity is None:
                raise StreamChanged(topic_missing(topic))
        committed = self._admin.committed(
            {group: [TopicPartition(orders, p) for t, p in wanted if t == teacher] for group, teacher in groups.items()}
        )
        commits: dict[TeacherPartition, int] = {}
        for group, teacher in groups.items():
            for partition, commit in committed.get(group, {}).items():
                # -1, where it does not say, proves nothing.
                number = partition.partition
                sequence = decode_next_sequence(commit.metadata, number, manifest.partitions, commit.offset)
                commits[(teacher, number)] = -1 if sequence is None else sequence
        # After the commits: only then does the end cover what they count.
        looks = self._at_ends(wanted, commits)
        members = self._admin.num_members(groups)
        self.members = {teacher: members[group] for group, teacher in groups.items()}
        return looks

    def _at_ends(
        self, wanted: Sequence[TeacherPartition], commits: Mapping[TeacherPartition, int]
    ) -> dict[TeacherPartition, Look]:
        """Look where the logs end; where no commit is known, or may be seen, it proves nothing (-1)."""
        name = self._stream.manifest.stream
        topics = {TopicPartition(soft_targets_topic(name, t), p): (t, p) for t, p in wanted}
        ends = self._admin.ends(topics)
        return {place: Look(commits.get(place, -1), ends[partition]) for partition, place in topics.items()}
