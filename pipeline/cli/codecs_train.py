"""`distillog codecs --train`: a teacher labels, students learn: where the two meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from student_trainer.codec_runs import Learned
    from teacher_service.models.codec_table import OutputFigures
    from teacher_service.models.declared import Declared


@dataclass(frozen=True, slots=True)
class Students:
    """What is said of the students of each codec."""

    evaluation: str
    """URI of the dataset that they are evaluated on."""
    student: str
    seeds: int
    """How many of each codec."""
    samples: int
    """To learn from, at most."""
    assignments: tuple[str, ...]
    """As `runs start --set` takes them."""

    def __str__(self) -> str:
        """Say what the figures are of."""
        count = "1 student" if self.seeds == 1 else f"{self.seeds} students"
        return f"{count} ({self.student}) of each codec on {self.evaluation}, mean ± standard deviation"

    def learn(
        self,
        model: Path,
        dataset: str,
        declared: Declared,
        found: Sequence[OutputFigures],
        view: tuple[str, dict[str, Any]],
        temperature: float,
        seed: int,
    ) -> dict[str, dict[str, Learned]]:
        """Return output -> codec -> what its students came to, of the first output with one row of classes a sample.

        Codecs that do not serve the temperature are left out; draws, which serve 1 alone, are learned from at that.

        Raises:
            DistillogError: as `store_epoch` and `learn`.
        """
        from pipeline.datasets import open_dataset
        from pipeline.progress import Progress
        from schemas.errors import ConfigError
        from student_trainer.codec_runs import learn, recipe
        from teacher_service.models.stored_codecs import TEACHER, store_epoch

        open_dataset(self.evaluation)  # before anything that takes long
        shapes = ((one.output, one.codecs) for one in found if one.output.codec_classes and len(one.output.shape) == 1)
        _, figures = next(shapes, (None, ()))
        if not figures:
            raise ConfigError(f"--train: no output of {model} gives a sample one row of classes to learn from")
        codecs = [each.codec for each in figures if each.codec.draws or each.codec.serves(temperature)]
        if not codecs:
            raise ConfigError(
                f"--train: none of these codecs serves --temperature {temperature:g}, which students learn at"
            )
        names = [f"codec{number}" for number in range(len(codecs))]
        settings = {
            name: recipe(TEACHER, name, spec, temperature, self.student, self.evaluation, self.assignments)
            for name, spec in zip(names, codecs, strict=True)
        }
        with Progress(title="codecs", after=2.0) as progress:
            stored = store_epoch(
                model,
                dataset,
                codecs,
                declared,
                view=view[0],
                view_params=view[1],
                num_samples=self.samples,
                seed=seed,
                progress=lambda done, count: progress.update(orders=f"{done} of {count}"),
            )
            learned = learn(
                stored.fetcher,
                stored.sequence,
                stored.teacher,
                stored.records,
                settings,
                range(self.seeds),
                lambda name, seed: progress.update(orders=None, codec=stored.outputs[name], seed=seed),
                stored.heads,
            )
        return {stored.output: {str(stored.outputs[name]): each for name, each in learned.items()}}
