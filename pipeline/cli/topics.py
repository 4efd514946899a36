"""`distillog topics`: make, inspect, repair and delete streams."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import STREAM, confirm, json_option, kafka_settings, print_json, print_table
from pipeline.cli.topics_make import create
from pipeline.cli.topics_rights import rights
from pipeline.cli.topics_teacher import add_teacher
from pipeline.cli.topics_text import print_description, print_lag, print_trim

if TYPE_CHECKING:
    from pipeline.manifest_log import ManifestLog


@click.group()
def topics() -> None:
    """Make, inspect, repair and delete streams."""


topics.add_command(create)
topics.add_command(add_teacher)
topics.add_command(rights)


@topics.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List all streams of the cluster."""
    from pipeline.manifest_log import ManifestLog, read_manifest_logs
    from pipeline.sequence import Sequence
    from pipeline.streams import list_streams

    settings = kafka_settings()
    rows: list[dict[str, Any]] = []
    for name, log in read_manifest_logs(settings, list_streams(settings)).items():
        unreadable = None if isinstance(log, ManifestLog) else f"(unreadable: {log})"
        manifest = log.manifest if isinstance(log, ManifestLog) else None
        row = {
            "stream": name,
            "stream_id": manifest and manifest.stream_id,
            # Without a manifest its creation or deletion was cut short.
            "dataset": manifest.dataset if manifest else unreadable or "(incomplete)",
            "orders": manifest and Sequence.of(manifest).num_orders,
            "teachers": _teachers(log) if isinstance(log, ManifestLog) else [],
        }
        rows.append(row)
    if as_json:
        print_json(rows)
    elif rows:
        cells = [[row["stream"], row["dataset"], row["orders"], ", ".join(row["teachers"]) or None] for row in rows]
        print_table([["STREAM", "DATASET", "ORDERS", "TEACHERS"], *cells])
    else:
        click.echo("no streams that this user may see" if settings.secured else "no streams")


def _teachers(log: ManifestLog) -> list[str]:
    return [*log.teachers, *(f"{name} (needs a newer Distillog)" for name in log.unread)]


@topics.command()
@STREAM
@click.option("--rates", is_flag=True, help="Read twice, a second apart, and show orders per second.")
@json_option
def describe(stream: str, rates: bool, as_json: bool) -> None:
    """Show what STREAM is, its teachers, their workers, and its runs."""
    from pipeline import status
    from pipeline.streams import open_stream

    settings = kafka_settings()
    described = status.describe(settings, open_stream(settings, stream), rates=rates)
    if as_json:
        print_json(described.as_dict())
    else:
        print_description(described)


@topics.command()
@STREAM
@click.option("--rates", is_flag=True, help="Read twice, a second apart, and show orders per second.")
@click.option("--watch", is_flag=True, help="Go on with rates until Ctrl-C.")
@click.option("--partitions", is_flag=True, help="Show each partition.")
@json_option
def lag(stream: str, rates: bool, watch: bool, partitions: bool, as_json: bool) -> None:
    """Show how far STREAM is fed, labelled and trained on."""
    from pipeline import status
    from pipeline.streams import open_stream

    settings = kafka_settings()
    opened = open_stream(settings, stream)
    while True:
        reading = status.lag(settings, opened, rates=rates or watch)
        if as_json:
            print_json(reading.as_dict())
        else:
            print_lag(reading, partitions)
        if not watch:
            return
        click.echo()
        time.sleep(1.0)


@topics.command()
@STREAM
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete(stream: str, yes: bool, as_json: bool) -> None:
    """Delete STREAM: its topics with all labels, and its consumer groups."""
    from pipeline.streams import delete_stream

    settings = kafka_settings()
    if not yes:
        confirm(f"delete stream {stream} at {settings.bootstrap_servers} with all its labels?")
    deleted = delete_stream(settings, stream)
    if as_json:
        print_json({"topics": deleted.topics, "groups": deleted.groups, "groups_in_use": deleted.groups_in_use})
        return
    click.echo(f"deleted stream {stream}: {len(deleted.topics)} topics, {len(deleted.groups)} consumer groups")
    if deleted.groups_in_use:
        click.echo(f"still in use, harmless to a new stream of that name: {', '.join(deleted.groups_in_use)}")


@topics.command()
@STREAM
@click.option(
    "--keep-epochs",
    type=click.IntRange(min=1),
    required=True,
    help="How many of the newest labelled epochs stay, the one under way among them.",
)
@click.option("--without", metavar="RUN", multiple=True, help="A run that is not asked; repeatable.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def trim(stream: str, keep_epochs: int, without: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete the labels of STREAM's oldest epochs, as far as no run needs them.

    A run that is not done needs what lies behind its checkpoint, and all of it if it may go over the stream again.
    """
    from pipeline import trim as trimming
    from pipeline.streams import open_stream

    settings = kafka_settings()
    opened = open_stream(settings, stream)
    plan = trimming.plan_trim(settings, opened, keep_epochs, without)
    if not as_json:
        print_trim(stream, plan)
    if plan.records and not yes:
        confirm(f"delete them from stream {stream} at {settings.bootstrap_servers} for good?")
    trimming.trim(settings, opened, plan)
    if as_json:
        held_by = dict(plan.held_by)
        found = {"stream": stream, "sequence": plan.sequence, "records": plan.records}
        print_json({**found, "runs": plan.runs, "held_by": held_by})
    elif plan.records:
        click.echo(f"deleted {plan.records:,} records")


@topics.command("remove-teacher")
@STREAM
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def remove_teacher(stream: str, name: str, yes: bool, as_json: bool) -> None:
    """Remove teacher NAME from STREAM, with its labels; its name is not used again there.

    Its workers must be stopped. Runs that learn from it cannot go on.
    """
    from pipeline import remove
    from pipeline.streams import open_stream

    settings = kafka_settings()
    opened = open_stream(settings, stream)
    if not yes:
        confirm(f"remove teacher {name} from stream {stream} at {settings.bootstrap_servers} with all its labels?")
    remove.remove_teacher(settings, opened, name)
    if as_json:
        print_json({"stream": stream, "teacher": name, "removed": True})
    else:
        click.echo(f"removed teacher {name} from stream {stream}; another one needs another name")


@topics.command()
@STREAM
@click.argument("teacher")
@click.argument("sequence", type=click.IntRange(min=0))
def rewind(stream: str, teacher: str, sequence: int) -> None:
    """Let TEACHER label again from the work order SEQUENCE on, in that order's partition: the repair for a gap.

    Its workers must be stopped. Students drop the labels that they have already.
    """
    from pipeline.rewind import rewind as rewind_group
    from pipeline.streams import open_stream

    settings = kafka_settings()
    opened = open_stream(settings, stream)
    offset = rewind_group(settings, opened, teacher, sequence)
    partition = sequence % opened.manifest.partitions
    click.echo(f"teacher {teacher} goes on at order {sequence} (partition {partition}, offset {offset})")
