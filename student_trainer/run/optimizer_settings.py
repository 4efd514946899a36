"""`[optimizer]` of a run file: how a student's parameters are updated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from schemas.errors import ConfigError


def _check(holds: bool, text: str) -> None:
    if not holds:
        raise ConfigError(text)


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """`[[optimizer.groups]]`: parameters that learn in a way of their own."""

    match: tuple[str, ...]
    """Patterns of their names, e.g. ["*.bias", "*norm*"]; the first group that matches a name has it."""
    lr: float | None = None
    """Their peak learning rate; left out: the optimizer's."""
    params: dict[str, Any] = field(default_factory=dict)
    """All other keys, e.g. weight_decay; left out: the optimizer's."""

    def __post_init__(self) -> None:
        _check(bool(self.match), "match is empty; name at least one pattern")
        _check(self.lr is None or self.lr > 0, f"lr must be positive, is {self.lr}")


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """`[optimizer]`."""

    name: str = "adamw"
    """A name of OPTIMIZERS."""
    lr: float = 1e-3
    """Peak learning rate: the schedule's factor 1."""
    clip_norm: float | None = None
    """The most that the L2 norm of all gradients together may be: beyond it they are scaled down; left out: no most."""
    groups: tuple[GroupSettings, ...] = ()
    """Parameters with settings of their own."""
    params: dict[str, Any] = field(default_factory=dict)
    """All other keys, e.g. weight_decay, momentum, betas."""

    def __post_init__(self) -> None:
        _check(self.lr > 0, f"lr must be positive, is {self.lr}")
        _check(self.clip_norm is None or self.clip_norm > 0, f"clip_norm must be positive, is {self.clip_norm}")
