"""An RPC reader in the manner of EDL: samples over a socket to teachers, labels back, in order. What is compared with.

Request: the number of rows (uint32, little-endian), then as many samples, float32. Answer: the number, then as many
rows of logits, float32. A window of 2N + 2 requests is on its way to N teachers, request n to teacher n % N, and they
are taken in the order in which they were sent. Nothing is stored, a teacher that dies ends it, and each student asks
anew.

`python -m benchmarks.paper.rpc MODEL.onnx --known FOLDER --service ...` is such a teacher, on a simulated accelerator;
it prints its port.
"""

from __future__ import annotations

import argparse
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.service_times import ServiceTimes
from benchmarks.simulated import KnownSamples, SimulatedSession

Floats = npt.NDArray[np.float32]
Item = TypeVar("Item")

HOST = "127.0.0.1"
_ROWS = struct.Struct("<I")


class Connection:
    """One end of a connection on which rows of float32 travel, their number before them."""

    def __init__(self, connected: socket.socket, row_shape: Sequence[int]) -> None:
        """Take a connected socket; `row_shape` is of what comes in."""
        self._socket = connected
        self._row_shape = tuple(row_shape)
        self.num_bytes = 0
        """both ways, so far"""

    def send(self, rows: Floats) -> None:
        """Send [n, ...]."""
        data = _ROWS.pack(len(rows)) + np.ascontiguousarray(rows, np.float32).tobytes()
        self._socket.sendall(data)
        self.num_bytes += len(data)

    def receive(self) -> Floats | None:
        """Wait for [n, ...]; None where the other end has closed."""
        head = self._exactly(_ROWS.size)
        if head is None:
            return None
        (rows,) = _ROWS.unpack(head)
        shape = (rows, *self._row_shape)
        data = self._exactly(4 * int(np.prod(shape)))
        if data is None:
            raise ConnectionError("the connection ended in the middle of an answer")
        return np.frombuffer(data, np.float32).reshape(shape)

    def close(self) -> None:
        """End it, and a wait of the other end."""
        self._socket.close()

    def _exactly(self, size: int) -> bytearray | None:
        data = bytearray(size)
        view, there = memoryview(data), 0
        while there < size:
            count = self._socket.recv_into(view[there:])
            if not count:
                return None
            there += count
        self.num_bytes += size
        return data


def connect(port: int, row_shape: Sequence[int]) -> Connection:
    """Connect to a teacher on this machine, which answers rows of that shape."""
    connected = socket.create_connection((HOST, port))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(connected, row_shape)


def window(num_teachers: int) -> int:
    """Requests on their way at most."""
    return 2 * num_teachers + 2


def labelled(
    items: Iterable[Item], samples: Callable[[Item], Floats], teachers: Sequence[Connection]
) -> Iterator[tuple[Item, Floats]]:
    """Yield each item with the logits that a teacher gives for its samples, in order.

    Raises:
        ConnectionError: a teacher is gone.
    """
    sent: deque[tuple[Item, Connection]] = deque()

    def oldest() -> tuple[Item, Floats]:
        item, teacher = sent.popleft()
        answer = teacher.receive()
        if answer is None:
            raise ConnectionError("a teacher is gone")
        return item, answer

    for number, item in enumerate(items):
        if len(sent) == window(len(teachers)):
            yield oldest()
        teacher = teachers[number % len(teachers)]
        teacher.send(samples(item))
        sent.append((item, teacher))
    while sent:
        yield oldest()


def answer_all(student: Connection, answer: Callable[[Floats], Floats]) -> None:
    """Answer a student until it has gone."""
    while (samples := student.receive()) is not None:
        student.send(answer(samples))


def serve(listening: socket.socket, row_shape: Sequence[int], answer: Callable[[Floats], Floats]) -> None:
    """Answer one student after another; never returns."""
    while True:
        connected, _ = listening.accept()
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with closing(Connection(connected, row_shape)) as student, suppress(ConnectionError):  # one that was killed
            answer_all(student, answer)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper.rpc", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--known", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--order-size", type=int, required=True, help="rows that take the service time together")
    parser.add_argument("--service", type=ServiceTimes.parse, required=True, metavar="SINCE:SECONDS,...")
    arguments = parser.parse_args()
    known = KnownSamples(arguments.model, arguments.known)
    session = SimulatedSession(known, arguments.order_size, arguments.service, time.time())
    row_shape = np.load(arguments.known / KnownSamples.SAMPLES, mmap_mode="r").shape[1:]

    def answer(samples: Floats) -> Any:
        return session.run([], {"image": samples})[0]

    with socket.create_server((HOST, 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        serve(listening, row_shape, answer)


if __name__ == "__main__":
    main()
