"""Find the cluster by one rule: what is given, then the environment, then the local broker that runs."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.broker.folder import running_broker_address
from pipeline.kafka.settings import KafkaSettings


def find_cluster(
    bootstrap_servers: str | None = None, kafka_config: Path | str | None = None, otherwise: str | None = None
) -> KafkaSettings:
    """Return address and access of the cluster.

    Args:
        bootstrap_servers: `host:port`, several separated by commas; None: the environment's
            (DISTILLOG_BOOTSTRAP_SERVERS, KAFKA_BOOTSTRAP_SERVERS), else the local broker's, if one runs.
        kafka_config: properties file with SASL and TLS settings; None: DISTILLOG_KAFKA_CONFIG's, else none.
        otherwise: the address where there is none, for who only writes it down.

    Raises:
        ConfigError: no address anywhere, or a bad properties file.
    """
    of_environment = map(os.environ.get, ("DISTILLOG_BOOTSTRAP_SERVERS", "KAFKA_BOOTSTRAP_SERVERS"))
    servers = bootstrap_servers or next(filter(None, of_environment), None)
    file = kafka_config or os.environ.get("DISTILLOG_KAFKA_CONFIG")
    return KafkaSettings.load(
        servers, Path(file) if file else None, default=lambda: running_broker_address() or otherwise
    )
