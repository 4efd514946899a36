"""The soak's streams and runs: made alike, so that a calm one and a disturbed one have to learn the same."""

from __future__ import annotations

from pathlib import Path

from support.models import classifier
from support.processes import Distillog

from chaos.checker import Facts
from chaos.material import BROKEN, SHAPE
from chaos.schedule import FLEET, FLEET_WORKERS, STUDENTS
from student_trainer.run.settings import run_settings

SAMPLES = 1003
"""In an epoch, whose last order is short."""
ORDER = 8
PARTITIONS = 12
TEACHER = "t"
BATCH = {"a": 19, "b": 13}
"""Rows of a step; neither student's fits the orders, so that most checkpoints stand in the middle of one."""
PASSES = {"a": 1, "b": 2}
"""Student b goes over the stream again, so that a pass ends within reach of faults."""
PACE = 4.0
"""Orders a second that a student takes while it is disturbed."""
LEAD = "48:60"
"""12 s ahead: a worker's death and what comes on top."""
SLOW = 0.02
"""Seconds that a teacher's disk takes for a sample: six orders a second for each worker, at no cost."""


def facts(stream: str, orders: int, samples: int = SAMPLES) -> Facts:
    """What a stream of at least so many orders is."""
    epochs = -(-orders // -(-samples // ORDER))
    return Facts(stream, TEACHER, samples, ORDER, epochs, PARTITIONS, frozenset({BROKEN}))


def dataset(one: Facts, delay: float = 0.0) -> str:
    return f"chaos.material:samples?count={one.num_samples}&delay={delay}"


def make(distillog: Distillog, one: Facts, model: Path, seed: int, copies: int) -> None:
    """Make a stream with its teacher."""
    create = ["topics", "create", one.stream, "--dataset", dataset(one), "--view", "affine", "--seed", seed]
    create += ["--view-param", "rotation=15", "--view-param", "noise=0.05", "--order-size", one.order_size]
    create += ["--epochs", one.epochs, "--partitions", one.partitions, "--replication-factor", copies]
    distillog.succeed(*create)
    distillog.succeed("topics", "add-teacher", one.stream, one.teacher, model)


def make_model(folder: Path) -> Path:
    return classifier(folder / "teacher.onnx", SHAPE)


def teach(one: Facts, model: Path, worker: str, delay: float = SLOW) -> tuple[object, ...]:
    return (
        "teach", one.stream, model, "--worker", worker, "--threads", 1, "--dataset", dataset(one, delay),
    )  # fmt: skip


def fleet(one: Facts, model: Path) -> tuple[object, ...]:
    size = len(FLEET_WORKERS)
    return (
        "fleet", one.stream, model, "--min", size, "--max", size, "--name", FLEET, "--threads", 1,
        "--dataset", dataset(one, SLOW),
    )  # fmt: skip


def feed(one: Facts) -> tuple[object, ...]:
    follow = [word for name in STUDENTS for word in ("--follow", name)]
    return ("feed", one.stream, *follow, "--lead", LEAD, "--follow-timeout", 300)


def run_file(folder: Path, one: Facts, name: str, hurry: Path | None) -> Path:
    """Write student `name`'s run file; it takes its time until the file `hurry` is there, or never."""
    batch = BATCH[name]
    # A step's pause, less what the step itself costs.
    pause = {"pause": batch / ORDER / PACE, "hurry": str(hurry)} if hurry else {}
    document = {
        "name": name,
        "data": {"stream": one.stream},
        "student": {"name": "chaos.material:paced", "norm": name == "b", **pause},
        "teachers": [{"name": one.teacher}],
        "losses": [{"name": "forward_kl", "temperature": 2.0}, {"name": "cross_entropy", "weight": 0.1}],
        "optimizer": {"a": {"name": "sgd", "lr": 0.05, "momentum": 0.9}, "b": {"name": "adamw"}}[name],
        "schedule": {"name": "cosine", "warmup": 20},
        "train": {"batch_size": batch, "passes": PASSES[name], "log_every": 1, "trace": True, "seed": ord(name)},
        "checkpoint": {"every": 9},
    }
    path = folder / f"{one.stream}-{name}.toml"
    path.write_text(run_settings(document).as_toml())
    return path


def resume(runs: Path, name: str, file: Path) -> tuple[object, ...]:
    """Start a run, or go on with it where it was begun."""
    if (runs / name / "run.toml").exists():
        return ("runs", "resume", name, "--folder", runs)
    return ("runs", "start", file, "--folder", runs)
