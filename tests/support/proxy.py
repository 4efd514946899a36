"""TCP proxies between clients and brokers, whose connections can be cut, refused and held up."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from pipeline.broker.folder import HOST, PORTS

_ANSWER = 10.0
"""Seconds for what the loop is asked to do."""
_CHUNK = 1 << 16


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now, and that no outgoing connection may take."""
    found: list[int] = []
    for port in random.sample(PORTS, 1000):
        if len(found) == count:
            break
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            found.append(port)
    return found


class Proxies:
    """An event loop on a thread of its own, and the proxies on it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()
        self._all: list[Proxy] = []

    def add(self, port: int, to: int) -> Proxy:
        """Listen on a port of 127.0.0.1 and pass everything on to another one."""
        proxy = Proxy(port, to, self._do)
        self._do(proxy.listen())
        self._all.append(proxy)
        return proxy

    def close(self) -> None:
        """End all of them, and the thread."""
        for proxy in self._all:
            self._do(proxy.end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_ANSWER)
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(_ANSWER)


class Proxy:
    """One way to one listener; its methods without `async` may be called by any thread."""

    def __init__(self, port: int, to: int, do: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self.port = port
        self._to = to
        self._do = do
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuses = False

    def cut(self) -> None:
        """Reset all connections; new ones are welcome."""
        self._do(self._reset())

    def refuse(self) -> None:
        """Reset all connections, and new ones as they come."""
        self._refuses = True
        self.cut()

    def stall(self) -> None:
        """Pass nothing on; connections stay open."""
        self._do(self._set_flow(False))

    def mend(self) -> None:
        """Undo `refuse` and `stall`; what was held up goes on its way."""
        self._refuses = False
        self._do(self._set_flow(True))

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def end(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _set_flow(self, flows: bool) -> None:
        if flows:
            self._flows.set()
        else:
            self._flows.clear()

    async def _reset(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        onward = None
        try:
            if self._refuses:
                return
            await self._flows.wait()
            back, onward = await asyncio.open_connection(HOST, self._to)
            self._writers.add(onward)
            both = [asyncio.create_task(self._pump(reader, onward)), asyncio.create_task(self._pump(back, writer))]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for pump in both:
                pump.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        except OSError:
            pass  # nobody listens there: the client is to see it, too
        finally:
            for each in (writer, onward):
                if each is not None:
                    self._writers.discard(each)
                    _reset(each)
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST: what was under way is lost, as when a wire is cut."""
    with suppress(OSError):
        raw = writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
