"""`distillog runs chain`: students one after the other, each a teacher of the next."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import stop_signals
from pipeline.cli.options import json_option, kafka_settings, print_json, print_table, quiet_option
from pipeline.cli.runs_options import FOLDER
from pipeline.cli.runs_training import train_run
from pipeline.limits import MAX_THREADS

if TYPE_CHECKING:
    from student_trainer.run.settings import RunSettings


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--set", "assignments", metavar="NAME=VALUE", multiple=True, help="Override a setting: train.steps=100.")
@click.option(
    "--threads",
    type=click.IntRange(0, MAX_THREADS),
    default=0,
    show_default=True,
    help="Of one inference, while a student labels; 0: all cores.",
)
@FOLDER
@quiet_option
@json_option
def chain(file: Path, assignments: tuple[str, ...], threads: int, folder: Path, quiet: bool, as_json: bool) -> None:
    """Train the students of FILE, a run file with [[chain]], one after the other: each teaches the next.

    A step is a run. Once it is done its student is exported, added to the stream as a teacher of its name, and labels
    all orders; whoever likes may help it with `distillog teach`. Called again, a chain goes on where it ended.
    """
    from student_trainer.run.chain import load_chain

    steps = load_chain(file, assignments)
    # What each part says of itself is no part of the one result.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        rows = _rows(steps, threads, folder, quiet)
    if as_json:
        print_json([{**row, "onnx": str(row["onnx"])} for row in rows])
        return
    print_table(
        [
            ("step", "learned from", "parameters", "file", "accuracy", "of the one before", "trained", "labelled"),
            *map(_cells, rows),
        ]
    )


def _rows(steps: list[RunSettings], threads: int, folder: Path, quiet: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, settings in enumerate(steps):
        _train(settings, folder, quiet)
        row = _row(settings, folder, _export(settings, folder))
        if number + 1 < len(steps):
            row["labelled_s"] = _label(settings, row["onnx"], threads, quiet)
        before = rows[-1]["accuracy"] if rows else None
        row["kept"] = row["accuracy"] / before if row["accuracy"] is not None and before else None
        rows.append(row)
    return rows


def _train(settings: RunSettings, folder: Path, quiet: bool) -> None:
    """Train a step's run to its end: begin it, go on with it, or see that it is the one that is asked for."""
    from student_trainer.processes.world import ALONE
    from student_trainer.run.finished import check_begun, check_finished
    from student_trainer.run.folder import RunFolder, read_run

    path, settings = folder / settings.name, settings.placed()
    there = (path / "run.toml").exists()
    if there and read_run(path)["state"] == "done":
        for edit in check_finished(path, settings, kafka_settings):
            click.echo(f"warning: {path}: is trained: too late for {edit}", err=True)
        if (path / "report.json").exists():  # it is written last
            return
    elif there:
        settings = check_begun(path, settings)
    with RunFolder.open(path) if there else RunFolder.create(path, settings) as run:
        result = train_run(settings, run, lambda metrics, served, labels: None, quiet, there, ALONE)
    if not result.finished or _stopped():
        _leave()


def _stopped() -> bool:
    """Whether the command was asked to end, maybe too late for what was in hand to leave anything out."""
    return stop_signals.interrupted() or stop_signals.terminated()


def _leave() -> None:
    """End the command: it was asked to while something of the chain ran, which is whole and can be gone on with."""
    click.echo("stopped; call it again to go on", err=True)
    click.get_current_context().exit(stop_signals.INTERRUPTED if stop_signals.interrupted() else 0)


def _export(settings: RunSettings, folder: Path) -> dict[str, Any]:
    """Write a student's ONNX file: equal weights give equal files, so this may be done again."""
    from pipeline.streams import open_stream
    from student_trainer.launch import export_run

    dataset = settings.evaluation.dataset or settings.data.dataset
    dataset = dataset or open_stream(kafka_settings(), settings.data.stream).manifest.dataset
    return export_run(folder / settings.name, dataset=dataset)


def _label(settings: RunSettings, model: Path, threads: int, quiet: bool) -> float:
    """Make a student a teacher of its stream, and let it label all orders; how many seconds that took."""
    from pipeline.cli.teach import teach
    from pipeline.cli.topics_teacher import add_teacher

    began, stream = time.monotonic(), settings.data.stream
    _call(add_teacher, stream, settings.name, model)
    _call(teach, stream, model, "--teacher", settings.name, "--threads", threads, "--until-idle", *["--quiet"] * quiet)
    if _stopped():
        _leave()
    return time.monotonic() - began


def _call(command: click.Command, *words: object) -> None:
    """Run another command of ours in this process."""
    with command.make_context(command.name, list(map(str, words)), parent=click.get_current_context()) as context:
        command.invoke(context)


def _row(settings: RunSettings, folder: Path, exported: dict[str, Any]) -> dict[str, Any]:
    report = json.loads((folder / settings.name / "report.json").read_bytes())
    return {
        "name": settings.name,
        "teachers": [teacher.name for teacher in settings.teachers],
        "parameters": report["parameters"],
        "onnx": exported["path"],
        "file_bytes": exported["file_bytes"],
        "accuracy": report["evaluation"].get("accuracy"),
        "trained_s": report["timing"]["seconds"],
        "labelled_s": None,
    }


def _cells(row: dict[str, Any]) -> list[str | None]:
    forms = {
        "parameters": "{:,}",
        "file_bytes": "{:,} B",
        "accuracy": "{:.2%}",
        "kept": "{:.1%}",
        "trained_s": "{:.1f} s",
        "labelled_s": "{:.1f} s",
    }
    figures = (None if row[key] is None else form.format(row[key]) for key, form in forms.items())
    return [row["name"], ", ".join(row["teachers"]), *figures]
