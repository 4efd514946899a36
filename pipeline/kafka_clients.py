"""Kafka clients as Distillog wants them, and their errors as one line each.

Every client of the project is made here, so that the settings which cost data or speed when forgotten stand in one
place.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_error

from pipeline.wait import Deadline
from pipeline.wide_client import WideClient
from schemas.errors import BrokerUnavailable, ConfigError, RecordTooLarge

T = TypeVar("T")

BOOTSTRAP_TIMEOUT = 15.0
"""Seconds for which a client looks for a broker before it gives up; `DISTILLOG_BOOTSTRAP_TIMEOUT` sets another."""

_ALIASES = {
    "sasl_username": "sasl_plain_username",
    "sasl_password": "sasl_plain_password",
    "sasl_mechanisms": "sasl_mechanism",
    "ssl_ca_location": "ssl_cafile",
    "ssl_certificate_location": "ssl_certfile",
    "ssl_key_location": "ssl_keyfile",
    "ssl_key_password": "ssl_password",
}
"""Names that other Kafka clients give to the same settings."""

_NOT_YET = (
    kafka_error.CoordinatorNotAvailableError,
    kafka_error.CoordinatorLoadInProgressError,
    kafka_error.NotCoordinatorError,
    kafka_error.NodeNotReadyError,
)
"""Answers that only say "ask again": a coordinator is being chosen, or a connection made again."""

_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")

_ALLOWED = {
    "bootstrap_servers",
    "security_protocol",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
    "sasl_kerberos_name",
    "sasl_kerberos_service_name",
    "sasl_kerberos_domain_name",
    "ssl_cafile",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_crlfile",
    "ssl_check_hostname",
    "client_dns_lookup",
    "request_timeout_ms",
}


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Where the cluster is and how to be let in."""

    bootstrap_servers: str
    """`host:port`, several separated by commas"""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """SASL and TLS settings of kafka-python; kept out of `repr`, since they may hold a password"""

    @classmethod
    def load(
        cls,
        bootstrap_servers: str | None,
        properties_file: Path | None = None,
        default: Callable[[], str | None] = lambda: None,
    ) -> KafkaSettings:
        """Join the address with a properties file (`name=value` lines, dots or underscores).

        `default` is asked for an address when neither has one.

        Raises:
            ConfigError: no address anywhere, or a property that does not exist.
        """
        options = _read_properties(properties_file) if properties_file else {}
        in_file = options.pop("bootstrap_servers", None)
        servers = bootstrap_servers or in_file or default()
        if not servers:
            raise ConfigError(
                "no Kafka address: give --bootstrap-servers or KAFKA_BOOTSTRAP_SERVERS, "
                "or start a local broker with `distillog broker start`"
            )
        return cls(servers, options)


