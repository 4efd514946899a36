"""Targets: what a codec's soft targets are to a loss, as tensors of a batch.

Letters: B rows of a batch, C classes, k kept classes, T temperature. Those of positions (positions.py) are these, too.
A variation is one class here and one line in `TARGETS`; losses ask a target by its methods, never what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from schemas.codecs import CodecSpec, Dense, Features, Hidden, Sampled, SoftRows, Steps, TopK
from schemas.errors import ConfigError
from schemas.positions import Positions
from schemas.records import Teacher
from student_trainer.learning.partner_labels import PartnerLabels, PartnerTarget
from student_trainer.learning.target_protocol import OfClasses, OfSamples, Target, WithoutClasses
from student_trainer.learning.whole_targets import DenseTarget, FeatureTarget, HeadTarget, StepsTarget, times_log

__all__ = [
    "TARGETS",
    "DenseTarget",
    "FeatureTarget",
    "HeadTarget",
    "SampledTarget",
    "StepsTarget",
    "Target",
    "TargetSpec",
    "TopKTarget",
    "WithoutClasses",
    "specs_of_all",
    "target_name",
    "target_of",
    "target_specs",
    "times_log",
]


def target_name(teacher: str, output: str = "logits") -> str:
    """Return the name under which an output's soft targets are handed on."""
    return f"{teacher}.{output}"


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """What is known of an output's soft targets before any is read."""

    kind: str
    """What the teacher's record says that it holds."""
    shape: tuple[int, ...]
    """Of a row; classes are its last axis."""
    num_classes: int
    """C that a softmax is over; 0 where it is over none."""
    codec: CodecSpec
    default: bool = False
    """Whether losses take it that name no output of its teacher."""
    positions: str = ""
    """The view's field that chooses the positions of which it has rows; "" = it has one row per sample."""
    places: tuple[int, ...] = ()
    """Shape of that field of a sample."""
    classes: tuple[int, ...] = ()
    """The dataset's classes that its last axis is of, rising; (): all, or none."""
    reduction: str = ""
    """What the teacher's output was reduced by, such as `mean@1`."""
    axes: int = 0
    """Of a row before that; 0 without."""

    @property
    def whole(self) -> tuple[int, ...]:
        """Shape of what a student gives for it of a sample: (*places, *shape)."""
        return (*self.places, *self.shape)


def target_specs(teacher: Teacher, codec: CodecSpec) -> dict[str, TargetSpec]:
    """Return what a teacher's outputs are, by `target_name`, in a stream of that codec."""
    of_classes = [output for output in teacher.outputs if output.num_classes]
    of_softmax = [output for output in of_classes if output.codec_classes]
    default = teacher.class_output or next(iter(of_softmax or of_classes), None)
    return {
        target_name(teacher.name, output.name): TargetSpec(
            output.kind,
            output.stored_shape,
            output.codec_classes,
            output.stored_as(codec),
            output is default,
            output.positions,
            output.places,
            output.classes,
            output.reduction,
            len(output.shape) if output.reduction else 0,
        )
        for output in teacher.outputs
    }


def specs_of_all(teachers: Iterable[Teacher], codec: CodecSpec) -> dict[str, TargetSpec]:
    """Return what the outputs of several teachers are, as `target_specs`."""
    return {name: spec for teacher in teachers for name, spec in target_specs(teacher, codec).items()}


