"""How much of the paper's table is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.paper.turns import Turns

STUDENT = {"name": "cnn", "channels": [48, 64, 64], "hidden": 128}
"""A step of some 30 ms on one core."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    turns: Turns = field(default_factory=Turns)
    equal_steps: int = 100
    """after which students are compared"""
    seeds: int = 5
    costs: tuple[int, ...] = (1, 2, 5, 10)
    """of a teacher's forward, in student's steps"""
    costs_here: tuple[int, ...] = (1, 5)
    """the same, where the teacher is beside the student"""
    headline: int = 5
    """the cost at which all else is measured"""
    teachers: tuple[int, ...] = (1, 2, 4, 8)
    """elsewhere, for the picture; a student goes on while more of them join"""
    watched: float = 12.0
    """seconds for which each such number is watched"""
    student: dict[str, Any] = field(default_factory=lambda: dict(STUDENT))
