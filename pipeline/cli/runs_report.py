"""`distillog runs report`: a run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.model_options import model_options
from pipeline.cli.runs_evaluate import opened
from pipeline.cli.runs_options import FOLDER, NAME, PEER, VIEW, VIEW_PARAM, chosen_view, run_path
from schemas.names import check_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.records import ViewSpec
    from student_trainer.report.samples import Teacher
    from teacher_service.models.declared import Declared


@click.command()
@NAME
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to.  [default: report.html, or report-PEER.html, in its folder]",
)
@PEER
@click.option("--teacher", type=click.Path(dir_okay=False, path_type=Path), help="ONNX teacher to stand beside it.")
@model_options
@click.option("--dataset", metavar="URI", help="Look at samples of this dataset.  [default: the run file's]")
@VIEW
@VIEW_PARAM
@click.option(
    "--examples",
    type=click.IntRange(0, 1000),
    default=24,
    show_default=True,
    help="Samples on which student and teacher differ, at most.",
)
@click.option(
    "--no-speed", is_flag=True, help="Measure no speed: equal weights and data give an equal file but for it."
)
@FOLDER
def report(
    name: str,
    html: Path | None,
    peer: str,
    teacher: Path | None,
    declared: Declared,
    dataset: str | None,
    view: str | None,
    view_params: tuple[str, ...],
    examples: int,
    no_speed: bool,
    folder: Path,
) -> None:
    """Write what run NAME came to as one HTML file that needs nothing else: tables, curves, examples."""
    from pipeline.whole_files import write_whole
    from student_trainer.report.gather import gather
    from student_trainer.report.page import page
    from student_trainer.run.targets import refuse_targets

    path = run_path(folder, name)
    html = html or path / (f"report-{check_name('peer', peer)}.html" if peer else "report.html")
    refuse_targets(("HTML", html))
    seen_as = chosen_view(view, view_params)
    beside = None if teacher is None else _teacher(path, teacher, declared, dataset, seen_as)
    facts = gather(path, dataset, seen_as, beside, peer, examples=examples, speed=not no_speed)
    write_whole(html, page(facts))
    click.echo(f"{html}: {html.stat().st_size:,} bytes")


def _teacher(path: Path, file: Path, declared: Declared, dataset: str | None, view: ViewSpec | None) -> Teacher:
    """A teacher's file, to be run here."""
    from schemas.errors import ConfigError
    from student_trainer.launch import trained_data
    from student_trainer.report.samples import Teacher
    from student_trainer.trained import load_student
    from teacher_service.models.files import external_data

    fetcher, _ = trained_data(load_student(path), dataset, view, 1)
    try:
        model = opened(file, fetcher, declared)
    finally:
        fetcher.close()
    output = model.teacher.class_output
    if output is None:
        raise ConfigError(f"{file}: gives no classes to hold the student against: leave --teacher out")
    num_bytes = sum(each.stat().st_size for each in (file, *external_data(file)))

    def predict(inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {output.name: model.label(inputs)[output.name]}

    return Teacher(file, num_bytes, predict, model.size or (), {output.name: output.classes})
