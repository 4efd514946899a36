"""`distillog runs evaluate`: what a checkpoint's student is worth, alone and beside a teacher's file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.model_options import model_options
from pipeline.cli.options import json_option, print_json, print_table
from pipeline.cli.runs_options import FOLDER, NAME, PEER, VIEW, VIEW_PARAM, chosen_view, run_path

if TYPE_CHECKING:
    from pipeline.views.fetch import Fetcher
    from teacher_service.models.declared import Declared
    from teacher_service.models.session import OnnxTeacher


@click.command()
@NAME
@click.option("--dataset", metavar="URI", help="Evaluate on this dataset.  [default: the run file's]")
@VIEW
@VIEW_PARAM
@click.option(
    "--metric",
    "metrics",
    metavar="NAME[?KEY=VALUE&...]",
    multiple=True,
    help="Measure this (repeatable).  [default: the run file's]",
)
@click.option("--teacher", type=click.Path(dir_okay=False, path_type=Path), help="ONNX teacher to compare with.")
@model_options
@PEER
@FOLDER
@json_option
def evaluate(
    name: str,
    dataset: str | None,
    view: str | None,
    view_params: tuple[str, ...],
    metrics: tuple[str, ...],
    teacher: Path | None,
    declared: Declared,
    peer: str,
    folder: Path,
    as_json: bool,
) -> None:
    """Evaluate the newest checkpoint of run NAME, and compare it with a teacher."""
    from student_trainer.evaluate import chance_level, predictor
    from student_trainer.evaluate import evaluate as evaluate_student
    from student_trainer.launch import trained_data
    from student_trainer.scores.by_default import metrics_by_default
    from student_trainer.scores.metrics import asked_metrics, with_teacher
    from student_trainer.trained import load_student

    trained = load_student(run_path(folder, name), peer)
    settings = trained.settings
    chosen = asked_metrics(metrics, settings.evaluation.metrics, teacher is not None)
    fetcher, first = trained_data(trained, dataset, chosen_view(view, view_params), settings.evaluation.batch_size)
    if not chosen:
        few = {field: values[:2] for field, values in first.inputs.items()}
        chosen = metrics_by_default(settings, predictor(trained.outputs, trained.network.fields)(few), "--metric")
    model = None if teacher is None else opened(teacher, fetcher, declared)
    if model is not None:
        of_classes = model.teacher.class_output
        chosen = with_teacher(chosen, of_classes.name if of_classes else "")
    scores = evaluate_student(
        trained.outputs,
        fetcher,
        settings.evaluation.batch_size,
        None if model is None else model.label,
        metrics=chosen,
        fields=trained.network.fields,
        size=settings.student.size,
        teacher_size=(model and model.size) or (),
        teacher_classes={} if model is None else {one.name: one.classes for one in model.teacher.outputs},
        first=first,
    )
    scores = {"step": trained.step, **scores}
    if as_json:
        print_json(scores)
    else:
        print_table([("metric", "value"), *((key, f"{value:.6g}") for key, value in scores.items())])
    if text := chance_level(scores):
        click.echo(f"warning: run {name} is {text}", err=True)


def opened(path: Path, fetcher: Fetcher, declared: Declared) -> OnnxTeacher:
    """A teacher's file, to be run here."""
    import numpy as np

    from teacher_service.models.describe import describe_on
    from teacher_service.models.session import OnnxTeacher

    ids = np.arange(min(64, fetcher.dataset.num_samples))
    return OnnxTeacher(path, describe_on(path, "teacher", fetcher, ids, 0, 256, "", declared))
