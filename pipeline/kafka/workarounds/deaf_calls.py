"""kafka-python's calls wait for a broker without looking up: an event loop whose calls end when they are told to stop.

Connecting and asking last until a time-out of many seconds while no broker answers, and a process that was told to
stop would not heed it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kafka import KafkaConsumer
from kafka import errors as kafka_error
from kafka.future import Future
from kafka.net.selector import NetworkSelector

LOOK_EVERY = 0.1
"""seconds between two looks"""


class Stopped(kafka_error.Cancelled):  # type: ignore[misc]
    """The call was given up because the process is to end."""


class HeedingSelector(NetworkSelector):  # type: ignore[misc]
    """To be given to a network client; `stopped` is called on its thread and must not wait."""

    def __init__(self, stopped: Callable[[], bool], **config: Any) -> None:
        super().__init__(**config)
        self.stopped = stopped

    def run(self, coro: Any, *args: Any) -> Any:
        """As ever, but it raises Stopped as soon as `stopped` says so."""
        return super().run(self._heeding, coro, *args)

    async def _heeding(self, coro: Any, *args: Any) -> Any:
        answer = Future()

        def succeed(value: Any) -> None:
            if not answer.is_done:
                answer.success(value)

        def fail(error: BaseException) -> None:
            if not answer.is_done:
                answer.failure(error)

        async def look() -> None:
            while not answer.is_done:
                if self.stopped():
                    fail(Stopped("asked to stop"))
                else:
                    await self.sleep(LOOK_EVERY)

        asked = self.call_soon_with_future(coro, *args)
        asked.add_callback(succeed)
        asked.add_errback(fail)
        self.call_soon(look)
        return await answer


def undisturbed(consumer: KafkaConsumer) -> None:
    """Let the calls that follow run to their end: a close that is cut short would leave threads and sockets behind."""
    if isinstance(consumer._net, HeedingSelector):
        consumer._net.stopped = lambda: False
