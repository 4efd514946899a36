"""`distillog topics`: make, inspect, repair and delete streams."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from pipeline.cli.options import json_option, kafka_settings, print_json, print_table
from pipeline.cli.topics_text import print_description, print_lag

STREAM = click.argument("stream")


@click.group()
def topics() -> None:
    """Make, inspect, repair and delete streams."""


@topics.command()
@STREAM
@click.option("--dataset", required=True, metavar="URI", help="Data set, such as digits?split=train or npy:/data/x.")
@click.option("--view", default="none", show_default=True, help="Augmentation that teacher and student both see.")
@click.option("--view-param", "view_params", metavar="NAME=VALUE", multiple=True, help="Its parameters (repeatable).")
@click.option("--order-size", type=int, default=256, show_default=True, help="Samples in a work order.")
@click.option("--epochs", type=int, default=1, show_default=True, help="Passes over the data, each with new views.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of order and views.")
@click.option("--partitions", type=int, default=64, show_default=True, help="Partitions, at most 256.")
@click.option("--codec", default="float16", show_default=True, help="float32, float16 or topk:k=10,temperatures=1|2.")
@click.option("--classes", type=int, default=0, help="Number of classes.  [default: the data set's]")
@click.option("--retention-hours", type=float, help="Keep records this long.  [default: for ever]")
@click.option("--replication-factor", type=int, default=-1, help="Copies of each record.  [default: the cluster's]")
@json_option
def create(
    stream: str,
    dataset: str,
    view: str,
    view_params: tuple[str, ...],
    order_size: int,
    epochs: int,
    seed: int,
    partitions: int,
    codec: str,
    classes: int,
    retention_hours: float | None,
    replication_factor: int,
    as_json: bool,
) -> None:
    """Make STREAM over a data set; the same call again changes nothing."""
    from pipeline.create import KEEP_FOR_EVER, StreamOptions, create_stream
    from pipeline.datasets import open_dataset
    from pipeline.sequence import Sequence
    from pipeline.views import view_spec
    from pipeline.views.fetch import Fetcher
    from schemas.codecs import CodecSpec
    from schemas.errors import ConfigError, DataUnavailable

    if retention_hours is not None and not 0 < retention_hours < 1e9:
        raise ConfigError(f"--retention-hours {retention_hours:g}: give a positive number, or leave it out for ever")
    settings = kafka_settings()
    options = StreamOptions(
        order_size=order_size,
        epochs=epochs,
        seed=seed,
        partitions=partitions,
        codec=CodecSpec.parse(codec),
        num_classes=classes,
        retention_ms=KEEP_FOR_EVER if retention_hours is None else int(retention_hours * 3_600_000),
        replication_factor=replication_factor,
    )
    spec = view_spec(view, dict(map(_view_param, view_params)))
    try:
        made, new = create_stream(settings, stream, Fetcher(open_dataset(dataset), spec), dataset, options)
    except OSError as error:
        raise DataUnavailable(f"data set {dataset} cannot be read: {error}") from error
    manifest = made.manifest
    if as_json:
        print_json({"stream": stream, "stream_id": manifest.stream_id, "created": new})
        return
    orders = Sequence.of(manifest).num_orders
    click.echo(f"{'created' if new else 'already there, the same:'} stream {stream} ({manifest.stream_id})")
    click.echo(
        f"{manifest.num_samples} samples x {manifest.epochs} epochs = {orders} orders of {manifest.order_size}, "
        f"{manifest.partitions} partitions, codec {manifest.codec}, view {manifest.view.name}"
    )
    if not made.teachers:
        click.echo(f"next: distillog topics add-teacher {stream} NAME MODEL.onnx")


def _view_param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.UsageError(f"--view-param {text!r}: write NAME=VALUE")
    try:
        parsed = json.loads(value)
    except ValueError:
        return name, value
    return name, parsed if isinstance(parsed, bool | int | float) else value


@topics.command("add-teacher")
@STREAM
@click.argument("name")
@click.argument("model", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--output", metavar="NAME", help="ONNX output to take.  [default: the only one]")
@click.option(
    "--kind",
    type=click.Choice(["logits", "probabilities", "log_probabilities"]),
    help="What the output holds.  [default: logits]",
)
@click.option(
    "--input",
    "inputs",
    metavar="FIELD=NAME[*SCALE]",
    multiple=True,
    help="Field of the data set for an ONNX input, *255 to multiply (repeatable).  [default: by name]",
)
@click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Layout of image inputs.  [default: by shape]")
@click.option("--batch", type=click.IntRange(min=1), help="Rows of each inference.  [default: the model's]")
@click.option("--dataset", metavar="URI", help="The stream's data at another place.")
@json_option
def add_teacher(
    stream: str,
    name: str,
    model: Path,
    output: str | None,
    kind: str | None,
    inputs: tuple[str, ...],
    layout: str | None,
    batch: int | None,
    dataset: str | None,
    as_json: bool,
) -> None:
    """Register the ONNX file MODEL as teacher NAME of STREAM, and make its topic."""
    from pipeline import create
    from pipeline.streams import open_stream
    from pipeline.views.check import check_data
    from schemas.errors import DataUnavailable
    from teacher_service.describe import describe_model

    names, scale = _inputs(inputs)
    settings = kafka_settings()
    opened = open_stream(settings, stream)
    try:
        fetcher = check_data(opened.manifest, dataset)
    except OSError as error:
        raise DataUnavailable(f"data set {dataset or opened.manifest.dataset} cannot be read: {error}") from error
    teacher = describe_model(
        model,
        name,
        opened.manifest,
        fetcher,
        output=output,
        kind=kind,
        inputs=names,
        scale=scale,
        layout=layout,
        batch=batch,
    )
    new = create.add_teacher(settings, opened, teacher)
    if as_json:
        print_json({"stream": stream, "teacher": name, "sha256": teacher.sha256, "added": new})
        return
    click.echo(f"{'added' if new else 'already there, the same:'} teacher {name} of stream {stream}")
    fields = ", ".join(f"{one.field} -> {one.input} ({one.dtype})" for one in teacher.inputs)
    click.echo(
        f"{teacher.model_file} (sha256 {teacher.sha256[:12]}): {fields}; output {teacher.output}, {teacher.kind}, "
        f"{teacher.num_classes} classes, batches of {teacher.inference_batch}"
    )


def _inputs(texts: tuple[str, ...]) -> tuple[dict[str, str], dict[str, float]]:
    """Parse `FIELD=NAME[*SCALE]` into field -> ONNX input, and field -> factor."""
    names: dict[str, str] = {}
    scale: dict[str, float] = {}
    for text in texts:
        field, equals, name = text.partition("=")
        name, star, factor = name.partition("*")
        if not (field and equals and name):
            raise click.UsageError(f"--input {text!r}: write FIELD=NAME or FIELD=NAME*SCALE")
        if field in names:
            raise click.UsageError(f"--input {text!r}: field {field} is given twice")
        names[field] = name
        if star:
            try:
                scale[field] = float(factor)
            except ValueError:
                raise click.UsageError(f"--input {text!r}: {factor!r} is not a number") from None
    return names, scale


@topics.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List all streams of the cluster."""
    from pipeline.manifest_log import read_manifest_logs
    from pipeline.sequence import Sequence
    from pipeline.streams import list_streams

    settings = kafka_settings()
    rows: list[dict[str, Any]] = []
    for name, log in read_manifest_logs(settings, list_streams(settings)).items():
        manifest = log.manifest
        row = {
            "stream": name,
            "stream_id": manifest and manifest.stream_id,
            # Without a manifest its creation or deletion was cut short.
            "dataset": manifest.dataset if manifest else "(incomplete)",
            "orders": manifest and Sequence.of(manifest).num_orders,
            "teachers": list(log.teachers),
        }
        rows.append(row)
    if as_json:
        print_json(rows)
    elif rows:
        cells = [[row["stream"], row["dataset"], row["orders"], ", ".join(row["teachers"]) or None] for row in rows]
        print_table([["STREAM", "DATASET", "ORDERS", "TEACHERS"], *cells])
    else:
        click.echo("no streams")


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
        print_json(described)
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
            print_json(reading)
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
        click.confirm(
            f"delete stream {stream} at {settings.bootstrap_servers} with all its labels?", abort=True, err=True
        )
    deleted = delete_stream(settings, stream)
    if as_json:
        print_json({"topics": deleted.topics, "groups": deleted.groups, "groups_in_use": deleted.groups_in_use})
        return
    click.echo(f"deleted stream {stream}: {len(deleted.topics)} topics, {len(deleted.groups)} consumer groups")
    if deleted.groups_in_use:
        click.echo(f"still in use, harmless to a new stream of that name: {', '.join(deleted.groups_in_use)}")


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
