"""Where the cluster is and how to be let in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.kafka.properties import read_properties
from schemas.errors import ConfigError


@dataclass(slots=True)
class Standing:
    """What the cluster has said of this process to any of its clients."""

    refusal: str = ""
    """why it lets none of them in, which ends the next call of each, for good; empty as long as it does"""
    let_in: bool = False
    """whether it has let one of them in"""
    refused_since: float | None = None
    """since when it has refused every login of theirs, on the monotonic clock; None: it does not"""


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Where the cluster is and how to be let in."""

    bootstrap_servers: str
    """`host:port`, several separated by commas"""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """SASL and TLS settings of kafka-python; kept out of `repr`, since they may hold a password"""
    standing: Standing = field(default_factory=Standing, init=False, repr=False, compare=False)

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
        options = read_properties(properties_file) if properties_file else {}
        in_file = options.pop("bootstrap_servers", None)
        servers = bootstrap_servers or in_file or default()
        if not servers:
            raise ConfigError(
                "no Kafka address: give --bootstrap-servers or KAFKA_BOOTSTRAP_SERVERS, "
                "or start a local broker with `distillog broker start`"
            )
        return cls(servers, options)

    @property
    def secured(self) -> bool:
        """Whether the cluster asks who comes, or may."""
        return bool(self.options.get("security_protocol", "PLAINTEXT") != "PLAINTEXT")

    @property
    def principal(self) -> str | None:
        """Whom an authorizer knows this client as; None: its certificate says it, or nothing does."""
        user = self.options.get("sasl_plain_username")
        logs_in = str(self.options.get("security_protocol")).startswith("SASL")
        return f"User:{user}" if user and logs_in else None

    @property
    def who(self) -> str:
        """Who this client is, for messages."""
        certificate = self.options.get("ssl_certfile") if self.secured else None
        return self.principal or (f"the owner of {certificate}" if certificate else "this client")
