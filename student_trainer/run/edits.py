"""What was changed in a run file while its run is under way, and which of it a resume may take.

A run goes on with what it was started with. Settings of how it works may change meanwhile; those that say what is
learned may not.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError
from student_trainer.run.folder import read_settings
from student_trainer.run.settings import RunSettings, load_run, run_settings
from student_trainer.run.toml_tables import override

logger = logging.getLogger(__name__)

_FREE = ("evaluation", "checkpoint", "starve")
"""Sections of a run file that have no part in what is learned."""
_FREE_KEYS = (
    "name",
    "data.dataset",
    "data.files",
    "train.loaders",
    "train.loader_processes",
    "train.log_every",
    "train.prefetch",
    "train.trace",
)
"""The same of single keys; where data and captured files lie may change, since hashes say that they are the same."""
_MOVED = ("publish.to",)
"""Keys that may be another one, but neither come nor go."""
_ONCE = ("data.stream",)
"""Keys that may be given where they were left out: a run of captured files knows its stream without its name."""
_WHOLE = ("evaluation.metrics",)
"""Lists of tables that are taken as they are, or not at all."""
WHEN_ASKED = ("source", "train.steps", "train.passes", "train.threads", "train.device", "train.micro_batch")
"""Settings that say nothing of what is learned and may yet change the weights: schedules are functions of the steps.
Another kind of source has to hold the same."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A setting that differs between two run files."""

    key: str
    """Its path, such as `train.steps` or `losses.0.weight`."""
    was: Any
    """None where it was not there."""
    now: Any
    allowed: bool
    """Whether the same run may go on with it."""

    def __str__(self) -> str:
        return f"{self.key} was {self.was!r}, is {self.now!r}"


def edits(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Edit]:
    """Compare the tables of two run files (`RunSettings.as_dict`): what differs, by key."""
    was, now = flat(before, whole=_WHOLE), flat(after, whole=_WHOLE)
    differing = [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
    return [Edit(key, was.get(key), now.get(key), _allowed(key, was.get(key), now.get(key))) for key in differing]


def _allowed(key: str, was: Any, now: Any) -> bool:
    free = key.partition(".")[0] in _FREE or key in _FREE_KEYS or key in WHEN_ASKED
    return free or (key in _ONCE and not was) or (key in _MOVED and bool(was and now))


def flat(value: Any, key: str = "", whole: Collection[str] = ()) -> dict[str, Any]:
    """Return path -> value of whatever tables and lists of tables are made of; those at paths of `whole` stay lists."""
    if isinstance(value, Mapping):
        entries = value.items()
    elif key not in whole and isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        entries = {str(index): each for index, each in enumerate(value)}.items()
    else:
        return {key: value}
    parts = (flat(each, f"{key}.{part}" if key else part, whole) for part, each in entries)
    return {name: leaf for part in parts for name, leaf in part.items()}


def origin_of(run_file: Path, assignments: Sequence[str], settings: RunSettings) -> dict[str, Any]:
    """What a run's folder keeps of where its settings came from, to see later what was changed there."""
    return {"run_file": str(run_file.absolute()), "set": list(assignments), "settings": settings.as_dict()}


def began_as(path: Path, origin: Mapping[str, Any]) -> bool:
    """Whether there is a run in a folder that began with the very settings that `origin_of` gives."""
    try:
        there = json.loads((path / "origin.json").read_bytes())
        before, now = (run_settings(each["settings"]) for each in (there, origin))
        return before.as_dict() == now.as_dict()
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return False


def resumed_settings(path: Path, assignments: Sequence[str] = ()) -> RunSettings:
    """Return the settings with which a run goes on: its own, what was changed in its run file since, `assignments`.

    What was changed there and may not be, or only when it is asked for, is left out; warnings say what is taken and
    what is not.

    Raises:
        ConfigError: there is no run in this folder, or an assignment that does not fit.
    """
    document = read_settings(path).as_dict()
    asked = {assignment.partition("=")[0].strip() for assignment in assignments}
    for edit in _taken(path, document["name"], asked):
        _put(document, edit.key.split("."), edit.now)
    override(document, assignments)
    return run_settings(document, str(path / "run.toml")).placed()


def _taken(path: Path, name: str, asked: Collection[str]) -> list[Edit]:
    try:
        origin = json.loads((path / "origin.json").read_bytes())
        run_file, assignments = Path(origin["run_file"]), [text.strip() for text in origin["set"]]
        before = run_settings(origin["settings"]).as_dict()
    except FileNotFoundError:
        return []  # a run that was not started from a file
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        damage = f"{type(error).__name__}: {error}"
        logger.warning(
            "%s: cannot be read (%s): what was changed in the run file is not known", path / "origin.json", damage
        )
        return []
    if not os.path.exists(run_file):  # nor where it may not be looked at
        return []
    try:
        after = load_run(run_file, assignments).as_dict()
    except ConfigError as error:
        logger.warning("%s; the run goes on with what it was started with", error)
        return []
    if after["name"] != name:
        return []  # it is another run's by now
    found = [each for each in edits(before, after) if each.key not in asked]
    taken = [each for each in found if each.allowed and each.key not in WHEN_ASKED]
    waiting = [each for each in found if each.key in WHEN_ASKED]
    left_out = [each for each in found if not each.allowed]
    asking = " ".join(f"--set {each.key}={each.now}" for each in waiting)
    for said, those, advice in (
        ("taken", taken, ""),
        ("not taken, since other weights may come of it", waiting, f"; to go on with it, give {asking}"),
        ("not taken, since the run would learn something else", left_out, "; start another run for that"),
    ):
        if those:
            changes = "; ".join(map(str, those))
            logger.warning("%s was changed since the run began; %s: %s%s", run_file, said, changes, advice)
    return taken


def _put(table: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set what lies at a path, or remove it where `value` is None, with the tables that are empty without it."""
    key, *rest = path
    if rest:
        _put(table.setdefault(key, {}), rest, value)
        if not table[key]:
            del table[key]
    elif value is None:
        table.pop(key, None)
    else:
        table[key] = value
