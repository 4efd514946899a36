"""What a cluster does not let this client do: which right, and on which topic or group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kafka import KafkaAdminClient
from kafka import errors as kafka_error


@dataclass(frozen=True, slots=True)
class Right:
    """To do one thing with one topic or group."""

    operation: str
    """as Kafka's authorizer names it, such as READ"""
    kind: str
    """`topic` or `group`"""
    name: str

    @property
    def stream(self) -> str:
        """The stream whose topic (`STREAM.work-orders`) or group (`distillog.STREAM.ID.run.NAME`) it is."""
        return self.name.split(".")[1 if self.kind == "group" else 0]

    @property
    def scope(self) -> str:
        """The options by which `topics rights` prints what grants it, to this teacher or run and to no other."""
        match self.name.split("."):
            case [_, "soft-targets" | "heads", teacher]:
                return f" --teacher {teacher}"
            case [_, _, stream_id, "teacher" | "run" as kind, name]:
                return f" --{kind} {name} --stream-id {stream_id}"
        return ""

    def __str__(self) -> str:
        text = f"{self.operation} {self.kind} {self.name}"
        # Kafka does not tell whom it shows nothing of a topic whether there is one.
        return f"{text}, nor learn whether it exists," if text.startswith("DESCRIBE topic") else text


class Refused(kafka_error.AuthorizationError):  # type: ignore[misc]
    """The cluster refuses a right that is known: kafka-python's own errors name the topic at best, and no operation."""

    def __init__(self, right: Right) -> None:
        super().__init__(str(right))
        self.right = right


_KIND_OF = {kafka_error.TopicAuthorizationFailedError: "topic", kafka_error.GroupAuthorizationFailedError: "group"}


@contextmanager
def needing(*rights: Right) -> Iterator[None]:
    """Say of an authorization error inside the block which of the rights that it needs it is about.

    Raises:
        Refused: one of these is not granted.
    """
    try:
        yield
    except Refused:
        raise
    except kafka_error.KafkaError as error:
        if right := _about(error, rights):
            raise Refused(right) from error
        raise


def _about(error: kafka_error.KafkaError, rights: Iterable[Right]) -> Right | None:
    kind = _KIND_OF.get(type(error))
    if kind is None:
        # A producer that may write to no topic gets no producer ID, and says why in the text of a bare KafkaError.
        refused = kafka_error.ClusterAuthorizationFailedError.__name__ in f"{type(error).__name__} {error}"
        return next((right for right in rights if right.operation == "WRITE"), None) if refused else None
    of_kind = [right for right in rights if right.kind == kind]
    named = [right for right in of_kind if right.name in str(error)]
    # The longest: a name may be the beginning of another. Some errors name nothing.
    return max(named, key=lambda right: len(right.name)) if named else next(iter(of_kind), None)


def describing(topics: Iterable[str]) -> list[Right]:
    """The rights to see these topics, and the offsets of what they hold."""
    return [Right("DESCRIBE", "topic", topic) for topic in topics]


def describing_groups(groups: Iterable[str]) -> list[Right]:
    """The rights to see these groups, their members and what they committed."""
    return [Right("DESCRIBE", "group", group) for group in groups]


def refuse_hidden(admin: KafkaAdminClient, topics: Iterable[str]) -> None:
    """Tell topics that this client may not see from those that are not there: whatever lists topics leaves out both.

    Raises:
        Refused: one of them may not be seen.
    """
    for answer in admin.describe_topics(list(topics)):
        if answer["error_code"] == kafka_error.TopicAuthorizationFailedError.errno:
            raise Refused(Right("DESCRIBE", "topic", answer["name"]))
