"""Every Kafka client of the project is made here, so that settings which cost data or speed stand in one place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.net.selector import NetworkSelector

from pipeline.kafka.credentials import check_credentials
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.refusals import Judge
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds import exploding_batches
from pipeline.kafka.workarounds.dead_coordinator import AskingAdmin
from pipeline.kafka.workarounds.deaf_calls import HeedingSelector
from pipeline.kafka.workarounds.lost_constructor import closing_on_error
from pipeline.kafka.workarounds.wide_receive import WideClient
from schemas.errors import ConfigError

CONNECT_AT_MOST_MS = 10_000
"""Milliseconds (and a fifth of jitter) for making a connection. kafka-python begins with as many and doubles them up to
30 s: connections to a frozen broker whose queue is full are neither made nor refused, and whoever tries to make one
meanwhile does not hear that the broker is back, or is a worker's polling thread and is taken for one that hangs."""
BOOTSTRAP_TIMEOUT = 15.0
"""Seconds for which a client looks for a broker before it gives up; `DISTILLOG_BOOTSTRAP_TIMEOUT` sets another."""

exploding_batches.bound()

Stopped = Callable[[], bool]
"""Whether the process is to end; calls of a client that was given one end soon after with BrokerUnavailable."""


def new_admin(settings: KafkaSettings, stopped: Stopped | None = None, **overrides: Any) -> KafkaAdminClient:
    """Make an admin client.

    Raises:
        NotAdmitted: the cluster does not let us in.
        BrokerUnavailable: no broker answered in time.
    """
    with _connecting(settings, stopped) as net_client:
        return AskingAdmin(**{**_base(settings), "kafka_client": net_client, **overrides})


@contextmanager
def admin_client(settings: KafkaSettings, **overrides: Any) -> Iterator[KafkaAdminClient]:
    """An admin client that is closed with the block; raises as `new_admin`."""
    admin = new_admin(settings, **overrides)
    try:
        yield admin
    finally:
        admin.close()


def new_producer(settings: KafkaSettings, stopped: Stopped | None = None, **overrides: Any) -> KafkaProducer:
    """Make an idempotent producer that waits for all in-sync replicas.

    One order is one record of 2 kB to 2 MB, so batching records gains nothing: a batch is sent as it comes.

    Raises:
        NotAdmitted, BrokerUnavailable: as `new_admin`.
    """
    defaults = {
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": 0,
        "delivery_timeout_ms": 120_000,
        "metrics_enabled": False,
    }
    with _connecting(settings, stopped) as net_client:
        return KafkaProducer(**{**_base(settings), "kafka_client": net_client, **defaults, **overrides})


def new_consumer(settings: KafkaSettings, stopped: Stopped | None = None, **overrides: Any) -> KafkaConsumer:
    """Make a consumer that never commits by itself and never jumps.

    `auto_offset_reset='none'`: with `earliest` the client steps over trimmed records without a word.

    Raises:
        NotAdmitted, BrokerUnavailable: as `new_admin`.
    """
    defaults = {"auto_offset_reset": "none", "enable_auto_commit": False, "metrics_enabled": False}
    with _connecting(settings, stopped) as net_client:
        return KafkaConsumer(**{**_base(settings), "kafka_client": net_client, **defaults, **overrides})


@contextmanager
def _connecting(settings: KafkaSettings, stopped: Stopped | None) -> Iterator[Callable[..., WideClient]]:
    """Give the factory of a client's network part.

    A client whose constructor fails is lost with a running thread and its sockets; here they are closed, since who
    waits for a broker tries again and again.
    """
    made: list[WideClient] = []
    standing = settings.standing

    def over() -> bool:
        return bool(standing.refusal) or (stopped is not None and stopped())

    def net_client(**config: Any) -> WideClient:
        heeds = stopped is not None or settings.secured
        net = HeedingSelector(over, **config) if heeds else NetworkSelector(**config)
        made.append(
            WideClient(net, Judge(settings), **config, socket_connection_setup_timeout_max_ms=CONNECT_AT_MOST_MS)
        )
        return made[-1]

    check_credentials(settings.options)
    try:
        with kafka_errors("connecting", settings), closing_on_error(made):
            yield net_client
    except (ValueError, OSError, AssertionError) as error:
        # kafka-python checks addresses, mechanisms and TLS files with these.
        raise ConfigError(f"bad Kafka settings for {settings.bootstrap_servers}: {error}") from error


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
