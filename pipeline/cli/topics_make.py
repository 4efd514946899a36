"""`distillog topics create`: from options to a stream."""

from __future__ import annotations

import click

from pipeline.cli.options import STREAM, json_option, kafka_options, kafka_settings, print_json, view_param


@click.command()
@STREAM
@click.option("--dataset", required=True, metavar="URI", help="Dataset, such as digits?split=train or npy:/data/x.")
@click.option("--view", default="none", show_default=True, help="Augmentation that teacher and student both see.")
@click.option("--view-param", "view_params", metavar="NAME=VALUE", multiple=True, help="Its parameters (repeatable).")
@click.option("--order-size", type=int, default=256, show_default=True, help="Samples in a work order.")
@click.option("--epochs", type=int, default=1, show_default=True, help="Passes over the data, each with new views.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of order and views.")
@click.option("--partitions", type=int, default=64, show_default=True, help="Partitions, at most 256.")
@click.option(
    "--codec",
    default="float16",
    show_default=True,
    help="float32, float16, int8, int4, topk:k=10,bits=8,temperatures=1|2 or sampled:n=50.",
)
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
    from pipeline.by_name import create_stream
    from pipeline.sequence import Sequence

    made = create_stream(
        stream,
        dataset,
        view=view,
        view_params=dict(map(view_param, view_params)),
        order_size=order_size,
        epochs=epochs,
        seed=seed,
        partitions=partitions,
        codec=codec,
        classes=classes,
        retention_hours=retention_hours,
        replication_factor=replication_factor,
        **kafka_options(),
    )
    manifest = made.stream.manifest
    if as_json:
        print_json({"stream": stream, "stream_id": manifest.stream_id, "created": made.new})
        return
    orders = Sequence.of(manifest).num_orders
    click.echo(f"{'created' if made.new else 'already there, the same:'} stream {stream} ({manifest.stream_id})")
    # Here shows what a URI meant, such as one of which a shell took all behind an & that was not quoted.
    fields = ", ".join(f"{name} {one.dtype} {list(one.shape)}" for name, one in made.fetcher.dataset.fields.items())
    known = f"{manifest.num_classes} classes" if manifest.num_classes else "classes unknown"
    click.echo(f"dataset {made.fetcher.dataset.uri}: {fields}, {known}")
    click.echo(
        f"{manifest.num_samples} samples x {manifest.epochs} epochs = {orders} orders of {manifest.order_size}, "
        f"{manifest.partitions} partitions, codec {manifest.codec}, view {manifest.view.name}"
    )
    if not manifest.num_classes:
        click.echo(
            f"warning: dataset {manifest.dataset} does not say how many classes it has, so a teacher of any number is "
            "taken; --classes refuses others",
            err=True,
        )
    if not made.stream.teachers and not made.stream.unread:
        click.echo(f"next: distillog topics add-teacher {stream} NAME MODEL.onnx")
    if kafka_settings().secured:
        others = f"--principal User:NAME --role ROLE --stream-id {manifest.stream_id}"
        click.echo(f"what feeder, teacher and student need: distillog topics rights {stream} {others}")
