"""The network client that receives in large pieces."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest
from kafka import errors as kafka_error
from kafka.net.transport import KafkaTCPTransport

from pipeline.kafka.clients import new_admin
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds.wide_receive import _PIECE, _Transport

Ends = tuple[_Transport, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A transport, and the other end of its connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    near.setblocking(False)
    with near, far:
        yield _Transport(None, near), far


def test_a_piece_is_what_there_is_up_to_its_size(ends: Ends) -> None:
    transport, far = ends
    sent = bytes(range(256)) * (3 * _PIECE // 256 + 1)
    far.setblocking(False)
    received, at = b"", 0
    while len(received) < len(sent):
        if at < len(sent):
            with contextlib.suppress(BlockingIOError):
                at += far.send(sent[at:])
        piece, error = transport._sock_recv()
        assert error is None
        assert len(piece) <= _PIECE
        received += piece
    assert received == sent


def test_nothing_to_read_is_no_error(ends: Ends) -> None:
    assert ends[0]._sock_recv() == (b"", None)


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_connection_that_ended_is_an_error(ends: Ends, how: str) -> None:
    transport, far = ends
    if how == "reset":
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.sendall(b"x" * (how == "closed"))
    far.close()
    if how == "closed":
        assert transport._sock_recv() == (b"x", None)
    data, error = transport._sock_recv()
    assert data == b""
    assert isinstance(error, kafka_error.KafkaConnectionError)


@pytest.mark.kafka
def test_every_connection_of_a_client_is_wide(kafka_settings: KafkaSettings) -> None:
    admin = new_admin(kafka_settings)
    try:
        assert admin.list_topics() is not None
        transports = [connection.transport for connection in admin._manager._conns.values() if connection.connected]
    finally:
        admin.close()
    assert transports
    assert {type(transport) for transport in transports} == {_Transport}
    assert _Transport._sock_recv is not KafkaTCPTransport._sock_recv
