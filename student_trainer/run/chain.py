"""A chain of runs in one file: each student is a teacher of the next one.

Born-again generations (Furlanello et al. 2018), and teaching assistants between a large teacher and a small student
(Mirzadeh et al. 2020).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError
from schemas.names import check_name
from student_trainer.run.settings import RunSettings, read_document, run_settings
from student_trainer.run.toml_tables import override

STEPS = "chain"
"""The key of the steps: tables, each of which changes the run file's settings."""


def load_chain(path: Path | str, overrides: Sequence[str] = ()) -> list[RunSettings]:
    """Read a run file with `[[chain]]`: the settings of each step, in order.

    A step has a `name`, which is its run's and its student's as a teacher, and keys that go before the run file's; of a
    table key by key, but a student of another name has nothing of the run file's. From the second step on its one
    teacher is the step before, and its seed the run file's and its number from 0, where it does not say otherwise.

    Raises:
        ConfigError: as `load_run`; there are no steps, two of one name, or one that needs no teacher.
    """
    document = read_document(path)
    override(document, overrides)
    steps = document.pop(STEPS, None)
    document.pop("name", None)
    if not isinstance(steps, list) or not steps or not all(isinstance(step, Mapping) for step in steps):
        raise ConfigError(f"{path}: has no [[{STEPS}]]: a table for each step, with its `name` and what it changes")
    if document.get("source", "stream") != "stream":
        raise ConfigError(f'{path}: source = "{document["source"]}": the students of a chain learn from a stream')
    found: list[RunSettings] = []
    for number, step in enumerate(steps):
        where = f"{path} [[{STEPS}]] {step.get('name', number)}"
        if "name" not in step:
            raise ConfigError(f"{where}: 'name' is missing: that of its run, and of its student as a teacher")
        if "source" in step or "data" in step:
            raise ConfigError(f"{where}: all steps learn from one stream: leave out `source` and `data`")
        own = _changed(document, step)
        if number:
            own["teachers"] = step.get("teachers", [{"name": steps[number - 1]["name"]}])
            train, said = own.get("train", {}), step.get("train", {})
            if isinstance(train, dict) and "seed" not in said and isinstance(seed := train.get("seed", 0), int):
                own["train"] = train | {"seed": seed + number}
        settings = run_settings(own, where)
        check_name("teacher", settings.name)
        if settings.name in [each.name for each in found]:
            raise ConfigError(f"{where}: two steps are called {settings.name!r}")
        found.append(settings)
    given = {teacher.name for teacher in found[0].teachers}
    for settings in found[1:]:
        if settings.name in given or found[0].name in given:
            taken = settings.name if settings.name in given else found[0].name
            raise ConfigError(f"{path}: {taken!r} is a teacher already; call the step something else")
    return found


def _changed(document: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(dict(document))
    for key, value in step.items():
        before = found.get(key)
        if isinstance(before, dict) and isinstance(value, Mapping):
            anew = key == "student" and value.get("name", before.get("name")) != before.get("name")
            found[key] = copy.deepcopy({**({} if anew else before), **value})
        else:
            found[key] = copy.deepcopy(value)
    return found
