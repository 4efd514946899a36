"""`distillog capture`: store a stream's soft targets as files, to train without a broker."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import STREAM, FolderOrUrl, json_option, kafka_settings, print_json, quiet_option

if TYPE_CHECKING:
    from pipeline.captured.folder import CapturedFolder

_SIZE = re.compile(r"([0-9]{1,15})(KiB|MiB|GiB|)")
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Parse `256MiB`."""
    if value is None:
        return None
    found = _SIZE.fullmatch(value)
    if not found or int(found[1]) == 0:
        raise click.BadParameter(f"{value!r} is no size, as 64KiB, 256MiB, 1GiB or a number of bytes are", ctx, param)
    return int(found[1]) * _UNITS[found[2]]


@click.command()
@STREAM
@click.argument("folder", type=FolderOrUrl(file_okay=False, path_type=Path))
@click.option("--teacher", metavar="NAME", multiple=True, help="Whose labels (repeatable).  [default: all teachers]")
@click.option(
    "--codec",
    type=click.Choice(["null", "deflate", "zstandard"]),
    help="How blocks are packed.  [default: null, or as the folder has it]",
)
@click.option(
    "--max-file-size",
    metavar="SIZE",
    callback=_size,
    help="Bytes of a file, e.g. 64MiB.  [default: 256MiB, or as the folder has it]",
)
@click.option("--follow", is_flag=True, help="Go on until the stream's last order is labelled.")
@click.option("--check", is_flag=True, help="Read what is in FOLDER and compare it with its SHA-256; no broker.")
@click.option(
    "--parquet",
    metavar="TABLES",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write what is in FOLDER as TABLES/TEACHER.parquet, one row a sample; no broker.",
)
@click.option("--dataset", metavar="URI", help="With --parquet: the stream's data, for a column of true labels.")
@quiet_option
@json_option
def capture(
    stream: str,
    folder: Path | str,
    teacher: tuple[str, ...],
    codec: str | None,
    max_file_size: int | None,
    follow: bool,
    check: bool,
    parquet: Path | None,
    dataset: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Store the soft targets of STREAM in FOLDER, as Avro files that runs read with source = "files".

    Goes on where an earlier capture into FOLDER ended. Without --follow it ends with what is there.
    """
    if dataset and not parquet:
        raise click.UsageError("--dataset is of the tables: give --parquet, too")
    if check and parquet:
        raise click.UsageError("--check and --parquet: give one of them")
    given = {"--codec": codec, "--max-file-size": max_file_size, "--follow": follow}
    if (check or parquet) and (wrong := [option for option, value in given.items() if value]):
        reading = "--check" if check else "--parquet"
        raise click.UsageError(f"{reading} reads FOLDER alone and captures nothing: leave out {', '.join(wrong)}")
    if check:
        _check(stream, folder, teacher, quiet, as_json)
        return
    if parquet:
        _tables(stream, folder, parquet, teacher, dataset, quiet, as_json)
        return
    from pipeline.captured.capturing import CaptureForm
    from pipeline.captured.urls import refuse_secrets
    from pipeline.kafka.cluster import KafkaCluster
    from pipeline.progress import Progress
    from pipeline.sequence import Sequence
    from pipeline.stop_signals import on_stop
    from pipeline.streams import open_stream
    from schemas.errors import ConfigError
    from student_trainer import capture as capturing

    if isinstance(folder, str):
        refuse_secrets(folder)
        raise ConfigError(
            f"{folder}: is a URL, and a capture appends to its files and locks them; capture into a folder, then "
            "upload what lies there, contents.json last"
        )
    settings = kafka_settings()
    opened = open_stream(settings, stream)
    num_orders = Sequence.of(opened.manifest).num_orders
    stop = threading.Event()
    with on_stop(stop.set), Progress(title=f"capture {stream}", quiet=quiet) as progress:
        found = capturing.capture(
            KafkaCluster(settings, stop.is_set),
            opened,
            folder,
            teacher,
            CaptureForm(codec, max_file_size),
            follow=follow,
            stop=stop,
            progress=progress,
        )
    if as_json:
        teachers = {
            each.teacher: {"orders": each.num_orders, "new": each.num_new, "bytes": each.num_bytes} for each in found
        }
        print_json({"stream": stream, "folder": str(folder), "orders": num_orders, "teachers": teachers})
        return
    for each in found:
        click.echo(
            f"{folder}: {each.num_orders} of {num_orders} orders of teacher {each.teacher} ({each.num_new} new), "
            f"{each.num_bytes:,} bytes"
        )


def _opened(stream: str, folder: Path | str) -> CapturedFolder:
    from pipeline.captured.folder import CapturedFolder
    from schemas.errors import StreamConflict

    captured = CapturedFolder(folder)
    if captured.contents.stream != stream:
        raise StreamConflict(f"{folder}: is captured from stream {captured.contents.stream!r}, not from {stream!r}")
    return captured


def _tables(
    stream: str,
    folder: Path | str,
    target: Path,
    teachers: tuple[str, ...],
    dataset: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    from pipeline.captured.parquet import write_tables
    from pipeline.progress import Progress

    captured = _opened(stream, folder)
    num_orders = captured.contents.num_orders
    with Progress(title=f"parquet {target}", quiet=quiet) as progress:

        def show(teacher: str, order: int, orders: int) -> None:
            progress.update(**{teacher: f"{order:,}/{orders:,}"})

        tables = write_tables(captured, target, teachers, dataset, show)
    if as_json:
        found = {
            each.teacher: {"file": str(each.path), "orders": each.num_orders, "rows": each.num_rows, "new": each.new}
            for each in tables
        }
        print_json({"stream": stream, "folder": str(folder), "orders": num_orders, "tables": found})
        return
    for each in tables:
        there = "" if each.new else ", as it was"
        click.echo(f"{each.path}: {each.num_rows:,} samples of {each.num_orders} of {num_orders} orders{there}")


def _check(stream: str, folder: Path | str, teachers: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    from pipeline.captured.folder import listed_bytes
    from pipeline.progress import Progress

    captured = _opened(stream, folder)
    contents = captured.contents
    files = {name: captured.teacher(name) for name in dict.fromkeys(teachers or contents.teachers)}
    num_bytes = {name: listed_bytes(contents.teachers[name]) for name in files}
    total = sum(num_bytes.values())
    with Progress(title=f"check {folder}", quiet=quiet, after=2.0) as progress:
        done = 0

        def read(count: int) -> None:
            nonlocal done
            done += count
            progress.update(MB=f"{done / 1e6:,.0f}/{total / 1e6:,.0f}")

        for each in files.values():
            each.verify(read)
            each.close()
    if as_json:
        of_each = {name: {"orders": each.num_orders, "bytes": num_bytes[name]} for name, each in files.items()}
        print_json({"stream": stream, "folder": str(folder), "orders": contents.num_orders, "teachers": of_each})
        return
    orders = ", ".join(
        f"{each.num_orders} of {contents.num_orders} orders of teacher {name}" for name, each in files.items()
    )
    click.echo(f"{folder}: {total:,} bytes are as listed: {orders}")