@dataclass(frozen=True, slots=True, eq=False)
class TopKTarget(OfClasses):
    """A teacher's k likeliest classes for a batch, and the exact mass of all others."""

    indices: Tensor
    """[B, ..., k] int64, by descending probability."""
    log_probs: Tensor
    """[B, ..., k] float32, log p at T = 1; of `bits=8` without a tail at 1 less the first's. See `log_probs_at`."""
    log_tails: dict[float, Tensor]
    """Declared T -> [B, ...] float32 log of the teacher's mass outside the k; -inf where that is 0."""
    num_classes: int

    @classmethod
    def of(cls, rows: TopK, columns: dict[str, Tensor]) -> TopKTarget:
        """Return the target that B such rows are, of their columns as tensors."""
        indices, log_probs, *tails = columns.values()
        return cls(indices, log_probs, dict(zip(rows.temperatures, tails, strict=True)), rows.num_classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, ..., C)."""
        return (*self.indices.shape[:-1], self.num_classes)

    @property
    def logits(self) -> Tensor:
        """Raise ConfigError."""
        raise ConfigError(
            f"the codec keeps {self.indices.shape[-1]} of {self.num_classes} classes, so there are no logits"
        )

    def to(self, device: torch.device) -> TopKTarget:
        """Return it on a device; copies from pinned memory do not wait."""
        tails = {temperature: tail.to(device, non_blocking=True) for temperature, tail in self.log_tails.items()}
        indices, log_probs = (each.to(device, non_blocking=True) for each in (self.indices, self.log_probs))
        return TopKTarget(indices, log_probs, tails, self.num_classes)

    def widened(self) -> TopKTarget:
        """Return it in float32."""
        tails = {temperature: tail.float() for temperature, tail in self.log_tails.items()}
        return TopKTarget(self.indices, self.log_probs.float(), tails, self.num_classes)

    def flat(self) -> TopKTarget:
        """Return it with each place as a row."""
        tails = {temperature: tail.flatten() for temperature, tail in self.log_tails.items()}
        return TopKTarget(self.indices.flatten(0, -2), self.log_probs.flatten(0, -2), tails, self.num_classes)

    def log_probs_at(self, temperature: float) -> Tensor:
        """Return [B, k] float32 log probabilities at T: the kept ones share exactly what the tail leaves."""
        if temperature not in self.log_tails:
            declared = ", ".join(str(each) for each in sorted(self.log_tails))
            raise ConfigError(f"temperature {temperature} has no stored tail mass; the stream declares {declared}")
        softened = self.log_probs / temperature
        kept_mass = torch.log(-torch.expm1(self.log_tails[temperature]))[:, None]
        return softened - torch.logsumexp(softened, dim=1, keepdim=True) + kept_mass

    def divergence(self, student: Tensor, temperature: float) -> Tensor:
        """Return [B] KL(teacher || student) at T, the classes outside the k taken for one: a lower bound."""
        teacher = self.log_probs_at(temperature)
        kept = times_log(teacher.exp(), teacher - student.gather(1, self.indices)).sum(dim=1)
        if self.indices.shape[1] == self.num_classes:
            return kept
        teacher_tail = self.log_tails[temperature]
        student_tail = torch.logsumexp(student.scatter(1, self.indices, -math.inf), dim=1)
        return kept + times_log(teacher_tail.exp(), teacher_tail - student_tail)

    def likeliest(self) -> Tensor:
        """Return [B] int64: the teacher's likeliest class."""
        return self.indices[:, 0]


@dataclass(frozen=True, slots=True, eq=False)
class SampledTarget(OfSamples):
    """Classes that were drawn at random from a teacher's probabilities: what they are together, nothing here says."""

    draws: Tensor
    """[B, ..., N] int64 for a loss; int32 until `total_loss` widens them."""
    num_classes: int

    @classmethod
    def of(cls, rows: Sampled, columns: dict[str, Tensor]) -> SampledTarget:
        """Return the target that B such rows are, of their columns as tensors."""
        return cls(columns["draws"], rows.num_classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, ..., C)."""
        return (*self.draws.shape[:-1], self.num_classes)

    @property
    def logits(self) -> Tensor:
        """Raise ConfigError."""
        raise ConfigError(
            f"the codec keeps {self.draws.shape[-1]} classes drawn at random, so there are no logits: use "
            "sampled_cross_entropy"
        )

    @property
    def features(self) -> Tensor:
        """Raise ConfigError, as `logits` does."""
        return self.logits

    def to(self, device: torch.device) -> SampledTarget:
        """Return it on a device, as narrow as it is; copies from pinned memory do not wait."""
        return SampledTarget(self.draws.to(device, non_blocking=True), self.num_classes)

    def widened(self) -> SampledTarget:
        """Return it as losses index by it: in int64."""
        return SampledTarget(self.draws.long(), self.num_classes)

    def flat(self) -> SampledTarget:
        """Return it with each place as a row."""
        return SampledTarget(self.draws.flatten(0, -2), self.num_classes)

    def divergence(self, student: Tensor, temperature: float) -> Tensor:
        """Raise ConfigError, as `logits` does: it takes the teacher's entropy, too, which draws do not tell."""
        return self.logits

    def likeliest(self) -> Tensor:
        """Raise ConfigError, as `logits` does: the class drawn most often need not be it."""
        return self.logits


TARGETS: dict[type[Any], Callable[[Any, dict[str, Tensor]], Target]] = {
    Dense: DenseTarget.of,
    Features: FeatureTarget.of,
    Steps: StepsTarget.of,
    TopK: TopKTarget.of,
    Sampled: SampledTarget.of,
    Hidden: HeadTarget.of,
    PartnerLabels: lambda rows, columns: PartnerTarget(**columns),
    Positions: lambda rows, columns: target_of(rows.rows, columns),
}
"""What a codec's `decode` gives, or `PartnerLabels` -> (such rows, their columns of B rows, in order) -> target."""


def target_of(rows: SoftRows, columns: dict[str, Tensor]) -> Target:
    """Return the target of a batch that is made of such rows; where a sample has any number of them, of all those."""
    return TARGETS[type(rows)](rows, columns)
