"""`distillog feed`: publish a stream's work orders."""

from __future__ import annotations

import re
import threading

import click

from pipeline.cli.metrics_options import metrics_endpoint, metrics_option
from pipeline.cli.options import Seconds, json_option, kafka_settings, print_json, quiet_option

_LEAD = re.compile(r"[0-9]{1,18}")


def _lead(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Parse `LOW:HIGH`."""
    if value is None:
        return None
    low, colon, high = value.partition(":")
    if not (colon and _LEAD.fullmatch(low) and _LEAD.fullmatch(high)):
        raise click.BadParameter(f"{value!r} is not LOW:HIGH, as in 256:512", ctx, param)
    return int(low), int(high)


@click.command()
@click.argument("stream")
@click.option("--follow", metavar="RUN", multiple=True, help="Stay ahead of this run (repeatable).")
@click.option(
    "--lead",
    metavar="LOW:HIGH",
    callback=_lead,
    help="Publish until HIGH orders lie ahead of the run, go on below LOW.  [default: 4 and 8 for each partition]",
)
@click.option(
    "--pace",
    type=click.Choice(["fastest", "slowest"]),
    default="fastest",
    show_default=True,
    help="Of several runs, which one to stay ahead of.",
)
@click.option(
    "--follow-timeout",
    type=Seconds(1.0),
    default=60.0,
    show_default=True,
    help="Seconds without a report after which a run is no longer followed.",
)
@click.option(
    "--appear-timeout",
    type=Seconds(1.0),
    default=600.0,
    show_default=True,
    help="Seconds to wait for a run that has not reported yet.",
)
@metrics_option
@quiet_option
@json_option
def feed(
    stream: str,
    follow: tuple[str, ...],
    lead: tuple[int, int] | None,
    pace: str,
    follow_timeout: float,
    appear_timeout: float,
    metrics_port: tuple[str, int] | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Publish the work orders of STREAM, going on where the topic ends.

    Without --follow all of them are published. Ends when all are fed or no followed run is left.
    """
    from pipeline import feed as feeder
    from pipeline.feed_metrics import METRICS, Feeding
    from pipeline.kafka.cluster import KafkaCluster
    from pipeline.progress import Progress
    from pipeline.sequence import Sequence
    from pipeline.stop_signals import on_stop
    from pipeline.streams import open_stream

    stop = threading.Event()
    with metrics_endpoint(metrics_port, "feed", quiet) as show_metrics:
        settings = kafka_settings()
        opened = open_stream(settings, stream)
        feeding = Feeding(Sequence.of(opened.manifest).num_orders)
        show_metrics(METRICS, feeding, {"stream": stream})
        with on_stop(stop.set), Progress(title=f"feed {stream}", quiet=quiet) as progress:
            fed = feeder.feed(
                KafkaCluster(settings, stop.is_set),
                opened,
                follow,
                lead,
                progress,
                stop,
                pace=pace,
                follow_timeout=follow_timeout,
                appear_timeout=appear_timeout,
                feeding=feeding,
            )
    if as_json:
        print_json({"published": fed.published, "next": fed.next_sequence, "orders": fed.total, "why": fed.why})
    else:
        there = (
            "the topic was not read"
            if fed.next_sequence is None
            else f"{fed.next_sequence} of {fed.total} orders are fed"
        )
        click.echo(f"{stream}: {fed.why}; published {fed.published}, {there}")
