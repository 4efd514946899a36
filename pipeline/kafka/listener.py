"""What a listener of a broker speaks: whether TLS, and by which mechanisms one may log in there."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kafka import errors as kafka_error
from kafka.protocol.parser import KafkaProtocol
from kafka.protocol.sasl import SaslHandshakeRequest

from pipeline.kafka.credentials import load_certificate
from schemas.errors import ConfigError

TIMEOUT = 3.0
"""seconds for one connection, and for each answer"""
_LONGEST = 65_536
"""Bytes of an answer: what a listener of another kind says is not taken for a length."""


@dataclass(frozen=True, slots=True)
class Listener:
    """What it speaks."""

    tls: bool
    mechanisms: tuple[str, ...] | None
    """to log in by; none: it asks for no login; None: it did not say"""


def ask_listener(host: str, port: int, options: Mapping[str, Any]) -> Listener | None:
    """Ask it, first without and then with TLS; None: it answered neither way, as a broker that is away does.

    Its certificate is not verified, since nothing is told to it but that somebody asks.
    """
    with suppress(OSError, kafka_error.KafkaError), socket.create_connection((host, port), TIMEOUT) as plain:
        return Listener(False, _mechanisms(plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(ConfigError):  # without ours it may not say by which mechanisms, no more
        load_certificate(context, options)
    try:
        with (
            socket.create_connection((host, port), TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=host) as encrypted,
        ):
            with suppress(OSError, kafka_error.KafkaError):
                return Listener(True, _mechanisms(encrypted))
            return Listener(True, None)
    except OSError as error:
        return Listener(True, None) if "ALERT" in str(getattr(error, "reason", "")) else None


def _mechanisms(connection: socket.socket) -> tuple[str, ...]:
    """Ask to log in by a mechanism that nobody has: a listener answers with those that it has."""
    protocol = KafkaProtocol(client_id="distillog", receive_message_max_bytes=_LONGEST)
    protocol.send_request(SaslHandshakeRequest(mechanism="?", version=1))
    connection.sendall(protocol.send_bytes())
    while data := connection.recv(4096):
        for _, answer in protocol.receive_bytes(data):
            return tuple(sorted(answer.mechanisms))
    raise kafka_error.KafkaConnectionError("closed")