def _read_properties(path: Path) -> dict[str, Any]:
    """Read a properties file; a bad line is named, its value never shown."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the Kafka properties: {error}") from None
    options: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith(("#", "!")):
            continue
        name, equals, value = line.partition("=")
        key = name.strip().replace(".", "_").replace("-", "_").lower()
        key = _ALIASES.get(key, key)
        if not equals:
            raise ConfigError(f"{path}:{number}: expected `name=value`")
        if key not in _ALLOWED:
            near = difflib.get_close_matches(key, _ALLOWED | set(_ALIASES), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{path}:{number}: unknown Kafka property {name.strip()!r}{hint}")
        options[key] = _typed(key, value.strip(), f"{path}:{number}")
    return options


def _typed(key: str, value: str, where: str) -> Any:
    if key.endswith("_ms"):
        if not value.isdigit():
            raise ConfigError(f"{where}: {key} must be a whole number of milliseconds")
        return int(value)
    if key == "security_protocol" and value.upper() not in _PROTOCOLS:
        raise ConfigError(f"{where}: security_protocol must be one of {', '.join(_PROTOCOLS)}")
    if key.startswith("ssl_") and key.endswith("file") and not Path(value).is_file():
        # kafka-python would retry until it times out, and say only that nobody answered.
        raise ConfigError(f"{where}: {key}: no such file: {value}")
    if key == "security_protocol":
        return value.upper()
    if key == "ssl_check_hostname":
        return value.lower() not in ("false", "no", "0", "")
    return value


def _bootstrap_timeout_ms() -> int:
    text = os.environ.get("DISTILLOG_BOOTSTRAP_TIMEOUT", str(BOOTSTRAP_TIMEOUT))
    try:
        milliseconds = int(float(text) * 1000)
    except (ValueError, OverflowError):
        milliseconds = 0
    if milliseconds <= 0:
        raise ConfigError(f"DISTILLOG_BOOTSTRAP_TIMEOUT must be a positive number of seconds, not {text!r}")
    return milliseconds


def _servers(settings: KafkaSettings) -> list[str]:
    servers = [server.strip() for server in settings.bootstrap_servers.split(",")]
    for server in servers:
        host, colon, port = server.rpartition(":")
        if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
            raise ConfigError(f"bad Kafka address {server!r}: write HOST:PORT, several separated by commas")
    return servers


def _base(settings: KafkaSettings) -> dict[str, Any]:
    return {
        "bootstrap_servers": _servers(settings),
        "bootstrap_timeout_ms": _bootstrap_timeout_ms(),
        # The default of 30 s would keep a client away from a broker that has long been back.
        "reconnect_backoff_max_ms": 1_000,
        **settings.options,
    }


def new_admin(settings: KafkaSettings, **overrides: Any) -> KafkaAdminClient:
    """Make an admin client.

    Raises:
        BrokerUnavailable: no broker answered in time.
    """
    with _connecting(settings) as net_client:
        return KafkaAdminClient(**{**_base(settings), "kafka_client": net_client, **overrides})


def new_producer(settings: KafkaSettings, **overrides: Any) -> KafkaProducer:
    """Make an idempotent producer that waits for all in-sync replicas.

    One order is one record of 2 kB to 2 MB, so batching records gains nothing: a batch is sent as it comes.

    Raises:
        BrokerUnavailable: no broker answered in time.
    """
    defaults = {
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": 0,
        "delivery_timeout_ms": 120_000,
        "metrics_enabled": False,
    }
    with _connecting(settings) as net_client:
        return KafkaProducer(**{**_base(settings), "kafka_client": net_client, **defaults, **overrides})


def poll(consumer: KafkaConsumer, timeout_ms: int, max_records: int | None = None) -> dict[TopicPartition, list[Any]]:
    """Poll as `consumer.poll`, for consumers that pause partitions.

    kafka-python parks what it holds of a paused partition, and takes it up again only while a slot of its own is None.
    A partition that was read to its end leaves that slot full of nothing, and if no other has news, the parked records,
    and with them the whole partition, never come again (measured: a worker idle beside 40 orders).
    """
    fetcher = consumer._fetcher
    if fetcher._next_partition_records is not None and not fetcher._next_partition_records:
        fetcher._next_partition_records = None
    return consumer.poll(timeout_ms=timeout_ms, max_records=max_records)  # type: ignore[no-any-return]


def close_producer(producer: KafkaProducer, timeout: float = 0.0) -> None:
    """Stop a producer for good; what is unacknowledged after `timeout` seconds is given up."""
    try:
        producer.close(timeout=timeout)
    except kafka_error.KafkaTimeoutError:
        # With records under way kafka-python's close stops here and leaves its sender running (measured), which would
        # send them later, beside the next producer's.
        producer._sender.force_close()
    # It may be in the middle of a request even where close says nothing.
    producer._sender.join(5.0)


def new_consumer(settings: KafkaSettings, **overrides: Any) -> KafkaConsumer:
    """Make a consumer that never commits by itself and never jumps.

    `auto_offset_reset='none'`: with `earliest` the client steps over trimmed records without a word.

    Raises:
        BrokerUnavailable: no broker answered in time.
    """
    defaults = {"auto_offset_reset": "none", "enable_auto_commit": False, "metrics_enabled": False}
    with _connecting(settings) as net_client:
        return KafkaConsumer(**{**_base(settings), "kafka_client": net_client, **defaults, **overrides})


@contextmanager
def _connecting(settings: KafkaSettings) -> Iterator[Callable[..., WideClient]]:
    """Give the factory of a client's network part.

    A client whose constructor fails is lost with a running thread and its sockets; here they are closed, since who
    waits for a broker tries again and again.
    """
    made: list[WideClient] = []

    def net_client(**config: Any) -> WideClient:
        made.append(WideClient(**config))
        return made[-1]

    try:
        with kafka_errors("connecting", settings), _closing_on_error(made):
            yield net_client
    except (ValueError, OSError, AssertionError) as error:
        # kafka-python checks addresses, mechanisms and TLS files with these.
        raise ConfigError(f"bad Kafka settings for {settings.bootstrap_servers}: {error}") from error


@contextmanager
def _closing_on_error(made: list[WideClient]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for client in made:
            client.close()
        raise


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


@contextmanager
def kafka_errors(what: str, settings: KafkaSettings) -> Iterator[None]:
    """Turn an error of kafka-python inside the block into one of ours.

    Raises:
        BrokerUnavailable: no broker, no answer in time, or an answer that is an error.
        ConfigError: the cluster refuses the credentials or the rights.
        RecordTooLarge: a record is over the cluster's limit.
    """
    where = settings.bootstrap_servers
    try:
        yield
    except (kafka_error.AuthorizationError, kafka_error.SaslAuthenticationFailedError) as error:
        raise ConfigError(f"{what}: Kafka at {where} refuses: {_text(error)}; check the Kafka properties") from error
    except kafka_error.MessageSizeTooLargeError as error:
        raise RecordTooLarge(f"{what}: {_text(error)}; create the stream with a smaller --order-size") from error
    except kafka_error.KafkaConfigurationError as error:
        raise ConfigError(f"{what}: bad Kafka settings for {where}: {_text(error)}") from error
    except (kafka_error.KafkaTimeoutError, kafka_error.KafkaConnectionError) as error:
        raise BrokerUnavailable(
            f"{what}: no answer from Kafka at {where}; is it running? (`distillog broker status`)"
        ) from error
    except kafka_error.KafkaError as error:
        raise BrokerUnavailable(f"{what}: Kafka at {where} answered {_text(error)}") from error


def _text(error: BaseException) -> str:
    text = " ".join(str(error).split())
    name = type(error).__name__
    return text if text.startswith(("[Error", name)) else f"{name}: {text}" if text else name
