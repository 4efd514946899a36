"""What several commands share: the cluster's address and the form of what they print."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.limits import MAX_SECONDS

if TYPE_CHECKING:
    from pipeline.kafka.settings import KafkaSettings

F = TypeVar("F", bound=Callable[..., Any])

STREAM = click.argument("stream")


class FolderOrUrl(click.Path):
    """A folder of captured files: a path of this machine, or a URL as text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a path, or a URL as it is."""
        return value if isinstance(value, str) and "://" in value else super().convert(value, param, ctx)


class Share(click.FloatRange):
    """A number from 0 on, up to `most` if there is one; NaN, which click takes for in range, is none."""

    name = "share"

    def __init__(self, most: float | None = None) -> None:
        super().__init__(min=0.0, max=most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises BadParameter."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def confirm(question: str) -> None:
    """Ask on the terminal before something is lost; click.Abort unless the answer is yes."""
    if sys.stdin is None:  # as Python has it where the shell closed it
        raise click.UsageError("there is no input to answer a question: give --yes")
    click.confirm(question, abort=True, err=True)


class Seconds(click.FloatRange):
    """A wait, from `least` seconds on, that ends some day; NaN, which click takes for in range, is none."""

    name = "seconds"

    def __init__(self, least: float, most: float = MAX_SECONDS) -> None:
        super().__init__(min=least)
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises BadParameter."""
        number: float = super().convert(value, param, ctx)
        if not number <= self._most:
            self.fail(f"{value} is not a number of seconds from {self._least:g} to {self._most:g}.", param, ctx)
        return number


def json_option(command: F) -> F:
    """Add `--json`, passed on as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(command)


def quiet_option(command: F) -> F:
    """Add `--quiet`."""
    return click.option("--quiet", is_flag=True, help="Print no progress.")(command)


def kafka_options() -> dict[str, Any]:
    """`bootstrap_servers` and `kafka_config` as the main command was given them."""
    options = click.get_current_context().find_root().params
    return {name: options.get(name) for name in ("bootstrap_servers", "kafka_config")}


def kafka_settings(otherwise: str | None = None) -> KafkaSettings:
    """Address and access of the cluster, from the main command's options, or the local broker that runs.

    Args:
        otherwise: the address where there is none, for who only writes it down.

    Raises:
        ConfigError: no address anywhere, or a bad properties file.
    """
    from pipeline.kafka.found import find_cluster

    return find_cluster(**kafka_options(), otherwise=otherwise)


def view_param(text: str) -> tuple[str, Any]:
    """Name and value of `NAME=VALUE`: a number, true or false where it is one, else a text. Raises UsageError."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.UsageError(f"--view-param {text!r}: write NAME=VALUE")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return name, value
    return name, parsed if isinstance(parsed, bool | int | float) else value


def print_json(value: Any) -> None:
    """Print a JSON document, indented where a person reads it."""
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def print_table(rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns; the first row is the header, numbers stand at the right."""
    texts = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    numeric = [all(isinstance(row[i], int | float | None) for row in rows[1:]) for i in range(len(widths))]
    for row in texts:
        cells = zip(row, widths, numeric, strict=True)
        click.echo("  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in cells).rstrip())
