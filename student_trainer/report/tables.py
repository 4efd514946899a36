"""Sections, tables and figures of HTML; all text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any


def section(title: str, content: Iterable[str]) -> Iterator[str]:
    """Yield a section, nothing where it has no content."""
    rows = list(content)
    if rows:
        yield f"<section><h2>{escape(title)}</h2>"
        yield from rows
        yield "</section>"


def rows_of(head: Sequence[str] | None, rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield a table, the first cell of each row a head; under a `head` the others are figures."""
    yield "<table>"
    if head is not None:
        cells = (f"<th{' class=n' if number else ''}>{escape(each)}</th>" for number, each in enumerate(head))
        yield f"<thead><tr>{''.join(cells)}</tr></thead>"
    yield "<tbody>"
    for row in rows:
        first, *others = (escape(str(each)) for each in row)
        cells = (f"<td{' class=n' if head is not None else ''}>{each}</td>" for each in others)
        yield f"<tr><th scope=row>{first}</th>{''.join(cells)}</tr>"
    yield "</tbody></table>"


def called(name: object, params: Mapping[str, Any]) -> str:
    """Return a name with its parameters."""
    inside = ", ".join(f"{key} = {value}" for key, value in params.items())
    return f"{name} ({inside})" if inside else str(name)


def figure(value: object) -> str:
    """Return a number with four digits, or whole; "-" for None."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
