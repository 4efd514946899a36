"""The HTTP endpoint of a service: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever runs containers.

On threads of its own: a scrape reads attributes, so the work never waits for it, and it never waits for Kafka. No
connection stays open for long, and no more than a few are at once.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from pipeline.metrics import Metric, Served
from pipeline.user_code import said
from schemas.errors import ConfigError

log = logging.getLogger(__name__)

DEADLINE = 5.0
"""seconds after which a connection is cut, whatever its other end does"""
MOST = 16
"""connections at once; who comes on top of them is turned away"""
_LOOK = 0.2
"""seconds between two looks whether to end"""
_TEXT = "text/plain; charset=utf-8"

Answer = tuple[HTTPStatus, str, str]
"""status, content type, text"""


class Endpoint:
    """What is answered: of a service that has not begun its work, that it lives and is not ready."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._registry = CollectorRegistry()
        self._served: Served | None = None

    def show(self, metrics: Sequence[Metric[Any]], served: Served, labels: Mapping[str, str]) -> None:
        """Show these metrics of what is served from now on, all under the same labels; called once."""
        self._registry.register(_Collector(f"distillog_{self._service}", metrics, served, labels))
        self._served = served

    def answer(self, path: str) -> Answer:
        """Answer a GET."""
        answers = {"/metrics": self._metrics, "/livez": self._live, "/readyz": self._ready}
        return answers.get(path, self._nothing)()

    def _nothing(self) -> Answer:
        return HTTPStatus.NOT_FOUND, _TEXT, "there are /metrics, /livez and /readyz\n"

    def _metrics(self) -> Answer:
        return HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self._registry).decode()

    def _live(self) -> Answer:
        if self._served is None or self._served.heart.alive:
            return HTTPStatus.OK, _TEXT, "alive\n"
        heart = self._served.heart
        why = f"the loop has not gone round for {heart.silent:.0f} s, and should every {heart.within:.0f} s\n"
        return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, why

    def _ready(self) -> Answer:
        why = "has not begun" if self._served is None else self._served.unready
        return (HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{why}\n") if why else (HTTPStatus.OK, _TEXT, "ready\n")


@contextmanager
def serve(address: tuple[str, int], service: str, say: Callable[[str], object]) -> Iterator[Endpoint]:
    """Serve an endpoint while the block lasts, and say where.

    Args:
        address: host and port; port 0 takes a free one.
        service: `feed`, `teach`, `fleet` or `run`; begins the names of metrics.
        say: is told the URL.

    Raises:
        ConfigError: nothing can listen there.
    """
    endpoint = Endpoint(service)
    host, port = (f"[{address[0]}]" if ":" in address[0] else address[0]), address[1]
    try:
        server = _Server(address, endpoint)
    except OSError as error:
        raise ConfigError(
            f"--metrics-port {host}:{port}: cannot listen there ({error.strerror or error}); give another port, or 0 "
            "for a free one"
        ) from None
    thread = threading.Thread(target=server.serve_forever, args=(_LOOK,), name="metrics", daemon=True)
    thread.start()
    say(f"metrics at http://{host}:{server.server_address[1]}/metrics")
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


class _Collector(Collector):
    def __init__(self, prefix: str, metrics: Sequence[Metric[Any]], served: Served, labels: Mapping[str, str]) -> None:
        self._prefix = prefix
        self._metrics = metrics
        self._served = served
        self._labels = labels

    def describe(self) -> list[Family]:
        """Nothing: whoever registers would read the values for it."""
        return []

    def collect(self) -> Iterator[Family]:
        """Read every metric that there is now."""
        for each in self._metrics:
            value = each.read(self._served)
            if value is None:
                continue
            kind = CounterMetricFamily if each.name.endswith("_total") else GaugeMetricFamily
            family = kind(f"{self._prefix}_{each.name}", each.means, labels=list(self._labels))
            family.add_metric(list(self._labels.values()), value)
            yield family


class _Server(socketserver.ThreadingTCPServer):
    # Not http.server's: that asks for the host's full name, and a name server that is away may take long to answer.
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._open: dict[socket.socket, float] = {}
        """connection -> when it came"""
        super().__init__(address, _Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return len(self._open) < MOST

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Cut the connections that last too long: one that sends a byte now and then meets no deadline of its own."""
        for connection, since in list(self._open.items()):
            if time.monotonic() - since > DEADLINE:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if isinstance(error, OSError) or error is None:
            log.debug("a connection to the metrics ended: %s", error)
        else:
            log.error("answering for metrics: %s", said(error))


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = DEADLINE
    server_version = "distillog"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer, also to HEAD."""
        status, kind, text = self.server.endpoint.answer(self.path.partition("?")[0])
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of requests."""
