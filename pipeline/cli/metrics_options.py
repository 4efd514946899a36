"""`--metrics-port`, of every command that works for long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pipeline.metrics import Metric, Served

F = TypeVar("F", bound=Callable[..., Any])
Show = Callable[["Sequence[Metric[Any]]", "Served", Mapping[str, str]], None]
"""Given what a service shows, what it shows it of, and the labels; see `Endpoint.show`."""

LOCAL = "127.0.0.1"
"""Where it listens unless it is told otherwise: whoever reaches the port reads names of streams and runs."""


def _address(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """Parse `[HOST:]PORT`; an IPv6 address stands in brackets."""
    if value is None:
        return None
    host, _, port = value.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 1 << 16):
        raise click.BadParameter(f"{value!r} is not [HOST:]PORT, as in 9400 or 0.0.0.0:9400", ctx, param)
    return host.removeprefix("[").removesuffix("]") or LOCAL, int(port)


def metrics_option(command: F) -> F:
    """Add `--metrics-port`, passed on as `metrics_port`."""
    return click.option(
        "--metrics-port",
        metavar="[HOST:]PORT",
        callback=_address,
        help="Serve /metrics, /livez and /readyz there; 0 takes a free port.  [default: not at all; host 127.0.0.1]",
    )(command)


@contextmanager
def metrics_endpoint(address: tuple[str, int] | None, service: str, quiet: bool) -> Iterator[Show]:
    """Serve a service's metrics while the block lasts, if there is an address, and say where unless `quiet`.

    It is entered before any work begins, which a port that is taken prevents.

    Raises:
        ConfigError: nothing can listen there.
    """
    if address is None:
        yield lambda metrics, served, labels: None
        return
    from pipeline.metrics_server import serve

    with serve(address, service, (lambda url: None) if quiet else _say) as endpoint:
        yield endpoint.show


def _say(text: str) -> None:
    click.echo(text, err=True)
