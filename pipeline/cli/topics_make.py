"""`distillog topics create` and `add-teacher`: from options to a stream."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.options import STREAM, json_option, kafka_settings, print_json, view_param


@click.command()
@STREAM
@click.option("--dataset", required=True, metavar="URI", help="Dataset, such as digits?split=train or npy:/data/x.")
@click.option("--view", default="none", show_default=True, help="Augmentation that teacher and student both see.")
@click.option("--view-param", "view_params", metavar="NAME=VALUE", multiple=True, help="Its parameters (repeatable).")
@click.option("--order-size", type=int, default=256, show_default=True, help="Samples in a work order.")
@click.option("--epochs", type=int, default=1, show_default=True, help="Passes over the data, each with new views.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of order and views.")
@click.option("--partitions", type=int, default=64, show_default=True, help="Partitions, at most 256.")
@click.option("--codec", default="float16", show_default=True, help="float32, float16 or topk:k=10,temperatures=1|2.")
@click.option("--classes", type=int, default=0, help="Number of classes.  [default: the dataset's]")
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
    """Make STREAM over a dataset; the same call again changes nothing."""
    from pipeline.create import StreamOptions, create_stream
    from pipeline.datasets import open_dataset
    from pipeline.datasets.uri import absolute
    from pipeline.sequence import Sequence
    from pipeline.topic_settings import KEEP_FOR_EVER
    from pipeline.views import view_spec
    from pipeline.views.fetch import Fetcher
    from schemas.codecs import CodecSpec
    from schemas.errors import ConfigError

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
    spec = view_spec(view, dict(map(view_param, view_params)))
    dataset = absolute(dataset)  # a worker may stand in another folder
    fetcher = Fetcher(open_dataset(dataset), spec)
    made, new = create_stream(settings, stream, fetcher, dataset, options)
    manifest = made.manifest
    if as_json:
        print_json({"stream": stream, "stream_id": manifest.stream_id, "created": new})
        return
    orders = Sequence.of(manifest).num_orders
    click.echo(f"{'created' if new else 'already there, the same:'} stream {stream} ({manifest.stream_id})")
    # Here shows what a URI meant, such as one of which a shell took all behind an & that was not quoted.
    fields = ", ".join(f"{name} {one.dtype} {list(one.shape)}" for name, one in fetcher.dataset.fields.items())
    known = f"{manifest.num_classes} classes" if manifest.num_classes else "classes unknown"
    click.echo(f"dataset {fetcher.dataset.uri}: {fields}, {known}")
    click.echo(
        f"{manifest.num_samples} samples x {manifest.epochs} epochs = {orders} orders of {manifest.order_size}, "
        f"{manifest.partitions} partitions, codec {manifest.codec}, view {manifest.view.name}"
    )
    if not made.teachers:
        click.echo(f"next: distillog topics add-teacher {stream} NAME MODEL.onnx")
    if settings.secured:
        others = f"--principal User:NAME --role ROLE --stream-id {manifest.stream_id}"
        click.echo(f"what feeder, teacher and student need: distillog topics rights {stream} {others}")


@click.command("add-teacher")
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
    help="Field of the dataset for an ONNX input, *255 to multiply (repeatable).  [default: by name]",
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
    from teacher_service.describe import describe_model

    names, scale = _inputs(inputs)
    settings = kafka_settings()
    opened = open_stream(settings, stream)
    fetcher = check_data(opened.manifest, dataset)
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
