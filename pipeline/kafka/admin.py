"""Asking the cluster with kafka-python's admin client: each question again until it is answered or patience ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from kafka import KafkaAdminClient, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_error
from kafka.admin import MemberToRemove, OffsetSpec

from pipeline.kafka.clients import new_admin
from pipeline.kafka.coordinator import describe_groups, members_of
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.log import Commit, GroupMember, TopicIdentity
from pipeline.kafka.needs import Right, describing, describing_groups, needing, refuse_hidden
from pipeline.kafka.settings import KafkaSettings
from pipeline.wait import Deadline
from schemas.errors import BrokerUnavailable, StreamConflict

T = TypeVar("T")

ANSWER_TIMEOUT = 5.0
"""seconds for one answer; a broker that is frozen takes no more of a question's time"""

_PAUSE = 0.2


class KafkaAdmin:
    """An Admin over an admin client that finds coordinators anew."""

    def __init__(self, settings: KafkaSettings, stopped: Callable[[], bool] | None, patience: float) -> None:
        self._settings = settings
        self._stopped = stopped or (lambda: False)
        self._patience = patience
        answer_ms = settings.options.get("request_timeout_ms", int(min(patience, ANSWER_TIMEOUT) * 1000))
        self._admin = new_admin(settings, stopped, request_timeout_ms=answer_ms)

    def committed(
        self, groups: Mapping[str, Iterable[TopicPartition] | None]
    ) -> dict[str, dict[TopicPartition, Commit]]:
        """What groups committed; see `Admin`."""
        if not groups:
            return {}
        asked = {group: None if wanted is None else list(wanted) for group, wanted in groups.items()}
        topics = {partition.topic for wanted in asked.values() for partition in wanted or ()}
        rights = [*describing_groups(asked), *describing(topics)]
        found = self._ask("reading committed offsets", lambda: self._admin.list_group_offsets(asked), *rights)
        return {
            group: {
                partition: Commit(one.offset, one.metadata or "")
                for partition, one in found.get(group, {}).items()
                if one.offset >= 0
            }
            for group in groups
        }

    def commit(self, group: str, commits: Mapping[TopicPartition, Commit]) -> None:
        """Commit for a group that has no members; see `Admin`."""
        if not commits:
            return
        offsets = {at: OffsetAndMetadata(commit.offset, commit.metadata, -1) for at, commit in commits.items()}

        def question() -> None:
            for answer in self._admin.alter_group_offsets(group, offsets).values():
                if answer is kafka_error.UnknownMemberIdError:
                    raise StreamConflict(f"group {group} has members: nobody else may change its offsets")
                if answer is not kafka_error.NoError:
                    raise answer()

        topics = {partition.topic for partition in commits}
        rights = [Right("READ", "group", group), *(Right("READ", "topic", topic) for topic in topics)]
        self._ask(f"committing for {group}", question, *rights)

    def ends(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Offset behind the last record of each."""
        specs = dict.fromkeys(partitions, OffsetSpec.LATEST)
        if not specs:
            return {}
        found = self._ask("asking for the last offsets", lambda: last_offsets(self._admin, specs))
        return {partition: int(found[partition].offset) for partition in specs}

    def num_members(self, groups: Iterable[str]) -> dict[str, int]:
        """How many members each group has."""
        wanted = list(groups)
        if not wanted:
            return {}
        rights = describing_groups(wanted)
        return self._ask("describing groups", lambda: self._num_members(wanted), *rights)

    def _num_members(self, groups: list[str]) -> dict[str, int]:
        described = describe_groups(self._admin, groups)
        return {group: len(described[group]["members"]) for group in groups}

    def members(self, group: str) -> list[GroupMember]:
        """Who is in a group; see `Admin`."""
        described = self._ask(
            f"describing group {group}", lambda: describe_groups(self._admin, [group]), *describing_groups([group])
        )
        return members_of(described[group])

    def remove(self, group: str, member_ids: Collection[str]) -> None:
        """Let members leave that cannot do so themselves; see `Admin`."""
        gone = [MemberToRemove(member_id=one, reason="its process has ended") for one in member_ids]
        if gone:
            right = Right("READ", "group", group)
            self._ask(f"removing members from {group}", lambda: self._remove(group, gone), right)

    def _remove(self, group: str, gone: list[MemberToRemove]) -> None:
        for answer in self._admin.remove_group_members(group, gone).values():
            if answer not in (kafka_error.NoError, kafka_error.UnknownMemberIdError):
                raise answer()

    def identities(self, topics: Iterable[str]) -> dict[str, TopicIdentity | None]:
        """What each topic is; None: it does not exist."""
        wanted = sorted(topics)
        return self._ask("describing topics", lambda: self._identities(wanted), *describing(wanted))

    def _identities(self, topics: list[str]) -> dict[str, TopicIdentity | None]:
        described: dict[str, Any] = {topic["name"]: topic for topic in self._admin.describe_topics(topics)}
        found: dict[str, TopicIdentity | None] = {}
        for topic in topics:
            answer = described.get(topic)
            error = kafka_error.for_code(answer["error_code"]) if answer else kafka_error.UnknownTopicOrPartitionError
            if answer is None or error is kafka_error.UnknownTopicOrPartitionError:
                found[topic] = None
            elif error is not kafka_error.NoError:
                raise error(f"topic {topic}")
            else:
                found[topic] = TopicIdentity(str(answer["topic_id"]), len(answer["partitions"]))
        return found

    def close(self) -> None:
        """Close it."""
        self._admin.close()

    def _ask(self, what: str, question: Callable[[], T], *rights: Right) -> T:
        """Put a question that needs rights, again while the answer may come right by itself."""
        deadline = Deadline(self._patience)
        while True:
            try:
                with kafka_errors(what, self._settings), needing(*rights):
                    return question()
            except BrokerUnavailable as error:
                if deadline.over or self._stopped() or not _may_come_right(error.__cause__):
                    raise
            time.sleep(min(_PAUSE, deadline.left))


def last_offsets(admin: KafkaAdminClient, specs: Mapping[TopicPartition, OffsetSpec]) -> dict[TopicPartition, Any]:
    """Ask for offsets; the client takes a topic that may not be seen for one that is not there.

    Raises:
        Refused: a topic may not be seen.
        UnknownTopicOrPartitionError: one is not there.
    """
    topics = {partition.topic for partition in specs}
    with needing(*describing(topics)):
        try:
            return admin.list_partition_offsets(specs)  # type: ignore[no-any-return]
        except kafka_error.UnknownTopicOrPartitionError:
            refuse_hidden(admin, topics)
            raise


def _may_come_right(error: BaseException | None) -> bool:
    # A broker unknown since it died has a successor in a moment; a topic that is not there has none.
    if isinstance(error, kafka_error.UnknownTopicOrPartitionError):
        return False
    return isinstance(error, kafka_error.UnknownBrokerIdError) or getattr(error, "retriable", False)
