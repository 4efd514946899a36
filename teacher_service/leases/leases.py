"""The leases of a worker: a chain for each partition that its group gave it, kept true to the group and the producer.

The client may resume a partition from a stale position after a rebalance (docs/kafka.md). So nothing that a poll
returned is believed until the membership under which it came is the one that the chains were opened under, and every
position is set by hand from the group's committed offset. A lease ends when its partition is lost, when it is rewound,
or when the producer that its chain publishes through is gone; chains are opened for the producer in place, and while
there is none, not at all. A worker that leaves with grace says so in its last commit; the partitions of one that did
not are put on probation (chain.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import replace

from kafka import TopicPartition

from pipeline.kafka.log import Admin, Cluster, Commit, Member, Membership, Polled
from pipeline.names import soft_targets_topic, teacher_group, work_orders_topic
from schemas.commits import LeaseNote, encode_next_sequence
from schemas.errors import BrokerUnavailable, LogTrimmed, PositionOutOfRange, StreamChanged
from schemas.records import Manifest, Teacher
from teacher_service.leases.chain import PROBATION, Chain, Job, Mark, is_abandoned
from teacher_service.leases.starts import find_starts

log = logging.getLogger(__name__)

WARN_AFTER = 15.0
"""seconds without partitions or a word that there are none for this worker, until it says so"""
ANSWER = 5.0
"""seconds for one answer: the polling thread asks, and it has more to do"""


class Leases:
    """The partitions that this worker owns; used by the polling thread alone, but for `in_hand`."""

    def __init__(
        self,
        cluster: Cluster,
        member: Member,
        manifest: Manifest,
        teacher: Teacher,
        producer: Callable[[], int | None],
        unhurried: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.chains: dict[int, Chain] = {}
        """by partition"""
        self.num_rebalances = 0
        self._cluster = cluster
        self._member = member
        self._manifest = manifest
        self._producer = producer
        """the generation of the producer in place; None: there is none"""
        self._unhurried = unhurried
        """around what may take long and is no hang"""
        self._group = teacher_group(manifest, teacher.name)
        self._orders = work_orders_topic(manifest.stream)
        self._targets = soft_targets_topic(manifest.stream, teacher.name)
        self.admin: Admin = cluster.admin(ANSWER)
        """for the polling thread, which has no time to lose"""
        self._membership: Membership | None = None
        self._in_place = False
        """the positions of the membership are those of the chains"""
        self._settled_at = time.monotonic()
        self._warn_at = WARN_AFTER
        self._paused = False
        self._held_back: set[TopicPartition] = set()
        """paused while enough of their jobs wait for others of theirs"""
        self._pending: dict[int, Mark] = {}
        """commits under way: they may have succeeded although nobody said so"""
        self._found: dict[int, Mark] = {}
        """where chains begin that the group has not committed yet: reading a log for it may outlast the membership"""

    def close(self) -> None:
        """Close the client beside the member's."""
        self.admin.close()

    @property
    def in_hand(self) -> int:
        """Jobs accepted and not acknowledged yet, of all chains."""
        return sum(chain.in_hand for chain in list(self.chains.values()))

    @property
    def lag(self) -> int:
        """Work orders of these partitions that are not acknowledged, as far as the last polls told."""
        ends = {number: self._member.known_end(TopicPartition(self._orders, number)) for number in self.chains}
        return sum(max(0, (ends[number] or 0) - chain.done.offset) for number, chain in self.chains.items())

    @property
    def member_id(self) -> str | None:
        """Of the member whose chains are those of its partitions; None while it is none."""
        return self._membership.member_id if self._in_place and self._membership else None

    def ask_anew(self) -> None:
        """Ask for the partitions to be shared out anew."""
        self._member.rejoin()

    @property
    def begun(self) -> int:
        """Of these, jobs that were begun."""
        return sum(chain.in_hand - chain.waiting for chain in self.chains.values())

    @property
    def on_trial(self) -> set[int]:
        """Partitions on probation of which an order is under way: who holds them is to see how it ends."""
        return {partition for partition, chain in list(self.chains.items()) if chain.on_trial}

    @property
    def unheld(self) -> bool:
        """Whether a commit is needed before anything of some chain may begin."""
        return not all(chain.held for chain in self.chains.values())

    def to_begin(self) -> list[Job]:
        """Return the jobs that may begin now, each once."""
        return [job for chain in self.chains.values() for job in chain.to_begin()]

    def leave(self, gave_up: Collection[int] = ()) -> None:
        """Begin nothing more; the next commit says that this worker left with grace.

        Args:
            gave_up: partitions of which an order may hang: of them it does not say so.
        """
        for chain in self.chains.values():
            chain.leave(chain.partition in gave_up)

    def refuse_long_wait(self, patience: float) -> None:
        """Give up on a membership that does not come, and say before that what is waited for.

        Raises:
            BrokerUnavailable: no poll was believed for `patience` seconds.
        """
        waited = time.monotonic() - self._settled_at
        if waited < WARN_AFTER:
            self._warn_at = WARN_AFTER
            return
        why = "no producer could be made" if self._producer() is None else f"not taken into group {self._group}"
        if waited > patience:
            raise BrokerUnavailable(f"{why} within {patience:.0f} s; leaving")
        if waited >= self._warn_at:
            self._warn_at = 2 * waited
            log.warning("%s for %.0f s; waiting up to %.0f s for it", why, waited, patience)

    def poll(self, timeout: float) -> Polled:
        """Poll, and return records only where they continue what the chains know.

        Raises:
            LogTrimmed: retention removed work orders that are not labelled yet.
            BrokerUnavailable, ConfigError: no answer, or a refusal.
        """
        try:
            polled = self._member.poll(timeout)
        except PositionOutOfRange as error:
            raise LogTrimmed(
                f"{self._orders}: work orders that were not labelled yet were removed by retention ({error}); "
                "the stream has lost them: make it again"
            ) from None
        if not self._settle():
            return {}
        self._settled_at = time.monotonic()
        return polled

    def rewind(self, partition: int) -> None:
        """Go back to the committed offset: the lease ends now, a later poll takes a new one."""
        if partition in self.chains:
            self.chains.pop(partition).end()

    def read_again(self) -> None:
        """Let what was polled and not taken come again: the next poll seeks to what the chains expect."""
        self._in_place = False

    def _drop_lost(self, owned: set[int], producer: int | None) -> None:
        """End the leases of partitions that are this worker's no more, and of chains whose producer is gone."""
        for partition, chain in list(self.chains.items()):
            if partition not in owned or chain.producer != producer:
                self.rewind(partition)

    def balance(self, high: int, low: int) -> None:
        """Pause all partitions at once while `high` jobs are under way, until `low` are; polling goes on.

        Partitions of which enough wait to begin, on probation, are paused alone: they are not to hold up the others.
        """
        partitions = self._member.assignment()
        if self._paused and self.begun <= low:
            self._member.resume(partitions)
            self._paused = False
        elif self.begun >= high:
            self._member.pause(partitions)
            self._paused = True
        waiting = {partition for partition, chain in self.chains.items() if chain.waiting >= PROBATION}
        held_back = {TopicPartition(self._orders, partition) for partition in waiting}
        self._member.pause(held_back)
        if not self._paused:
            self._member.resume(self._held_back - held_back)
        self._held_back = held_back

    def stay(self) -> None:
        """Remain a member while the last jobs end; what comes meanwhile is for others."""
        self._member.pause(self._member.assignment())
        self._member.poll(0.02)
        self._drop_lost(self._owned(), self._producer())  # its new owner commits now

    def end_offset(self, partition: int) -> int:
        """Offset behind the last work order of a partition."""
        orders = TopicPartition(self._orders, partition)
        with self._unhurried():
            return self._member.ends([orders])[orders]

    def commit(self, timeout: float) -> bool:
        """Commit the contiguous acknowledged prefix of every chain that has a new one; False: not (all) taken.

        The commit is fenced by membership: one of an older generation is refused by the broker, and the next poll
        finds out why. It is always true, whoever makes it: what it covers is acknowledged in the log.
        """
        chains = [chain for chain in self.chains.values() if chain.dirty]
        if not chains:
            return True
        marks = [chain.to_commit for chain in chains]
        self._pending = {chain.partition: mark for chain, mark in zip(chains, marks, strict=True)}
        commits = {TopicPartition(self._orders, partition): _commit(mark) for partition, mark in self._pending.items()}
        if not self._member.commit(commits, timeout):
            return False
        for chain, mark in zip(chains, marks, strict=True):
            chain.committed = mark
            self._found.pop(chain.partition, None)
        self._pending = {}
        return True

    def group_is_done(self) -> bool:
        """Whether the whole group has committed every record of the work orders."""
        orders = [TopicPartition(self._orders, partition) for partition in range(self._manifest.partitions)]
        with self._unhurried():
            ends = self._member.ends(orders)
            committed = self.admin.committed({self._group: orders}).get(self._group, {})
        return all(not ends[tp] or (tp in committed and committed[tp].offset >= ends[tp]) for tp in orders)

    def _owned(self) -> set[int]:
        return {topic_partition.partition for topic_partition in self._member.assignment()}

    def _settle(self) -> bool:
        """Bring the chains in line after a poll; False: they changed, so what it returned must be dropped."""
        # Each is asked for once: chains are opened for the very producer that the others were compared with.
        membership, producer, owned = self._member.membership, self._producer(), self._owned()
        self._drop_lost(owned, producer)
        if membership is None or producer is None:
            self._in_place = False  # what this poll returned is dropped, whoever is a member at the next one
            return False
        self._in_place = self._in_place and membership == self._membership and self.chains.keys() == owned
        if self._in_place:
            return True
        with self._unhurried():
            self._open(owned, producer, membership.member_id)
        self._settled_at = time.monotonic()  # reading a log for its end may have taken long
        self._in_place = True
        self.num_rebalances += membership != self._membership
        self._membership = membership
        return False

    def _open(self, partitions: set[int], producer: int, me: str) -> None:
        """Go on at the committed offsets, except where a chain is there and the commit is this member's own last.

        Raises:
            StreamChanged: somebody added partitions.
        """
        if max(partitions, default=0) >= self._manifest.partitions:
            raise StreamChanged(
                f"topic {self._orders} has more than {self._manifest.partitions} partitions now; the sequence needs "
                "the number that it began with: make the stream anew"
            )
        orders = [TopicPartition(self._orders, partition) for partition in sorted(partitions)]
        committed = self.admin.committed({self._group: orders}).get(self._group, {})
        fresh: dict[int, Commit | None] = {}
        for topic_partition in orders:
            partition, there = topic_partition.partition, committed.get(topic_partition)
            chain = self.chains.get(partition)
            if chain is not None and chain.holder == me and there in self._own_commits(chain):
                self._seek(partition, chain.read.offset)  # a stale position may lie ahead
            else:
                fresh[partition] = there
        starts = find_starts(self._cluster, self._manifest, self._targets, fresh, self._found)
        members = self._members({start.note.holder for start in starts.values()} - {"", me})
        abandoned = {partition for partition, start in starts.items() if is_abandoned(start.note, me, members)}
        for partition, start in starts.items():
            self.rewind(partition)
            # A start that the group does not know is committed soon: without offsets it would be looked for each time.
            known = start if fresh[partition] is not None else None
            probation = 0 if partition in abandoned else start.note.probation
            attempts = start.note.attempts
            if attempts and start.note.holder and partition not in abandoned:
                attempts -= 1  # the one in hand ended nobody: its worker is alive
            start = replace(start, note=LeaseNote(me, probation, attempts))
            self.chains[partition] = Chain(partition, producer, start, self._manifest.partitions, known)
            self._seek(partition, start.offset)
        if abandoned:
            log.warning(
                "%s: the last worker of %d partitions ended without a word: one order of each at a time, until %d are "
                "labelled",
                self._orders,
                len(abandoned),
                PROBATION,
            )

    def _members(self, holders: set[str]) -> set[str]:
        """Members of the group, asked for only where partitions had other holders."""
        return {member.member_id for member in self.admin.members(self._group)} if holders else set()

    def _own_commits(self, chain: Chain) -> set[Commit | None]:
        """What the group may show if nobody but this worker committed; None: it shows nothing."""
        own = {_commit(chain.committed) if chain.committed else None}
        if chain.partition in self._pending:
            own.add(_commit(self._pending[chain.partition]))
        return own

    def _seek(self, partition: int, offset: int) -> None:
        try:
            self._member.seek(TopicPartition(self._orders, partition), offset)
        except ValueError:  # revoked a moment ago: the next poll says so
            self.rewind(partition)


def _commit(mark: Mark) -> Commit:
    return Commit(mark.offset, encode_next_sequence(mark.sequence, mark.note))
