"""`[[losses]]` of a run file: what a student learns from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from schemas.errors import ConfigError
from student_trainer.run.choices import Choice
from student_trainer.run.toml_tables import unknown

PROJECTIONS = ("linear", "conv")
MEANS = ("probabilities", "logits")
CHOICES = ("confidence", "label")


@dataclass(frozen=True, slots=True)
class LossSettings:
    """`[[losses]]`: one term of the total loss."""

    name: str
    """A name of LOSSES."""
    weight: float = 1.0
    """Its factor in the sum."""
    temperature: float = 1.0
    """T of the softened probabilities; a loss that has none ignores it."""
    key: str = ""
    """Its name in the metrics; left out: the loss's."""
    on: str = ""
    """The student's output that it is of; left out: `logits`, or the only one."""
    against: str = ""
    """The teacher's: `TEACHER.OUTPUT`, or `OUTPUT` of all teachers; left out: the one of classes."""
    mean: str = ""
    """probabilities, logits: what several teachers give is made one target; left out: the mean of their losses."""
    choose: str = ""
    """confidence, label: of each sample one teacher's loss alone; left out: the mean of all."""
    projection: str = ""
    """linear, conv: the student's features go through a layer of its own first; left out: as they are."""
    labels: str = ""
    """The view's field of hard labels of positions, -1 for none; left out: a sample's true label."""
    weight_schedule: Choice | None = None
    """A name of SCHEDULES, whose factor is on the weight; left out: 1 at every step."""
    temperature_schedule: Choice | None = None
    """The same on the temperature."""
    params: dict[str, Any] = field(default_factory=dict)
    """All other keys: the loss's own parameters."""

    @property
    def title(self) -> str:
        """What it is called in metrics and errors."""
        return self.key or self.name

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be positive, is {self.temperature}")
        for key, known in (("projection", PROJECTIONS), ("mean", MEANS), ("choose", CHOICES)):
            if getattr(self, key) not in ("", *known):
                raise ConfigError(unknown(key, getattr(self, key), known))
        if self.mean and self.choose:
            raise ConfigError("mean and choose exclude one another: leave one of them out")
