"""Which cores students run on and which all else, where the system lets one choose."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cores:
    """Cores of this machine; none: anywhere."""

    student: tuple[int, ...] = ()
    """of students whose teachers are elsewhere"""
    others: tuple[int, ...] = ()
    """of the broker, feeders and simulated teachers"""
    shared: tuple[int, ...] = ()
    """of a student and a teacher on one machine"""

    @classmethod
    def here(cls) -> Cores:
        """Take the first core for the student and the second for all else; none where there are no two to choose."""
        if not hasattr(os, "sched_getaffinity"):
            return cls()
        there = sorted(os.sched_getaffinity(0))
        return cls((there[0],), (there[1],), tuple(there[:2])) if len(there) > 1 else cls()

    def __str__(self) -> str:
        if not self.student:
            return "no two cores to choose from: students, broker and simulated teachers share what there is"
        return f"students on core {self.student[0]}; broker, feeders and simulated teachers on core {self.others[0]}"
