"""`[[peers]]` of a run file: further students that learn with the first one, and from each other."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.errors import ConfigError
from schemas.names import check_name
from student_trainer.run.student_settings import StudentSettings

FIRST = "student"
"""What the student of [student] is called among peers."""

_SHARED = ("inputs", "size", "classes", "weights")


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """`[[peers]]`: one more student."""

    name: str
    """What it is called in metrics, evaluations and exports."""
    student: StudentSettings
    """`[peers.student]`: its network, as [student] has it; it sees what [student] sees."""
    seed: int | None = None
    """Seed of its first weights; left out: the run's, and its number among the peers, from 1."""

    def __post_init__(self) -> None:
        check_name("peer", self.name)
        if self.name == FIRST:
            raise ConfigError(f"name: {FIRST!r} is that of [student]")
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed must be in [0, 2^63), is {self.seed}")
        for key in _SHARED:
            if getattr(self.student, key):
                raise ConfigError(f"student.{key}: all peers take what [student] takes: leave it out here")
