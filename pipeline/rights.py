"""What each role may do on a cluster with an authorizer: the one table of it, and the commands that grant it.

READ, WRITE and DELETE of a topic or group include DESCRIBE, so that is not listed beside them.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.names import (
    dead_letters_topic,
    group_prefix,
    heads_topic,
    manifest_topic,
    run_groups,
    soft_targets_topic,
    teacher_groups,
    work_orders_topic,
)
from schemas.errors import ConfigError
from schemas.names import check_name, did_you_mean


@dataclass(frozen=True, slots=True)
class Grant:
    """Operations on one topic or group, or on all whose names begin alike."""

    operations: tuple[str, ...]
    kind: str
    """`topic` or `group`"""
    name: str
    prefixed: bool
    """whether the name is only what they begin with"""
    why: str
    """what it is for, in words"""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which topics and groups of a stream somebody is to use; what is not said is all of them."""

    stream: str
    teacher: str = ""
    run: str = ""
    stream_id: str = ""
    """part of the groups' names; without it the rights reach to all groups of streams of that name, past and future"""

    def soft_targets(self, operations: tuple[str, ...], why: str) -> Grant:
        """Of the teacher."""
        return Grant(operations, "topic", soft_targets_topic(self.stream, self.teacher), not self.teacher, why)

    def heads(self, operations: tuple[str, ...], why: str) -> Grant:
        """Of the teacher's last layers."""
        return Grant(operations, "topic", heads_topic(self.stream, self.teacher), not self.teacher, why)

    def teacher_group(self, operation: str, why: str) -> Grant:
        """Of the teacher's workers."""
        return self._group(operation, teacher_groups, self.teacher, why)

    def run_group(self, operation: str, why: str) -> Grant:
        """Under which the run reports."""
        return self._group(operation, run_groups, self.run, why)

    def _group(self, operation: str, groups: Callable[[str, str], str], name: str, why: str) -> Grant:
        if not self.stream_id:
            return Grant((operation,), "group", group_prefix(self.stream), True, why)
        return Grant((operation,), "group", groups(self.stream, self.stream_id) + name, not name, why)


def _topic(operations: tuple[str, ...], name: str, why: str) -> Grant:
    return Grant(operations, "topic", name, False, why)


def _administrator(scope: Scope) -> list[Grant]:
    groups = group_prefix(scope.stream)
    every = ("CREATE", "READ", "WRITE", "DELETE", "DESCRIBE_CONFIGS")
    return [
        Grant(
            every, "topic", f"{scope.stream}.", True, "make, read and delete the stream, its letters too, add teachers"
        ),
        Grant(("READ", "DELETE"), "group", groups, True, "see who works and trains, rewind, delete"),
    ]


def _feeder(scope: Scope) -> list[Grant]:
    return [
        _topic(("READ",), manifest_topic(scope.stream), "read what the stream is"),
        _topic(("READ", "WRITE"), work_orders_topic(scope.stream), "find where the orders end, and publish"),
        scope.soft_targets(("DESCRIBE",), "--follow: see the offsets beside which runs report"),
        scope.run_group("DESCRIBE", "--follow: see the reports"),
    ]


def _teacher(scope: Scope) -> list[Grant]:
    followed = [scope.run_group("DESCRIBE", "fleet --follow: see the reports")] if scope.run else []
    return [
        _topic(("READ",), manifest_topic(scope.stream), "read what the stream is"),
        _topic(("READ",), work_orders_topic(scope.stream), "read the orders, and commit"),
        scope.soft_targets(("READ", "WRITE"), "publish labels, and find where they end"),
        _topic(("WRITE",), dead_letters_topic(scope.stream), "publish what could not be labelled"),
        scope.teacher_group("READ", "share the orders with the other workers"),
        *followed,
    ]


def _student(scope: Scope) -> list[Grant]:
    return [
        _topic(("READ",), manifest_topic(scope.stream), "read what the stream is"),
        scope.soft_targets(("READ",), "read the labels"),
        scope.heads(("READ",), "rebuild logits of labels by the codec head; no topic of a teacher without"),
        scope.run_group("READ", "report; without it the run goes on unseen"),
        _topic(("DESCRIBE",), work_orders_topic(scope.stream), "prove holes; without it they are waited for"),
        _topic(("DESCRIBE",), dead_letters_topic(scope.stream), "the same"),
        scope.teacher_group("DESCRIBE", "the same"),
    ]


def _publisher(scope: Scope) -> list[Grant]:
    manifest = manifest_topic(scope.stream)
    writes = _topic(("READ", "WRITE"), manifest, "read what the stream is, and say which generations there are")
    return [writes, *(grant for grant in _student(scope) if grant.name != manifest)]


ROLES: dict[str, Callable[[Scope], list[Grant]]] = {
    "administrator": _administrator,
    "feeder": _feeder,
    "teacher": _teacher,
    "student": _student,
    "publisher": _publisher,
}
"""Role -> the least rights that it works with."""


def grants(role: str, scope: Scope) -> list[Grant]:
    """What a role needs, each topic and group once.

    Raises:
        ConfigError: an unknown role, or a name that no stream, teacher or run has.
    """
    if role not in ROLES:
        raise ConfigError(f"role {role!r}: {did_you_mean(role, ROLES)}")
    check_name("stream", scope.stream)
    for kind, name in (("teacher", scope.teacher), ("run", scope.run), ("stream ID", scope.stream_id)):
        if name:
            check_name(kind, name)
    needed = ROLES[role](scope)
    # Without the stream's ID two groups have one name, and whoever may read one need not be told that it is seen, too.
    read = {grant.name for grant in needed if "READ" in grant.operations}
    return [grant for grant in needed if grant.operations != ("DESCRIBE",) or grant.name not in read]


def commands(needed: Iterable[Grant], principal: str, servers: str, command_config: str = "") -> list[str]:
    """The shell lines that grant it by Kafka's own tool.

    Args:
        needed: as `grants` gives it.
        principal: who is to have it, such as `User:alice`.
        servers: the cluster.
        command_config: properties file of whoever may change rights; "": the cluster lets everybody.

    Raises:
        ConfigError: the principal is none.
    """
    kind, _, name = principal.partition(":")
    if not (kind and name and principal.isprintable()):
        raise ConfigError(f"--principal {principal!r}: write TYPE:NAME, such as User:{name or kind or 'alice'}")
    begin = ["kafka-acls.sh", "--bootstrap-server", servers]
    begin += ["--command-config", command_config] if command_config else []
    begin += ["--add", "--allow-principal", principal]
    return [shlex.join([*begin, *_resource(grant)]) for grant in needed]


def _resource(grant: Grant) -> list[str]:
    words = [word for operation in grant.operations for word in ("--operation", operation.title().replace("_", ""))]
    words += [f"--{grant.kind}", grant.name]
    return [*words, "--resource-pattern-type", "prefixed"] if grant.prefixed else words
