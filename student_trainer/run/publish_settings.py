"""`[publish]` of a run file: the student as the next generations of a teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.captured.urls import is_url, refuse_secrets
from schemas.errors import ConfigError
from schemas.names import check_name
from student_trainer.run.toml_tables import unknown

WEIGHTS = ("average", "trained")


@dataclass(frozen=True, slots=True)
class PublishSettings:
    """`[publish]`: whose next generations the student is, how often, and where their files go."""

    teacher: str
    """A teacher of the stream; the run need not learn from it."""
    every: int
    """Orders from one generation to the next."""
    to: str
    """Folder of the generations' ONNX files, or its URL; workers read them there."""
    weights: str = ""
    """average or trained; left out: the average where the run keeps one, as exports have it."""
    peer: str = ""
    """Which of [[peers]]; left out: the student of [student]."""

    def __post_init__(self) -> None:
        check_name("teacher", self.teacher)
        if self.every < 1:
            raise ConfigError(f"every must be at least 1, is {self.every}")
        if not self.to:
            raise ConfigError("to is empty; give a folder, or a URL, that the teacher's workers can read")
        if not self.to.isprintable():
            raise ConfigError(f"to {self.to!r} has characters that cannot be printed; give another place")
        if is_url(self.to):
            refuse_secrets(self.to, "the generations")  # before it is stored in the run's folder
        if self.weights and self.weights not in WEIGHTS:
            raise ConfigError(unknown("weights", self.weights, WEIGHTS))

    def placed(self) -> PublishSettings:
        """Return the same with an absolute path: workers stand elsewhere."""
        return self if is_url(self.to) else replace(self, to=str(Path(self.to).absolute()))
