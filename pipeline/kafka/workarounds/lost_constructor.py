"""A client whose constructor fails is lost with a running thread and its sockets: its network part is closed here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.kafka.workarounds.wide_receive import WideClient


@contextmanager
def closing_on_error(made: list[WideClient]) -> Iterator[None]:
    """Close the network clients that were made inside the block if it raises."""
    try:
        yield
    except BaseException:
        for client in made:
            client.close()
        raise
