"""A TLS connection drops a broker's last words, and its handshake has no end: a transport that mends both."""

from __future__ import annotations

import socket
import time

from kafka import errors as kafka_error
from kafka.net.transport import KafkaSSLTransport


class TlsTransport(KafkaSSLTransport):  # type: ignore[misc]
    """What kafka-python reads together with the end of a connection it throws away.

    A broker that refuses a login over TLS sends its answer and the end in one go, so the refusal was never heard.
    """

    def _sock_recv(self) -> tuple[bytes, Exception | None]:
        """Return what there is; the end says so again."""
        data, error = super()._sock_recv()
        return (data, None) if data else (data, error)

    async def shake_hands(self, timeout_at: float) -> None:
        """As `handshake`, until a moment of the monotonic clock; the transport is closed if it fails.

        A broker that is frozen takes the connection and says nothing, and whoever looked for a cluster waited for ever.

        Raises:
            KafkaTimeoutError: it took longer.
            KafkaConnectionError: it failed, by the error inside.
        """
        end = self._net.call_at(timeout_at, lambda: socket.socket.shutdown(self._sock, socket.SHUT_RDWR))
        try:
            await self.handshake()
        except OSError as error:
            self.close()
            if time.monotonic() >= timeout_at:
                raise kafka_error.KafkaTimeoutError("no end of the handshake") from error
            raise kafka_error.KafkaConnectionError(error) from error
        finally:
            self._net.cancel(end)
