"""In which settings runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from student_trainer.run.settings import RunSettings


def different_settings(runs: Sequence[RunSettings]) -> dict[str, list[Any]]:
    """Return key -> each run's value, of the settings that are not the same in all; None where a run has none.

    Keys are as `--set` has them (`train.steps`); tables of [[losses]] and such are named by `key` or `name` rather than
    by their place, so that one loss more moves no other.
    """
    flat = [dict(_leaves(run.as_dict())) for run in runs]
    keys = dict.fromkeys(key for each in flat for key in each if key != "name")
    values = {key: [each.get(key) for each in flat] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        titles = [str(each.get("key") or each.get("name") or number) for number, each in enumerate(value)]
        for number, (title, each) in enumerate(zip(titles, value, strict=True)):
            yield from _leaves(each, f"{path}.{title if titles.count(title) == 1 else number}")
    else:
        yield path, value
