"""A network client for kafka-python that receives in large pieces.

kafka-python 3.0.12 asks a socket for 4,096 bytes at a time, and each time it gives up the interpreter and has to win it
back from the thread that decodes what came before. With pieces of 256 KiB a consumer reads 1.2 to 2 times as fast
(docs/benchmarks.md).
"""

from __future__ import annotations

from typing import Any

from kafka import errors as kafka_error
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import create_connection
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaTCPTransport

from pipeline.kafka.credentials import tls_context
from pipeline.kafka.refusals import Judge
from pipeline.kafka.workarounds.tls_transport import TlsTransport
from pipeline.kafka.workarounds.unsaid_refusals import JudgingManager
from schemas.errors import ConfigError

_PIECE = 256 * 1024
"""Bytes asked for at once."""


class WideClient(KafkaNetClient):  # type: ignore[misc]
    """To be given to a client of kafka-python as its `kafka_client`."""

    def __init__(self, net: NetworkSelector | None = None, judge: Judge | None = None, **config: Any) -> None:
        net = net or NetworkSelector(**config)
        super().__init__(net, _Manager(net, judge, **config), **config)


class _Manager(JudgingManager):
    async def _build_transport(self, node: Any, timeout_at: float) -> KafkaTCPTransport:
        """As kafka-python's, with transports of ours; TLS comes in small pieces anyway."""
        try:
            # Anew for each connection: certificates and lists of revoked ones are renewed under a running process.
            tls = tls_context(self.config) if self.ssl_enabled else None
        except ConfigError as error:
            raise kafka_error.KafkaConnectionError(error) from error
        way = (self.config["socket_options"], self.config["proxy_url"], timeout_at)
        sock = await create_connection(self._net, node.host, node.port, *way)
        if tls is None:
            return _Transport(self._net, sock, host=node.host)
        transport = TlsTransport(self._net, sock, host=node.host, ssl_context=tls)
        await transport.shake_hands(timeout_at)
        return transport


class _Transport(KafkaTCPTransport):  # type: ignore[misc]
    def _sock_recv(self) -> tuple[bytes, Exception | None]:
        """Return what there is, one piece at most, and the error that ends the connection."""
        try:
            data: bytes = self._sock.recv(_PIECE)
        except (BlockingIOError, InterruptedError):
            return b"", None
        except OSError:
            data = b""
        # A closed connection, or a broken one: it says so again, and kafka-python knows what to make of it.
        return (data, None) if data else super()._sock_recv()
