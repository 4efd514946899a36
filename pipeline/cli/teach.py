"""`distillog teach`: one teacher worker."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import SUPERVISED
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
from pipeline.limits import MAX_SESSION_SECONDS, MAX_THREADS


@click.command()
@STREAM
@MODEL
@TEACHER
@DATASET
@PROVIDER
@click.option(
    "--threads",
    type=click.IntRange(0, MAX_THREADS),
    default=0,
    show_default=True,
    help="Of one inference; 0: all cores.",
)
@LOADERS
@LOADER_PROCESSES
@click.option("--worker", metavar="NAME", help="Name of this worker; host and process ID if not said.")
@click.option(
    "--session-timeout",
    type=Seconds(1.0, MAX_SESSION_SECONDS),
    default=6.0,
    show_default=True,
    help="Seconds until a dead worker is replaced; 6 is the lowest that a default broker allows.",
)
@DATA_RETRY
@AGREEMENT
@UNTIL_IDLE
@click.option("--supervised", is_flag=True, help="No figures, and an exit code that says whether to try again.")
@metrics_option
@quiet_option
def teach(
    stream: str,
    model: Path,
    teacher: str | None,
    dataset: str | None,
    provider: str,
    threads: int,
    loaders: int,
    loader_processes: bool,
    worker: str | None,
    session_timeout: float,
    data_retry: float,
    agreement: float,
    until_idle: bool,
    supervised: bool,
    metrics_port: tuple[str, int] | None,
    quiet: bool,
) -> None:
    """Label the work orders of STREAM with MODEL, an ONNX file that was added to it as a teacher.

    Start as many as there are machines; each takes a share of the partitions by its speed. SIGTERM or Ctrl-C finishes
    the order in hand and leaves.
    """
    import math
    import time
    from dataclasses import replace

    from pipeline.progress import Progress, Rate
    from pipeline.stop_signals import on_stop
    from schemas.names import check_label
    from teacher_service.metrics import METRICS, WorkerReport
    from teacher_service.serve import TeachOptions, prepare_worker
    from teacher_service.worker import WorkerOptions

    click.get_current_context().meta[SUPERVISED] = supervised
    behaviour = WorkerOptions(session_timeout=session_timeout, until_idle=until_idle, data_retry=data_retry)
    if worker:
        behaviour = replace(behaviour, name=check_label("worker", worker))
    after = math.inf if supervised else 0.0
    with (
        metrics_endpoint(metrics_port, "teach", quiet) as show_metrics,
        Progress(title=f"teach {stream}", quiet=quiet, after=after) as progress,
    ):
        rate = Rate()

        def show(report: WorkerReport, partitions: int) -> None:
            progress.update(
                partitions=partitions,
                orders=report.orders,
                samples=report.samples,
                samples_per_s=rate.of(report.samples),
                dead_letters=report.faults + report.not_orders or None,
            )

        loop = prepare_worker(
            kafka_settings(),
            stream,
            model,
            TeachOptions(teacher, dataset, provider, threads, loaders, loader_processes, agreement, behaviour),
            progress.message,
            show,
        )
        show_metrics(METRICS, loop.now, {"stream": stream, "teacher": loop.teacher})
        began, rate = time.monotonic(), Rate()
        with on_stop(loop.stop, hangup=supervised):
            report = loop.run()
        letters = f" (see `distillog letters list {stream}`)" if report.faults or report.not_orders else ""
        progress.message(
            f"labelled {report.orders} orders, {report.samples} samples in {time.monotonic() - began:.1f} s; "
            f"to the dead letters: {report.faults} samples, {report.not_orders} records{letters}; "
            f"repetitions dropped: {report.repetitions}; rebalances: {report.rebalances}"
        )
