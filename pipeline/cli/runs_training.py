"""How `distillog runs start`, `resume` and `chain` show a run that trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.metrics_options import Show
from pipeline.cli.options import kafka_settings

if TYPE_CHECKING:
    from student_trainer.processes.world import World
    from student_trainer.run.folder import RunFolder
    from student_trainer.run.settings import RunSettings
    from student_trainer.train import TrainResult


def train_run(
    settings: RunSettings, run: RunFolder, show_metrics: Show, quiet: bool, resume: bool, world: World
) -> TrainResult:
    """Train in a run's locked folder; shows how it goes, and what it came to."""
    from pipeline.progress import Progress
    from student_trainer.launch import launch
    from student_trainer.metrics import METRICS, Training

    training = Training(settings.train.batch_size)
    labels = {"run": settings.name} | ({"stream": settings.data.stream} if settings.source == "stream" else {})
    show_metrics(METRICS, training, labels)
    with Progress(title=f"run {settings.name}", quiet=quiet) as progress:

        def show(line: dict[str, Any]) -> None:
            training.wrote(line)
            if "evaluation" in line:
                progress.message(f"step {line['step']}: {_scores(line['evaluation'])}")
                return
            timing = line["timing"]
            progress.update(
                step=f"{line['step']:,}/{line['total_steps']:,}",
                loss="overflow" if line["loss"] is None else f"{line['loss']:.4f}",
                samples_per_s=timing["samples_per_s"],
                waited_s=timing["waited_s"],
            )

        def say(text: str) -> None:
            progress.message(f"{run.path}: {text}")

        result = launch(settings, run, kafka_settings, show, resume=resume, say=say, training=training, world=world)
    click.echo(_conclusion(run.path, result))
    return result


def _conclusion(path: Path, result: TrainResult) -> str:
    from student_trainer.evaluate import chance_level

    state = "finished" if result.finished else f"stopped; go on with `distillog runs resume {path.name}`"
    return (
        f"{path}: {state} at step {result.step} after {result.seconds:.1f} s; longest wait "
        f"{result.longest_wait_s:.1f} s; weights {result.weights_sha256[:16]}"
        + "".join(f"; {text}" for text in (_scores(result.metrics), chance_level(result.metrics)) if text)
    )


def _scores(scores: dict[str, float]) -> str:
    shown = {name: value for name, value in scores.items() if not name.rpartition(".")[2].startswith("num_")}
    texts = {name: f"{value:.4f}" if isinstance(value, float) else str(value) for name, value in shown.items()}
    return "  ".join(f"{name} {text}" for name, text in texts.items())
