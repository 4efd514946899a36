"""A refusal is tried again in silence: a manager of connections that finds out, and ends the search for a cluster."""

from __future__ import annotations

import time
from typing import Any

from kafka import errors as kafka_error
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from pipeline.kafka.refusals import Judge

AT_ONCE = 3.0
"""Seconds in which a listener ends a connection of a kind that it does not know."""


class JudgingManager(KafkaConnectionManager):  # type: ignore[misc]
    """Asks a judge about each connection that was lost.

    kafka-python means to keep a refused login for whoever asks for the connection next, but the error ends beside the
    place where that is done (`initialize` does not raise), and a failed handshake of TLS is a lost connection to it as
    any other: it connects until the time for finding a cluster is over, and then for ever.

    As long as the cluster is looked for, another address may let us in: one that refuses us is believed when all do, or
    when the time is over.
    """

    def __init__(self, net: NetworkSelector, judge: Judge | None, **config: Any) -> None:
        super().__init__(net, **config)
        self._judge = judge
        self._refused = False
        self._heard: dict[tuple[str, int], str] = {}
        """address -> why it refuses us, in this search for the cluster"""

    def maybe_raise_auth_failure(self, node_id: Any) -> None:
        """End the search for a cluster. Later on connections are tried as ever: a producer's thread would spin."""
        if self._refused and not self.bootstrapped:
            raise kafka_error.SaslAuthenticationFailedError("refused before")

    async def _do_bootstrap(self, deadline: float | None) -> Any:
        self._heard.clear()
        try:
            return await super()._do_bootstrap(deadline)
        except kafka_error.KafkaError:
            if self._heard and not self._refused:
                self._believe(next(iter(self._heard.values())))
            raise

    async def _connect(self, node: Any, conn: Any, *args: Any, **kwargs: Any) -> None:
        conn.close_future.add_errback(self._lost, node, time.monotonic())
        await super()._connect(node, conn, *args, **kwargs)
        if self._judge and conn.connected:
            self._judge.let_in()

    def _lost(self, node: Any, begun: float, error: BaseException) -> None:
        address, looking = (node.host, node.port), not self.bootstrapped
        if self._judge is None or self._refused or self.closed or (looking and address in self._heard):
            return
        # A silence says nothing of how one speaks there.
        silent = isinstance(error, kafka_error.KafkaTimeoutError) or time.monotonic() - begun > AT_ONCE
        refusal = self._judge.refusal(error, *address, ask=looking and not silent)
        if not refusal:
            return
        self._heard[address] = refusal
        if not looking or self._heard.keys() >= {(one.host, one.port) for one in self.cluster.bootstrap_brokers()}:
            self._believe(refusal)

    def _believe(self, refusal: str) -> None:
        self._refused = True
        if self._judge:
            self._judge.believe(refusal)
