"""`distillog runs compare`: several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import json_option, print_json, print_table
from pipeline.cli.runs_options import FOLDER, VIEW, VIEW_PARAM, chosen_view, run_path

if TYPE_CHECKING:
    from student_trainer.compare import Compared, Comparison

_CLASSES = 20
"""Rows of the table of classes: those on which the students differ most."""
_WIDE = 40
"""Characters of a setting in a table."""


@click.command()
@click.argument("names", metavar="NAMES", nargs=-1, required=True)
@click.option("--dataset", metavar="URI", help="Evaluate all of them on this dataset.  [default: the run files']")
@VIEW
@VIEW_PARAM
@click.option("--no-evaluation", is_flag=True, help="Settings, last figures and curves alone; load no student.")
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Draw the curves into this file."
)
@FOLDER
@json_option
def compare(
    names: tuple[str, ...],
    dataset: str | None,
    view: str | None,
    view_params: tuple[str, ...],
    no_evaluation: bool,
    svg: Path | None,
    folder: Path,
    as_json: bool,
) -> None:
    """Compare runs NAMES: settings that differ, scores, where their students agree, and each class."""
    from pipeline.whole_files import write_whole
    from student_trainer.compare import compare_runs
    from student_trainer.curves import picture
    from student_trainer.run.targets import refuse_targets

    if len(names) < 2:
        raise click.UsageError("name two runs or more; `distillog runs show NAME` shows one")
    if svg is not None:
        refuse_targets(("SVG", svg))
    paths = [run_path(folder, name) for name in names]
    found = compare_runs(paths, dataset, chosen_view(view, view_params), students=not no_evaluation)
    if svg is not None:
        write_whole(svg, picture(found.names, found.curves))
    if as_json:
        print_json({**found.as_dict(), "svg": svg and str(svg)})
        return
    _print_runs(found)
    if found.students is not None:
        _print_students(found.students)


def _print_runs(found: Comparison) -> None:
    if found.settings:
        print_table([("SETTING", *found.names), *((key, *map(_setting, row)) for key, row in found.settings.items())])
    else:
        click.echo("all settings are the same")
    click.echo()
    rows = []
    for key in ("state", "step", "loss", "lr"):
        rows.append((key, *(_figure(each[key]) for each in found.summaries)))
    print_table([("LAST", *found.names), *rows])


def _print_students(students: Compared) -> None:
    names, scores = students.names, students.scores
    click.echo(f"\nnewest checkpoints on {students.dataset}, {scores[0]['num_samples']} samples:\n")
    keys = [key for key in ("accuracy", "nll", "ece") if key in scores[0]]
    rows: list[tuple[Any, ...]] = [("step", *students.steps)]
    rows += [(key, *(_figure(each.get(key)) for each in scores)) for key in keys]
    print_table([("SCORE", *names), *rows])
    click.echo("\nsame likeliest class:\n")
    shares = (tuple(f"{share:.4f}" for share in row) for row in students.agreement)
    print_table([("AGREEMENT", *names), *((name, *row) for name, row in zip(names, shares, strict=True))])
    if not students.classes:
        click.echo("\nthe dataset has no labels: no accuracy, and no table of classes")
        return
    spread = {each["class"]: max(each["recall"]) - min(each["recall"]) for each in students.classes}
    most = sorted(students.classes, key=lambda each: (-spread[each["class"]], each["class"]))[:_CLASSES]
    if len(most) < len(students.classes):
        click.echo(f"\nright in the {len(most)} of {len(students.classes)} classes on which they differ most:\n")
    else:
        click.echo("\nright in each class:\n")
        most = students.classes
    table = [
        (each["name"] or each["class"], each["samples"], *(f"{one:.4f}" for one in each["recall"])) for each in most
    ]
    print_table([("CLASS", "SAMPLES", *names), *table])


def _setting(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _WIDE else f"{text[: _WIDE - 3]}..."


def _figure(value: object) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
