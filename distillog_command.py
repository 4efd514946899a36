"""What `distillog` starts: see that our packages are ours, then run the command.

Their names are plain words, and PYTHONPATH comes before the place where they are installed: a `pipeline.py` of a user's
own would be imported instead, and fail with a traceback that says nothing of it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("schemas", "pipeline", "teacher_service", "student_trainer")
"""Ours, from the lowest floor up."""
_HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run the command; SystemExit with one line where another module hides one of our packages."""
    if text := hidden():
        sys.exit(f"error: {text}")
    from pipeline.cli import main as command

    command()


def hidden() -> str:
    """Say which of our packages another module hides, and what to do; "" where none does."""
    for package in PACKAGES:
        if path := _hidden_by(package):
            return f"{path} hides Distillog's own package {package!r}: rename it, or take its folder out of PYTHONPATH"
    return ""


def _hidden_by(package: str) -> str:
    """Where a package is found that does not lie beside this file; "" for ours."""
    spec = find_spec(package)
    # None: its import says so. Without an origin it is a folder without __init__.py, which hides no package.
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parent == _HERE / package:
        return ""
    return spec.origin
