"""What a process says to the processes of its loaders, and they to it: pickles over a socket.

A pickle's arrays follow it as they lie in memory. Only a process and its own children talk this way.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.datasets.base import Field, Ints
from schemas.records import ViewSpec

STORAGE = "OSError"
"""Name of what storage raises: whoever asked tries again."""

_COUNT = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Task:
    """What a child is there for: its first message."""

    uri: str
    """Of the dataset."""
    fields: dict[str, Field]
    """Those that the dataset has for the parent."""
    view: ViewSpec
    kinds: tuple[str, ...]
    """What the parent holds the samples of each user's view to."""
    partners: Ints | None = None
    """The samples that others may be mixed with; None: all."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a child says to a message."""

    made: Any = None
    """Nothing to a task, else what was asked for."""
    error: str = ""
    """Name of what was raised instead; "" where nothing was."""
    text: str = ""
    """What that says, in one line."""
    busy: float = 0.0
    """CPU seconds of the child since it began."""


def send(end: socket.socket, message: object) -> None:
    """Send a message, its arrays uncopied."""
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(text), *(buffer.raw() for buffer in buffers)]
    end.sendall(_COUNT.pack(len(parts)) + struct.pack(f"<{len(parts)}Q", *(part.nbytes for part in parts)))
    for part in parts:
        end.sendall(part)


def receive(end: socket.socket, waiting: Callable[[], None] = lambda: None) -> Any:
    """Wait for a message. `waiting` is called at each time-out of the socket, and may end the wait by what it raises.

    Raises:
        EOFError: nobody is at the other end any more.
    """
    (count,) = _COUNT.unpack(_read(end, _COUNT.size, waiting))
    lengths = struct.unpack(f"<{count}Q", _read(end, 8 * count, waiting))
    text, *buffers = [_read(end, length, waiting) for length in lengths]
    return pickle.loads(text, buffers=buffers)


def _read(end: socket.socket, length: int, waiting: Callable[[], None]) -> bytearray:
    data, at = bytearray(length), 0
    with memoryview(data) as view:
        while at < length:
            try:
                got = end.recv_into(view[at:])
            except TimeoutError:
                waiting()
                continue
            except OSError as error:
                raise EOFError from error
            if not got:
                raise EOFError
            at += got
    return data
