from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from support.proxy import Proxies, Proxy, free_ports


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy before a server that echoes."""
    proxies = Proxies()
    before, behind = free_ports(2)
    server = socket.create_server(("127.0.0.1", behind))

    def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(100):
                    connection.sendall(data)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield proxies.add(before, behind)
    proxies.close()
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def test_bytes_pass_both_ways(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"


def test_a_cut_resets_what_is_open_and_lets_new_connections_in(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"hello")
        client.recv(100)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(100)
    test_bytes_pass_both_ways(proxy)


def test_whoever_is_refused_is_let_in_again_later(proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionError), connect(proxy) as client:
        client.recv(100)
    proxy.mend()
    test_bytes_pass_both_ways(proxy)


def test_what_is_stalled_goes_on_its_way_later(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"1")
        client.recv(100)
        proxy.stall()
        client.sendall(b"2")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(100)
        proxy.mend()
        client.settimeout(5)
        assert client.recv(100) == b"2"
