"""What a student in a process of its own is told, as a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

TEACHER = "teacher"
"""Its name in every stream."""
FIELD = "image"
"""The dataset's only one."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a student is told."""

    teacher: str
    """`none`, `stream`, `torch`, `onnx` or `rpc`"""
    document: dict[str, Any]
    """a run file; who has a teacher but no stream reads the dataset that it names"""
    equal_steps: int
    """after which it says what it came to"""
    page: str
    outcome: str
    """file to write that to"""
    folder: str
    """of the run"""
    cores: tuple[int, ...] = ()
    """where it runs; none: anywhere"""
    model: str = ""
    """of a teacher in the loop"""
    num_classes: int = 0
    """its"""
    ports: tuple[int, ...] = ()
    """of teachers behind sockets"""

    def write(self, path: Path) -> Path:
        """Write them as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Orders:
        """Undo `write`."""
        orders = cls(**json.loads(path.read_text(encoding="utf-8")))
        return replace(orders, cores=tuple(orders.cores), ports=tuple(orders.ports))
