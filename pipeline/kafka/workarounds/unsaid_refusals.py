"""A refusal is tried again in silence: a manager of connections that finds out, and ends the search for a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kafka import errors as kafka_error
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

AT_ONCE = 3.0
"""Seconds in which a listener ends a connection of a kind that it does not know."""

Judge = Callable[[BaseException, str, int, bool], bool]
"""Takes why a connection was lost, the broker's host and port, and whether the listener may be asked what it speaks,
since the connection ended at once and the cluster is still looked for; True: it was refused, and would be again."""


class JudgingManager(KafkaConnectionManager):  # type: ignore[misc]
    """Asks a judge about each connection that was lost.

    kafka-python means to keep a refused login for whoever asks for the connection next, but the error ends beside the
    place where that is done (`initialize` does not raise), and a failed handshake of TLS is a lost connection to it as
    any other: it connects until the time for finding a cluster is over, and then for ever.
    """

    def __init__(self, net: NetworkSelector, judge: Judge | None, **config: Any) -> None:
        super().__init__(net, **config)
        self._refuses = judge or (lambda error, host, port, ask: False)
        self._refused = False

    def maybe_raise_auth_failure(self, node_id: Any) -> None:
        """End the search for a cluster. Later on connections are tried as ever: a producer's thread would spin."""
        if self._refused and not self.bootstrapped:
            raise kafka_error.SaslAuthenticationFailedError("refused before")

    async def _connect(self, node: Any, conn: Any, *args: Any, **kwargs: Any) -> None:
        conn.close_future.add_errback(self._lost, node, time.monotonic())
        await super()._connect(node, conn, *args, **kwargs)

    def _lost(self, node: Any, begun: float, error: BaseException) -> None:
        if not (self._refused or self.closed):
            # A silence says nothing of how one speaks there.
            silent = isinstance(error, kafka_error.KafkaTimeoutError) or time.monotonic() - begun > AT_ONCE
            self._refused = self._refuses(error, node.host, node.port, not (self.bootstrapped or silent))
