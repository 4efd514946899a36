"""`distillog verify`: whether the labels of a stream, or of a folder, are what their teacher gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.labelling import DATASET, LOADER_PROCESSES, LOADERS, MODEL, PROVIDER, TEACHER
from pipeline.cli.options import STREAM, Share, json_option, kafka_settings, print_json, quiet_option
from pipeline.limits import MAX_THREADS, SAME_LABEL

if TYPE_CHECKING:
    from teacher_service.proof.verify import Verdict


@click.command()
@STREAM
@MODEL
@TEACHER
@click.option(
    "--rows", type=click.IntRange(min=1), default=1, show_default=True, help="Rows of each order to label again."
)
@click.option(
    "--fraction", type=Share(1.0), default=0.0, show_default=True, help="Or so much of each order, where that is more."
)
@click.option("--seed", type=click.IntRange(0, (1 << 63) - 1), default=0, show_default=True, help="Which rows.")
@click.option(
    "--limit",
    type=Share(),
    default=SAME_LABEL,
    show_default=True,
    help="Largest change, as a share of an output's range, that is no difference.",
)
@click.option("--from-sequence", type=click.IntRange(min=0), default=0, show_default=True, help="The first order.")
@click.option("--until-sequence", type=click.IntRange(min=1), help="The order behind the last.  [default: all orders]")
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
@json_option
@quiet_option
def verify(
    stream: str,
    model: Path,
    teacher: str | None,
    rows: int,
    fraction: float,
    seed: int,
    limit: float,
    from_sequence: int,
    until_sequence: int | None,
    dataset: str | None,
    provider: str,
    threads: int,
    loaders: int,
    loader_processes: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Label some rows of every order of STREAM again with MODEL, and compare them with the labels in the log.

    STREAM is also a folder of captured labels, written with a slash: ./labels, or the URL of one. Of a teacher that
    moves, MODEL is a generation's, and its labels alone are looked at. Nothing is written to either. Exit code 4: an
    order differs.
    """
    from pipeline.captured.contents import NAME
    from pipeline.captured.urls import is_url, refuse_secrets
    from pipeline.progress import Progress, Rate
    from teacher_service.proof.rows import Choice
    from teacher_service.proof.subject import is_folder, of_folder, of_stream
    from teacher_service.proof.verify import Verification, VerifyOptions

    options = VerifyOptions(
        dataset=dataset,
        provider=provider,
        threads=threads,
        loaders=loaders,
        loader_processes=loader_processes,
        choice=Choice(rows, fraction, seed),
        limit=limit,
        begin=from_sequence,
        until=until_sequence,
    )
    folder: Path | str | None = None
    if is_url(stream):
        refuse_secrets(stream)
        folder = stream
    elif is_folder(stream):
        folder = Path(stream)
    with Progress(title=f"verify {stream}", quiet=quiet) as progress:
        if folder is not None:
            subject = of_folder(folder, model, teacher)
        else:
            if Path(stream, NAME).is_file():
                progress.message(f"this is stream {stream}; the folder of captured labels here is ./{stream}")
            subject = of_stream(kafka_settings(), stream, model, teacher)
        verification = Verification(subject, model, options)
        rate = Rate()

        def show(verdict: Verdict) -> None:
            progress.update(
                orders=verdict.num_verified,
                of=verdict.num_orders,
                rows=verdict.num_rows,
                orders_per_s=rate.of(verdict.num_verified),
                differ=verdict.num_differ or None,
            )

        verdict = verification.run(show)
    if as_json:
        asked = {"rows": rows, "fraction": fraction, "seed": seed, "limit": limit}
        what = {"stream": subject.manifest.stream, "folder": folder and str(folder), "teacher": subject.teacher.name}
        print_json({**what, "asked": asked, **verdict.as_dict()})
    else:
        where = folder or f"stream {stream}"
        _print(verdict, limit, f"{where}, teacher {subject.teacher.name} on {verification.provider}")
    verification.judge()


def _print(verdict: Verdict, limit: float, what: str) -> None:
    speed = verdict.num_verified / max(verdict.seconds, 1e-9)
    by = " by this model" if verdict.num_others else ""
    click.echo(
        f"{what}: {verdict.num_verified} of {verdict.num_orders} orders are labelled{by}, {verdict.num_rows} rows of "
        f"them labelled again in {verdict.seconds:.1f} s, {speed:.0f} orders/s"
    )
    click.echo(f"equal to the bit: {verdict.num_same} rows; limit: {limit:g} of an output's range")
    for name, found in verdict.outputs.items():
        overlap = "" if found.overlap is None else f", at least {found.overlap:.0%} of a row's classes are the same"
        click.echo(f"output {name}: largest change {found.largest:.1e} of its range{overlap}")
    if verdict.num_others:
        click.echo(f"orders of other generations, not looked at: {verdict.num_others}; give their models, too")
    if verdict.num_missing:
        missing = f"{verdict.num_missing} orders, the first is {verdict.first_missing}"
        click.echo(f"not there (not labelled yet, removed or lost): {missing}")
    if verdict.rows_left_out:
        click.echo(f"rows without a label, not looked at: {verdict.rows_left_out} (see `distillog letters list`)")
    dropped = verdict.dropped
    texts = {
        "repetitions": dropped.repetitions,
        "behind a missing order": dropped.early,
        "of another stream": dropped.foreign,
        "no soft targets": dropped.undecodable,
    }
    if said := ", ".join(f"{count} {text}" for text, count in texts.items() if count):
        click.echo(f"records that no reader takes: {said}")
    for each in verdict.differences:
        worker = f" by worker {each.worker}" if each.worker else ""
        click.echo(f"order {each.sequence} at {each.address}{worker}: {each.what}")
    if verdict.num_differ > len(verdict.differences):
        click.echo(f"and {verdict.num_differ - len(verdict.differences)} more orders that differ")
