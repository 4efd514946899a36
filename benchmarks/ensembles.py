"""Students of several teachers against the students of each one, by accuracy: mean and spread over seeds.

Three teachers that differ in what they have seen: each is trained on 300 labelled signals of its own (`mnist1d`). All
label the same 4,000 others, which show no label; their logits lie in a log, as workers would have written them, and
students learn from it for 16 passes as any run does. Each kind of student is trained with every seed, and evaluated on
5,000 signals that nobody saw. Nothing here depends on the clock, so a busy machine changes no figure. A mean of
probabilities is left out: by `forward_kl` its gradient is that of the mean of losses.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.streams import Bench
from pipeline.create import StreamOptions, create_stream
from pipeline.datasets import open_dataset
from pipeline.kafka.clients import new_producer
from pipeline.kafka.workarounds.halting_close import close_producer
from pipeline.names import soft_targets_topic
from pipeline.sequence import Sequence
from pipeline.streams import Stream
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.records import Output, SoftTargets, Teacher, TeacherInput, TeacherOutput
from student_trainer.run.folder import RunFolder
from student_trainer.run.settings import run_settings
from student_trainer.sources.dataset import DatasetSource
from student_trainer.sources.stream import StreamSource
from student_trainer.sources.stream_settings import StreamSettings
from student_trainer.train import TrainResult, train

SEEDS = tuple(range(5))
LABELLED, UNLABELLED, TESTED = 300, 4_000, 5_000
TEACHERS = ("a", "b", "c")
PASSES, BATCH, ORDER_SIZE = 16, 128, 250
STREAM = "ensembles"
DATA = f"mnist1d?split=train&n={UNLABELLED}&seed=9"
KINDS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    **{f"teacher {name} alone": ((name,), {}) for name in TEACHERS},
    "mean of losses": (TEACHERS, {}),
    'mean = "logits"': (TEACHERS, {"mean": "logits"}),
    'choose = "confidence"': (TEACHERS, {"choose": "confidence"}),
}


def trained(folder: Path, name: str, seed: int, bench: Bench | None, **sections: Any) -> TrainResult:
    """Train a network of the one kind that there is here; without a cluster from a dataset's labels."""
    document = {
        "name": name,
        "student": {"name": "mlp", "hidden": [128, 128]},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "schedule": {"name": "one_cycle"},
        "evaluation": {"dataset": f"mnist1d?split=test&n={TESTED}&seed=9"},
        "checkpoint": {"every": 0, "keep": 1},
    }
    settings = run_settings(document | sections)
    source = DatasetSource(settings) if bench is None else StreamSource(bench.kafka, StreamSettings.of(settings))
    with RunFolder.create(folder / name, settings) as place:
        return train(settings, place, source)


def teacher(folder: Path, number: int) -> TrainResult:
    """Train the teacher of that number, from labelled signals of its own."""
    sections = {
        "source": "dataset",
        "data": {"dataset": f"mnist1d?split=train&n={LABELLED}&seed={number}", "order_size": ORDER_SIZE},
        "losses": [{"name": "cross_entropy"}],
        "train": {"batch_size": 64, "steps": 600, "seed": 100 + number},
    }
    return trained(folder, f"teacher-{number}", number, None, **sections)


def labelled(bench: Bench, models: dict[str, torch.nn.Module]) -> Stream:
    """Make the stream of one epoch, with the logits of these models."""
    fetcher = Fetcher(open_dataset(DATA), view_spec("none", {}))
    stream, _ = create_stream(bench.kafka, STREAM, fetcher, DATA, StreamOptions(order_size=ORDER_SIZE, epochs=1))
    fed, output = TeacherInput("x", "signal", "float32", "", 1.0, ()), TeacherOutput.of_classes("y", "logits", 10)
    for number, name in enumerate(models):
        record = Teacher(stream.manifest.stream_id, name, f"{number:064}", "none.onnx", (fed,), (output,), ORDER_SIZE)
        stream = bench.add_teacher(stream, record)
    manifest, sequence = stream.manifest, Sequence.of(stream.manifest)
    producer = new_producer(bench.kafka)
    try:
        for order in range(sequence.num_orders):
            ids, seed = sequence.sample_ids(order), sequence.view_seed(0)
            signals = torch.tensor(fetcher.fetch(ids, seed).inputs["signal"])
            for name, model in models.items():
                with torch.no_grad():
                    logits = model.eval()(signals).numpy().astype(np.float32)
                outputs = (Output.of("logits", logits, manifest.codec),)
                sha256 = stream.teacher(name).sha256
                value = SoftTargets(manifest.stream_id, order, 0, ids, seed, None, name, sha256, outputs).encode()
                partition = sequence.partition(order)
                producer.send(soft_targets_topic(STREAM, name), value=value, partition=partition).get(timeout=60)
    finally:
        close_producer(producer, 5)
    return stream


def run(bench: Bench) -> dict[str, Any]:
    """Train all of them; `ensembles` in `bench.json`: kind -> mean accuracy, its standard deviation, and all."""
    folder = bench.folder / "ensembles"
    folder.mkdir()
    teachers = {name: teacher(folder, number) for number, name in enumerate(TEACHERS)}
    labelled(bench, {name: result.model for name, result in teachers.items()})
    found: dict[str, Any] = {
        f"teacher {name} itself": {"accuracy": result.metrics["accuracy"]} for name, result in teachers.items()
    }
    for place, (kind, (names, loss)) in enumerate(KINDS.items()):
        accuracies = []
        for seed in SEEDS:
            sections = {
                "source": "stream",
                "data": {"stream": STREAM},
                "teachers": [{"name": name} for name in names],
                "losses": [{"name": "forward_kl", "temperature": 2.0, **loss}],
                "train": {"batch_size": BATCH, "passes": PASSES, "seed": seed},
            }
            accuracies.append(trained(folder, f"student-{place}-{seed}", seed, bench, **sections).metrics["accuracy"])
        found[kind] = {
            "accuracy": statistics.mean(accuracies),
            "deviation": statistics.stdev(accuracies),
            "values": accuracies,
        }
    return {"ensembles": found}
