"""A process that trains, exports and evaluates for the demo: a job per line of stdin, JSON lines on stdout.

It is a process of its own so that the demo stays responsive, may be ended at any moment, and loads PyTorch once for all
the runs. What it calls is what `distillog runs` calls. Ends when stdin does, so it never outlives the demo.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.errors import DistillogError

Say = Callable[[str, Any], None]


def train(say: Say, settings: dict[str, Any], folder: str, bootstrap_servers: str = "") -> dict[str, Any]:
    """Train a run to its end, and return its report."""
    from pipeline.kafka.settings import KafkaSettings
    from student_trainer.launch import launch
    from student_trainer.run.folder import RunFolder
    from student_trainer.run.settings import run_settings

    run = run_settings(settings)
    with RunFolder.create(Path(folder, run.name), run) as opened:
        kafka = KafkaSettings(bootstrap_servers)
        result = launch(run, opened, lambda: kafka, lambda line: say("progress", line))
    if not result.finished:
        sys.exit(143)  # the demo asked it to end
    report: dict[str, Any] = json.loads((opened.path / "report.json").read_bytes())
    return report


def export(say: Say, run: str, output: str, dataset: str) -> dict[str, Any]:
    """Export a run's student to ONNX, checked on a dataset."""
    from student_trainer.launch import export_run

    exported = export_run(Path(run), Path(output), dataset)
    return {**exported, "path": str(exported["path"])}


def evaluate(say: Say, teacher: str, runs: dict[str, str], dataset: str) -> dict[str, Any]:
    """Evaluate the teacher's ONNX file and each run's student on a dataset, once each."""
    import numpy as np

    from pipeline.datasets import open_dataset
    from pipeline.views import view_spec
    from pipeline.views.fetch import Fetcher
    from student_trainer.evaluate import evaluate, predictor
    from student_trainer.trained import load_student

    fetcher = Fetcher(open_dataset(dataset), view_spec("none", {}))
    count = fetcher.dataset.num_samples
    answers = predictor(Path(teacher))(fetcher.fetch(np.arange(count), 0).inputs)
    scores = {"teacher": evaluate(lambda inputs: answers, fetcher, count)}
    for name, run in runs.items():
        trained = load_student(Path(run))
        scores[name] = evaluate(trained.model, fetcher, count, lambda inputs: answers, fields=trained.network.fields)
    return scores


def measure(say: Say, models: dict[str, str], dataset: str) -> dict[str, Any]:
    """Measure ONNX files on one core, in turn, so that a neighbour's load meets both; batches of the whole dataset."""
    from dataclasses import asdict

    import numpy as np

    from pipeline.datasets import open_dataset
    from student_trainer.export import latency

    data = open_dataset(dataset)
    inputs = data.read(np.arange(data.num_samples)).fields
    return {name: asdict(latency(Path(path), inputs)) for name, path in models.items()}


JOBS: dict[str, Callable[..., Any]] = {"train": train, "export": export, "evaluate": evaluate, "measure": measure}


def main() -> None:
    """Do jobs until stdin ends."""
    # PyTorch's exporter prints; only our answers may reach the demo.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def say(kind: str, what: Any) -> None:
        answers.write(json.dumps({kind: what}) + "\n")

    import student_trainer.launch  # noqa: F401  # while the demo still prepares what it will ask for

    for line in sys.stdin:
        job = json.loads(line)
        try:
            say("result", JOBS[job.pop("do")](say, **job))
        except DistillogError as error:
            say("error", " ".join(str(error).split()))
            sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(143)
