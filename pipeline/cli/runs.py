"""`distillog runs`: train, inspect, evaluate and export students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.cli.metrics_options import metrics_endpoint, metrics_option
from pipeline.cli.options import confirm, json_option, print_json, print_table, quiet_option
from pipeline.cli.runs_bench import bench
from pipeline.cli.runs_chain import chain
from pipeline.cli.runs_compare import compare
from pipeline.cli.runs_evaluate import evaluate
from pipeline.cli.runs_export import export
from pipeline.cli.runs_options import FOLDER, NAME, run_path
from pipeline.cli.runs_report import report
from pipeline.cli.runs_training import train_run


@click.group()
def runs() -> None:
    """Train, inspect, evaluate and export students."""


runs.add_command(evaluate)
runs.add_command(bench)
runs.add_command(compare)
runs.add_command(chain)
runs.add_command(export)
runs.add_command(report)


@runs.command()
@click.argument("run_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--set", "assignments", metavar="NAME=VALUE", multiple=True, help="Override a setting: train.steps=100.")
@FOLDER
@metrics_option
@quiet_option
def start(
    run_file: Path,
    assignments: tuple[str, ...],
    folder: Path,
    metrics_port: tuple[str, int] | None,
    quiet: bool,
) -> None:
    """Train the student that RUN_FILE (TOML) describes."""
    from student_trainer.processes.follower import follow
    from student_trainer.processes.world import joined, started_anew, started_by_torchrun
    from student_trainer.run.edits import began_as, origin_of, resumed_settings
    from student_trainer.run.folder import RunFolder
    from student_trainer.run.settings import load_run

    with joined() as world:
        if world.rank:
            follow(world)
            return
        settings = load_run(run_file, assignments)
        path = folder / settings.name
        origin, settings = origin_of(run_file, assignments, settings), settings.placed()
        # torchrun starts all of them anew, with the same command, where one ended; so may whoever starts torchrun.
        again = started_by_torchrun() and (path / "run.toml").exists() and (started_anew() or began_as(path, origin))
        if again:
            click.echo(f"{path}: goes on from its newest checkpoint, as under torchrun", err=True)
            settings = resumed_settings(path, assignments)
        with (
            metrics_endpoint(metrics_port, "run", quiet) as show_metrics,
            RunFolder.open(path) if again else RunFolder.create(path, settings, origin) as run,
        ):
            train_run(settings, run, show_metrics, quiet, again, world)


@runs.command()
@NAME
@click.option("--set", "assignments", metavar="NAME=VALUE", multiple=True, help="Override a setting: train.steps=100.")
@FOLDER
@metrics_option
@quiet_option
def resume(
    name: str, assignments: tuple[str, ...], folder: Path, metrics_port: tuple[str, int] | None, quiet: bool
) -> None:
    """Go on with run NAME from its newest checkpoint."""
    from student_trainer.processes.follower import follow
    from student_trainer.processes.world import joined
    from student_trainer.run.edits import resumed_settings
    from student_trainer.run.folder import RunFolder

    with joined() as world:
        if world.rank:
            follow(world)
            return
        _refuse_run_file(name)
        path = run_path(folder, name)
        settings = resumed_settings(path, assignments)
        with metrics_endpoint(metrics_port, "run", quiet) as show_metrics, RunFolder.open(path) as run:
            train_run(settings, run, show_metrics, quiet, True, world)


def _refuse_run_file(name: str) -> None:
    """Raise ConfigError where a run file is given in place of its run's name."""
    from schemas.errors import ConfigError
    from student_trainer.run.settings import load_run

    if Path(name).suffix == ".toml" and Path(name).is_file():
        raise ConfigError(
            f"{name} is a run file; a run is resumed by its name, which takes what was changed in its file "
            f"since and may be: `distillog runs resume {load_run(name).name}`"
        )


@runs.command()
@NAME
@click.option("--yes", is_flag=True, help="Ask no question.")
@FOLDER
def delete(name: str, yes: bool, folder: Path) -> None:
    """Delete run NAME: its folder with checkpoints, metrics and exported student."""
    from student_trainer.run.folder import RunFolder, read_run

    path = run_path(folder, name)
    state = read_run(path)["state"]
    if not yes:
        confirm(f"delete run {path} ({state}) with its checkpoints, metrics and student?")
    with RunFolder.open(path) as run:
        run.delete()
    click.echo(f"deleted run {path}")


@runs.command("list")
@FOLDER
@json_option
def list_(folder: Path, as_json: bool) -> None:
    """List the runs in the folder."""
    from student_trainer.run.summary import summaries

    found = summaries(folder)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo(f"no runs in {folder}; start one with `distillog runs start RUN.toml`")
        return
    columns = ("name", "state", "source", "student", "step", "accuracy")
    print_table([columns, *(tuple(run[column] for column in columns) for run in found)])


@runs.command()
@NAME
@FOLDER
@json_option
def show(name: str, folder: Path, as_json: bool) -> None:
    """Show run NAME: its settings, state and last figures."""
    from student_trainer.run.folder import read_settings
    from student_trainer.run.summary import summary

    path = run_path(folder, name)
    found, settings = summary(path), read_settings(path)
    if as_json:
        print_json({**found, "settings": settings.as_dict()})
        return
    print_table([("what", "value"), *_figures(found)])
    click.echo(f"\n{settings.as_toml().rstrip()}")


def _figures(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a summary; losses and scores stand in rows of their own."""
    rows: list[tuple[str, str]] = []
    for key, value in found.items():
        if isinstance(value, dict):
            rows += [(f"{key} {name}", _text(each)) for name, each in value.items()]
        elif value is not None and key != "accuracy":  # which is among the scores
            rows.append((key, _text(value)))
    return rows


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
