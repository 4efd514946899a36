"""Questions that a group's coordinator answers, asked again while there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from kafka import KafkaAdminClient
from kafka import errors as kafka_error

from pipeline.kafka.bids import decode_bid
from pipeline.kafka.log import GroupMember
from pipeline.kafka.needs import Refused, Right, needing
from pipeline.wait import Deadline

T = TypeVar("T")

_NOT_YET = (
    kafka_error.CoordinatorNotAvailableError,
    kafka_error.CoordinatorLoadInProgressError,
    kafka_error.NotCoordinatorError,
    kafka_error.NodeNotReadyError,
)
"""Answers that only say "ask again": a coordinator is being chosen, or a connection made again."""


def ask_coordinator(question: Callable[[], T], timeout: float = 10.0) -> T:
    """Ask a group's coordinator, and again while it is being chosen or has just come back.

    The admin client itself does not retry; the first question to a new cluster is what makes it choose a coordinator,
    and a broker that was away is not asked at all until a back-off is over.
    """
    deadline = Deadline(timeout)
    while True:
        try:
            return question()
        except _NOT_YET:
            if deadline.over:
                raise
            time.sleep(0.2)


def describe_groups(admin: KafkaAdminClient, groups: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Describe groups; one that nobody has joined yet is "Dead", and has no members.

    The client tells errors as text beside the answer, and a group in error seems to have no members.

    Raises:
        KafkaError: a group could not be described.
    """
    return refuse_errors(admin.describe_groups(list(groups)))


def refuse_errors(described: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what the client says of groups, unless an error is among it."""
    for group, answer in described.items():
        error = answer["error"]
        if error and "GroupAuthorizationFailed" in error:
            raise kafka_error.GroupAuthorizationFailedError(group)
        if error and answer["group_state"] != "Dead":
            raise kafka_error.CoordinatorNotAvailableError(f"group {group}: {error}")
    return described


def delete_groups(admin: KafkaAdminClient, groups: list[str]) -> dict[str, str]:
    """Delete groups; what became of each: "OK", or the name of an error, as of one that has members.

    Raises:
        Refused: one may not be deleted.
    """
    if not groups:
        return {}
    with needing(*(Right("DELETE", "group", group) for group in groups)):
        results: dict[str, str] = ask_coordinator(lambda: admin.delete_groups(groups))
    for group, result in results.items():
        if result == kafka_error.GroupAuthorizationFailedError.__name__:
            raise Refused(Right("DELETE", "group", group))
    return results


def members_of(described: dict[str, Any]) -> list[GroupMember]:
    """Read the members of a group as `describe_groups` returned it."""
    return [
        GroupMember(
            member["member_id"],
            _printable(member["client_id"]),
            member["client_host"].lstrip("/"),
            decode_bid(_fields(member["member_metadata"]).get("user_data")),
            tuple(
                partition
                for topic in _fields(member["member_assignment"]).get("assigned_partitions", ())
                for partition in topic["partitions"]
            ),
        )
        for member in described["members"]
    ]


def _printable(name: str) -> str:
    """Ours are; what a foreign member calls itself is not to steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _fields(value: Any) -> dict[str, Any]:
    # During a rebalance it is empty text.
    return value if isinstance(value, dict) else {}
