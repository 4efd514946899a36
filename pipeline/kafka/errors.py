"""kafka-python's errors as one line of ours each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kafka import errors as kafka_error

from pipeline.kafka.needs import Refused
from pipeline.kafka.settings import KafkaSettings
from schemas.errors import BrokerUnavailable, ConfigError, NotAdmitted, NotAuthorized, RecordTooLarge

_NO_ANSWER = (
    kafka_error.KafkaTimeoutError,
    kafka_error.KafkaConnectionError,
    kafka_error.NodeNotReadyError,
    kafka_error.RequestTimedOutError,
)
_LONGEST = 300
"""Characters of an error of Kafka's that are passed on."""


@contextmanager
def kafka_errors(what: str, settings: KafkaSettings) -> Iterator[None]:
    """Turn an error of kafka-python inside the block into one of ours.

    Raises:
        NotAdmitted: the cluster lets none of our clients in.
        BrokerUnavailable: no broker, no answer in time, an answer that is an error, or a login that is not yet believed
            to be refused for good.
        NotAuthorized: the cluster refuses a right; say which inside the block, with `needing`.
        ConfigError: a clock is wrong, or nothing here unpacks a batch.
        RecordTooLarge: a record is over the cluster's limit.
    """
    where = settings.bootstrap_servers
    try:
        with _refusals(what, settings):
            yield
    except kafka_error.AuthorizationError as error:
        raise NotAuthorized(f"{what}: {_missing_right(error, settings)}") from error
    except kafka_error.SaslAuthenticationFailedError as error:
        # As long as it is no refusal of ours: it was good before.
        raise BrokerUnavailable(f"{what}: Kafka at {where} refuses the login for now") from error
    except kafka_error.MessageSizeTooLargeError as error:
        raise RecordTooLarge(f"{what}: {_text(error)}; create the stream with a smaller --order-size") from error
    except kafka_error.InvalidTimestampError as error:
        raise ConfigError(
            f"{what}: Kafka at {where} refuses the record's time: this machine's clock or the broker's is wrong "
            "(message.timestamp.after.max.ms, before.max.ms of the topic); set the clocks right"
        ) from error
    except kafka_error.UnsupportedCodecError as error:
        raise ConfigError(
            f"{what}: {_text(error)}; set the topic's compression.type to gzip or lz4, or install what reads it "
            "(zstandard, python-snappy)"
        ) from error
    except kafka_error.KafkaConfigurationError as error:
        raise ConfigError(f"{what}: bad Kafka settings for {where}: {_text(error)}") from error
    except _NO_ANSWER as error:
        raise BrokerUnavailable(
            f"{what}: no answer from Kafka at {where}; is it running? (`distillog broker status`)"
        ) from error
    except kafka_error.KafkaError as error:
        raise BrokerUnavailable(f"{what}: Kafka at {where} answered {_text(error)}") from error


@contextmanager
def _refusals(what: str, settings: KafkaSettings) -> Iterator[None]:
    """Say that we are not let in, whichever client heard it, and however this one's call failed for it."""
    standing = settings.standing
    if standing.refusal:
        raise NotAdmitted(f"{what}: {standing.refusal}")
    try:
        yield
    except kafka_error.KafkaError as error:
        if standing.refusal:
            raise NotAdmitted(f"{what}: {standing.refusal}") from error
        raise


def _missing_right(error: kafka_error.AuthorizationError, settings: KafkaSettings) -> str:
    """Who may not do what, and who helps."""
    who, where = settings.who, settings.bootstrap_servers
    if not isinstance(error, Refused):
        return f"Kafka at {where} does not let {who} do it ({_text(error)}); who administers it grants the right"
    return (
        f"{who} may not {error.right} at {where}; `distillog topics rights {error.right.stream} --principal "
        f"{settings.principal or 'User:NAME'} --role ROLE{error.right.scope}` prints what grants it"
    )


def _text(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if len(text) > _LONGEST:  # some hold the whole answer of a broker, with all topics of a cluster
        text = f"{text[:_LONGEST]}..."
    name = type(error).__name__
    return text if text.startswith(("[Error", name)) else f"{name}: {text}" if text else name
