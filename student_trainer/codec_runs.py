"""Students of one recipe, each of the labels of one codec and with one seed: what a codec costs in what is learned."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.sequence import Sequence as OrderSequence
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError
from schemas.head import Head
from schemas.records import Teacher
from student_trainer.preparation import keep_freed_memory
from student_trainer.run.folder import RunFolder
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.run.toml_tables import override
from student_trainer.sources.memory import MemorySource
from student_trainer.train import train

MEASURES = ("accuracy", "nll")
"""Of the last evaluation."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What students of one codec's labels came to, in the order of their seeds."""

    accuracy: tuple[float, ...]
    nll: tuple[float, ...]

    @staticmethod
    def spread(values: Sequence[float]) -> tuple[float, float]:
        """Return the mean, and the standard deviation between seeds; of one alone 0."""
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def recipe(
    teacher: str,
    output: str,
    spec: CodecSpec,
    temperature: float,
    student: str,
    evaluation: str,
    changes: Sequence[str],
) -> RunSettings:
    """Return the run that learns of an output: `forward_kl`, or of draws `sampled_cross_entropy`, and no true labels.

    Args:
        teacher: its name.
        output: the name of the output in its records.
        spec: the output's codec.
        temperature: at which soft targets are compared; of draws it is 1.
        student: a name of STUDENTS, or `module:function`.
        evaluation: URI of the dataset that students are evaluated on.
        changes: `section.key=value`, as `runs start --set` takes them.

    Raises:
        ConfigError: a setting that does not fit, or one of what is compared here.
    """
    loss: dict[str, Any] = {"name": "forward_kl", "against": output, "temperature": temperature}
    if spec.draws:
        loss = {"name": "sampled_cross_entropy", "against": output}
    document: dict[str, Any] = {
        "name": "student",
        "source": "stream",
        "data": {"stream": "codecs"},
        "student": {"name": student},
        "teachers": [{"name": teacher}],
        "losses": [loss],
        "optimizer": {"name": "adamw", "lr": 0.003},
        "schedule": {"name": "one_cycle"},
        "train": {"batch_size": 64, "passes": 10},
        "evaluation": {"dataset": evaluation},
        "checkpoint": {"every": 0, "keep": 1},
    }
    for change in changes:
        section = change.partition(".")[0]
        if section not in ("student", "optimizer", "schedule", "train", "evaluation"):
            raise ConfigError(
                f"--set {change}: students differ by their labels and seeds alone; change student, optimizer, "
                "schedule, train or evaluation"
            )
    override(document, changes)
    return run_settings(document, "--train")


def learn(
    fetcher: Fetcher,
    sequence: OrderSequence,
    teacher: Teacher,
    records: Sequence[bytes],
    settings: Mapping[str, RunSettings],
    seeds: Sequence[int],
    progress: Callable[[str, int], object] = lambda output, seed: None,
    heads: Mapping[str, Head] = MappingProxyType({}),
) -> dict[str, Learned]:
    """Train a student of each output with each seed, and evaluate it.

    Args:
        fetcher, sequence, teacher, records, heads: as `MemorySource` has them.
        settings: output -> its run.
        seeds: of the first weights and of dropout.
        progress: told which student is next.

    Raises:
        DistillogError: as `train`.
    """
    keep_freed_memory()
    found: dict[str, list[tuple[float, ...]]] = {output: [] for output in settings}
    for seed in seeds:
        for output, asked in settings.items():
            progress(output, seed)
            document = asked.as_dict()
            document["train"]["seed"] = seed
            of_seed = run_settings(document, "--train")
            source = MemorySource(fetcher, sequence, teacher, records, [output], of_seed.train.passes, heads)
            metrics = _trained(of_seed, source)
            found[output].append(tuple(metrics[name] for name in MEASURES))
    return {output: Learned(*map(tuple, zip(*values, strict=True))) for output, values in found.items()}


def _trained(settings: RunSettings, source: MemorySource) -> dict[str, float]:
    """Return the last evaluation; nothing of the run is kept."""
    with (
        tempfile.TemporaryDirectory(prefix="distillog-codecs-") as place,
        RunFolder.create(Path(place) / "run", settings) as folder,
    ):
        result = train(settings, folder, source)
    if not result.finished:
        raise KeyboardInterrupt
    missing = [name for name in MEASURES if name not in result.metrics]
    if missing:
        raise ConfigError(f"--evaluation {settings.evaluation.dataset}: gives no {missing[0]}: has it labels?")
    return result.metrics
