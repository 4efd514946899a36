"""`distillog letters`: what could not be labelled, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import STREAM, Seconds, json_option, kafka_settings, print_json, print_table

if TYPE_CHECKING:
    from pipeline.letters import Found, Histogram, Letters

REPAIR = (
    "labels once written are never changed: mend the data, and label it under a new teacher name "
    "(`distillog topics add-teacher`)"
)

_WIDE = 100
"""Characters of a reason in a table."""
_HEX_BYTES = 32
"""Bytes in a line of hex digits."""


@click.group()
def letters() -> None:
    """See what could not be labelled, and why."""


@letters.command("list")
@STREAM
@click.option("--teacher", metavar="NAME", help="Count this teacher's letters alone.")
@click.option("--sample", type=click.IntRange(min=0), metavar="ID", help="Count the letters about this sample alone.")
@click.option("--most", type=click.IntRange(min=1), default=10, show_default=True, help="Lines of each histogram.")
@click.option(
    "--timeout", type=Seconds(1.0), default=600.0, show_default=True, help="Seconds in which all letters are read."
)
@json_option
def list_(stream: str, teacher: str | None, sample: int | None, most: int, timeout: float, as_json: bool) -> None:
    """Count the dead letters of STREAM: by reason, by sample and by worker."""
    from pipeline.kafka.cluster import KafkaCluster
    from pipeline.letters import list_letters
    from pipeline.streams import open_stream

    settings = kafka_settings()
    opened = open_stream(settings, stream)
    found = list_letters(KafkaCluster(settings), opened, most=most, teacher=teacher, sample=sample, timeout=timeout)
    if as_json:
        print_json({"stream": stream, "teacher": teacher, "sample": sample, **_as_dict(found)})
        return
    of = "".join([f" of teacher {teacher}" if teacher else "", f" about sample {sample}" if sample is not None else ""])
    if not found.num_letters:
        click.echo(f"stream {stream} has no dead letters{of}{_beside(found)}")
        return
    click.echo(f"stream {stream} has {found.num_letters} dead letters{of}{_beside(found)}\n")
    _print_histogram("REASON", found.reasons, found.first_of)
    for name, histogram in (("SAMPLE", found.samples), ("WORKER", found.workers), ("TEACHER", found.teachers)):
        num_values = len(histogram.commonest) + histogram.num_more
        if num_values > (name == "TEACHER"):  # one teacher alone tells nothing
            click.echo()
            _print_histogram(name, histogram)
    click.echo(f"\nFIRST is the first letter of its kind, for `distillog letters show {stream} FIRST`; {REPAIR}")


def _beside(found: Letters) -> str:
    """Say of the topic what the number of letters does not."""
    texts = {
        "about whole records that are no work orders": found.num_of_records,
        "more records repeat letters": found.num_repeated,
        "are no letters of this stream": found.num_foreign,
        "were removed by retention": found.num_removed,
    }
    said = "; ".join(f"{number} {text}" for text, number in texts.items() if number)
    return f" ({said})" if said else ""


def _print_histogram(name: str, histogram: Histogram[Any], firsts: Mapping[str, int] | None = None) -> None:
    """Print a table; `firsts` gives a letter of each value, for a column of its own."""
    if firsts is None:
        print_table([["LETTERS", name], *([count, _cut(value)] for value, count in histogram.commonest)])
    else:
        rows = ([count, firsts[value], _cut(value)] for value, count in histogram.commonest)
        print_table([["LETTERS", "FIRST", name], *rows])
    if histogram.num_more:
        click.echo(f"and {histogram.num_more} more")


def _as_dict(found: Letters) -> dict[str, Any]:
    firsts = found.first_of
    reasons = [{"reason": kind, "letters": count, "first": firsts[kind]} for kind, count in found.reasons.commonest]
    document: dict[str, Any] = {
        "letters": found.num_letters,
        "of_records": found.num_of_records,
        "repeated": found.num_repeated,
        "foreign": found.num_foreign,
        "removed": found.num_removed,
        "reasons": {"commonest": reasons, "more": found.reasons.num_more},
    }
    for name, histogram in (("sample", found.samples), ("worker", found.workers), ("teacher", found.teachers)):
        commonest = [{name: value, "letters": count} for value, count in histogram.commonest]
        document[f"{name}s"] = {"commonest": commonest, "more": histogram.num_more}
    return document


@letters.command()
@STREAM
@click.argument("number", type=click.IntRange(min=0))
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the raw bytes to this new file.")
@json_option
def show(stream: str, number: int, out: Path | None, as_json: bool) -> None:
    """Show dead letter NUMBER of STREAM in full.

    One about a whole record carries the record's bytes, of a large one the first 65,536.
    """
    from pipeline.kafka.cluster import KafkaCluster
    from pipeline.letters import read_letter, write_raw
    from pipeline.streams import open_stream

    settings = kafka_settings()
    found = read_letter(KafkaCluster(settings), open_stream(settings, stream), number)
    if out is not None:
        write_raw(found, out)
    if as_json:
        print_json({"stream": stream, **_letter_as_dict(found)})
        return
    raw = found.letter.raw
    facts = {name: value for name, value in _letter_as_dict(found).items() if value is not None and name != "raw"}
    for name, value in facts.items():
        click.echo(f"{name:<8} {_printable(str(value))}")
    if raw is not None:
        click.echo(f"{'raw':<8} {len(raw)} bytes{f', written to {out}' if out else ''}")
        for start in range(0, 0 if out else len(raw), _HEX_BYTES):
            click.echo(f"{start:8} {raw[start : start + _HEX_BYTES].hex(' ')}")
    else:
        click.echo(f"\n{REPAIR}")


def _letter_as_dict(found: Found) -> dict[str, Any]:
    letter = found.letter
    return {
        "letter": found.number,
        "address": found.address,
        "teacher": letter.teacher,
        "worker": found.worker or None,
        "order": letter.sequence,
        "row": letter.row,
        "sample": letter.sample_id,
        "reason": letter.reason,
        "raw": None if letter.raw is None else letter.raw.hex(),
    }


def _cut(value: object) -> object:
    """Return a cell of a table: a number as it is, a text so that it stays one line of a terminal."""
    if isinstance(value, int):
        return value
    text = _printable(str(value))
    return text if len(text) <= _WIDE else f"{text[: _WIDE - 3]}..."


def _printable(text: str) -> str:
    """Return a text without what a terminal would obey: whoever may write letters may write any."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
