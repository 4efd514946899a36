"""`distillog fleet`: as many teacher workers on this machine as are needed."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.labelling import (
    AGREEMENT,
    DATA_RETRY,
    DATASET,
    LOADER_PROCESSES,
    LOADERS,
    MODEL,
    PROVIDER,
    TEACHER,
    UNTIL_IDLE,
)
from pipeline.cli.metrics_options import metrics_endpoint, metrics_option
from pipeline.cli.options import STREAM, Seconds, kafka_settings, quiet_option
from pipeline.limits import MAX_SESSION_SECONDS, MAX_THREADS, MAX_WORKERS


@click.command()
@STREAM
@MODEL
@click.option(
    "--min", type=click.IntRange(1, MAX_WORKERS), default=1, show_default=True, help="Workers that always run."
)
@click.option(
    "--max",
    type=click.IntRange(1, MAX_WORKERS),
    help="Workers at once.  [default: one for each GPU, else for each core, but 8 at most]",
)
@click.option("--follow", metavar="RUN", help="Have as many as this run's pace takes, not as many as can be.")
@click.option("--gpus", metavar="ID[,...]", help="GPUs to use, one for each worker.  [default: all]")
@click.option("--name", metavar="NAME", help="Workers are NAME-1, NAME-2, ...; host and process ID if not said.")
@TEACHER
@DATASET
@PROVIDER
@click.option(
    "--threads",
    type=click.IntRange(0, MAX_THREADS),
    default=0,
    show_default=True,
    help="Of one inference; 0: a worker's share of the cores.",
)
@LOADERS
@LOADER_PROCESSES
@click.option(
    "--session-timeout",
    type=Seconds(1.0, MAX_SESSION_SECONDS),
    default=6.0,
    show_default=True,
    help="Seconds until a worker is replaced whose death nobody saw.",
)
@DATA_RETRY
@AGREEMENT
@UNTIL_IDLE
@metrics_option
@quiet_option
def fleet(
    stream: str,
    model: Path,
    min: int,
    max: int | None,
    follow: str | None,
    gpus: str | None,
    name: str | None,
    teacher: str | None,
    dataset: str | None,
    provider: str,
    threads: int,
    loaders: int,
    loader_processes: bool,
    session_timeout: float,
    data_retry: float,
    agreement: float,
    until_idle: bool,
    metrics_port: tuple[str, int] | None,
    quiet: bool,
) -> None:
    """Keep as many `distillog teach` workers of MODEL on this machine as STREAM needs, and replace those that die.

    Without --follow there are --max of them while there is work, and --min when there is none. SIGTERM or Ctrl-C lets
    them finish the orders in hand and leave.
    """
    from dataclasses import replace

    from pipeline.progress import Progress
    from pipeline.stop_signals import on_stop
    from teacher_service.fleet.metrics import METRICS
    from teacher_service.fleet.supervisor import Fleet, FleetOptions

    options = FleetOptions(
        least=min,
        most=max,
        run=follow,
        gpus=_names(gpus),
        teacher=teacher,
        dataset=dataset,
        provider=provider,
        threads=threads,
        loaders=loaders,
        loader_processes=loader_processes,
        session_timeout=session_timeout,
        data_retry=data_retry,
        agreement=agreement,
        until_idle=until_idle,
        quiet=quiet,
    )
    if name:
        options = replace(options, name=name)
    with (
        metrics_endpoint(metrics_port, "fleet", quiet) as show_metrics,
        Progress(title=f"fleet {stream}", quiet=quiet) as progress,
    ):
        settings = kafka_settings()
        relay = (lambda line: click.echo(line, err=True)) if quiet else progress.message
        supervisor = Fleet(settings, stream, model, options, progress, relay, _main_options(settings.bootstrap_servers))
        labels = {"stream": stream, "teacher": supervisor.teacher}
        show_metrics(METRICS, supervisor.now, labels | ({"run": follow} if follow else {}))
        with on_stop(supervisor.stop):
            supervisor.run()
        now = supervisor.now
        progress.message(f"workers started: {now.started}, in the place of one that died: {now.replaced}")


def _names(gpus: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (gpus or "").split(","))
    if gpus is not None and not all(names):
        raise click.UsageError(f"--gpus {gpus!r}: write IDs separated by commas, as in 0,1")
    return names if gpus is not None else ()


def _main_options(servers: str) -> list[str]:
    """What a worker is told before its command, as we were told it."""
    params = click.get_current_context().find_root().params
    words = ["--bootstrap-servers", servers]
    words += ["--kafka-config", str(params["kafka_config"])] if params["kafka_config"] else []
    return words + ["--verbose"] * bool(params["verbose"])
