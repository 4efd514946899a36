"""`distillog replay`: make a stream of captured soft targets."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import click

from pipeline.cli.options import FolderOrUrl, json_option, kafka_settings, print_json, quiet_option


@click.command()
@click.argument("folder", type=FolderOrUrl(file_okay=False, path_type=Path))
@click.option("--to", required=True, metavar="STREAM", help="The stream to make, or to go on with.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Orders a second at most.")
@click.option("--partitions", type=int, help="Partitions, at most 256.  [default: as the captured stream's]")
@click.option("--retention-hours", type=float, help="Keep records this long.  [default: for ever]")
@click.option("--replication-factor", type=int, default=-1, help="Copies of each record.  [default: the cluster's]")
@quiet_option
@json_option
def replay(
    folder: Path | str,
    to: str,
    rate: float | None,
    partitions: int | None,
    retention_hours: float | None,
    replication_factor: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make a stream of the soft targets that were captured in FOLDER, on any cluster and under any name.

    Goes on where an earlier replay into that stream ended, also with what was captured since.
    """
    if rate is not None and not math.isfinite(rate):  # NaN is in range for click
        raise click.UsageError(f"--rate {rate}: no number of orders a second; leave it out for as many as there can be")
    from pipeline.captured.folder import CapturedFolder
    from pipeline.kafka.cluster import KafkaCluster
    from pipeline.progress import Progress, Rate
    from pipeline.replay.copying import Copied, copy_labels
    from pipeline.replay.target import ReplayOptions, open_target
    from pipeline.sequence import Sequence
    from pipeline.stop_signals import on_stop
    from pipeline.topic_settings import retention_ms

    captured = CapturedFolder(folder)
    options = ReplayOptions(partitions, retention_ms(retention_hours), replication_factor)
    settings = kafka_settings()
    stop = threading.Event()
    with on_stop(stop.set), Progress(title=f"replay {folder} to {to}", quiet=quiet) as progress:
        target = open_target(settings, to, captured, options)
        speed = Rate()

        def show(now: Copied) -> None:
            progress.update(order=now.reached, of=now.num_orders, orders_per_s=speed.of(now.new_orders))

        copied = copy_labels(KafkaCluster(settings, stop.is_set), target, rate=rate, stop=stop, progress=show)
        for files in target.files.values():
            files.close()
    manifest = target.stream.manifest
    num_orders, origin = Sequence.of(manifest).num_orders, manifest.replay_of[0]
    if as_json:
        print_json(
            {
                "stream": to,
                "stream_id": manifest.stream_id,
                "created": target.new,
                "replay_of": {"stream": origin.stream, "stream_id": origin.stream_id},
                "orders": num_orders,
                "reached": copied.reached,
                "new_orders": copied.new_orders,
                "finished": not copied.stopped,
                "teachers": {
                    name: {"orders": files.num_orders, "new": copied.new_labels[name]}
                    for name, files in target.files.items()
                },
            }
        )
        return
    made = "made" if target.new else "gone on with"
    click.echo(f"{made} stream {to} ({manifest.stream_id}), whose labels are of {origin}")
    for name, files in target.files.items():
        click.echo(
            f"teacher {name}: {files.num_orders} of {num_orders} orders are captured, {copied.new_labels[name]} copied "
            "now"
        )
    if copied.stopped:
        click.echo(f"stopped at order {copied.reached} of {copied.num_orders}; the same command goes on")
    elif copied.num_orders < num_orders:
        click.echo(
            f"orders {copied.num_orders} to {num_orders - 1} are not captured: capture on and replay again, or let "
            f"`distillog feed {to}` and `distillog teach {to} MODEL.onnx` label them"
        )
