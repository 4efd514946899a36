"""Class maps by name: of a model that says how its classes are called, which of the dataset's classes each one is.

Names come from a file of the user's, or from the ONNX file's own metadata, where exporters leave them.
"""

from __future__ import annotations

import ast
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.datasets.base import Dataset
from pipeline.user_files import refuse_irregular
from schemas.class_maps import NO_CLASS
from schemas.errors import ConfigError

log = logging.getLogger(__name__)

OF_MODEL = "@model"
"""In place of a file: the names that the ONNX file itself has."""
METADATA_KEYS = ("distillog.class_names", "class_names", "names", "classes")
"""Of `metadata_props`, in this order: as `runs export` writes them; as exporters and plugins do, a list; as Ultralytics
does, a dict of numbers to names in Python's notation."""
_MOST_BYTES = 4 << 20
_SHOWN = 8
"""Names that a message has at most."""


def class_map_by_names(
    source: Path | str, metadata: Mapping[str, str], dataset: Dataset, num_classes: int, what: str
) -> tuple[int, ...]:
    """Return the dataset's class of each class of a model, -1 for one that it does not have; () where all are alike.

    Names are the same where they are equal, and else where they are but for case and for spaces, `_` and `-`.

    Args:
        source: a file of names, one a line or a JSON list, or `OF_MODEL`.
        metadata: what the model's `metadata_props` say.
        dataset: whose classes they are held against; it has names.
        num_classes: of the model's output.
        what: begins the text of errors and of what is said of unmatched names.

    Raises:
        ConfigError: no names on one of the sides, or not as many as classes; none is the dataset's; two are one class
            of it, or one is two of them.
    """
    there = dataset.class_names
    if not there:
        raise ConfigError(f"{what}: dataset {dataset.uri} has no names of classes: give --class-map with their numbers")
    names = _of_model(what, metadata) if str(source) == OF_MODEL else _of_file(what, Path(source))
    if len(names) != num_classes:
        raise ConfigError(
            f"{what}: {len(names)} names, and the model has {num_classes} classes: one for each is needed"
        )
    class_map = matched(names, there, what)
    found = set(class_map) - {NO_CLASS}
    if not found:
        raise ConfigError(
            f"{what}: none of the model's classes ({_shown(names)}) is called as one of dataset {dataset.uri} "
            f"({_shown(there)}): give --class-map, which says which is which"
        )
    if class_map == tuple(range(len(there))):
        return ()
    unmatched = [name for name, number in zip(names, class_map, strict=True) if number == NO_CLASS]
    lacking = [name for number, name in enumerate(there) if number not in found]
    said = f"{what}: {len(found)} of the model's {num_classes} classes are among the dataset's {len(there)}"
    said += f"; it does not have {_shown(unmatched)}" if unmatched else ""
    said += f"; the model does not have {_shown(lacking)}" if lacking else ""
    log.log(logging.WARNING if unmatched else logging.INFO, "%s", said)
    return class_map


def matched(names: Sequence[str], there: Sequence[str], what: str) -> tuple[int, ...]:
    """Return the place among `there` of each name, -1 where it has none.

    Raises:
        ConfigError: a name could be two of the other side's.
    """
    found = _places(names, there, what, str)
    left = [number for number, place in enumerate(found) if place == NO_CLASS]
    free = sorted(set(range(len(there))) - set(found))
    alike = _places([names[number] for number in left], [there[place] for place in free], what, _folded)
    for number, place in zip(left, alike, strict=True):
        found[number] = NO_CLASS if place == NO_CLASS else free[place]
    return tuple(found)


def _places(names: Sequence[str], there: Sequence[str], what: str, form: Callable[[str], str]) -> list[int]:
    ours, theirs = [form(name) for name in names], [form(name) for name in there]
    common = set(ours) & set(theirs)
    for side, forms, written in (("the model's", ours, names), ("the dataset's", theirs, there)):
        for each, count in Counter(forms).items():
            if count > 1 and each in common:
                twice = [name for name, as_form in zip(written, forms, strict=True) if as_form == each]
                raise ConfigError(
                    f"{what}: {_shown(twice)} are {len(twice)} of {side} classes, and one of the other side's: give "
                    "--class-map, which says which is which"
                )
    place_of = {each: place for place, each in enumerate(theirs)}
    return [place_of[each] if each in common else NO_CLASS for each in ours]


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())


def _of_file(what: str, file: Path) -> list[str]:
    refuse_irregular(file)
    try:
        if (size := file.stat().st_size) > _MOST_BYTES:
            raise ConfigError(f"{what}: {file} has {size:,} bytes; names have {_MOST_BYTES:,} at most")
        text = file.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what}: {file} cannot be read: {error}") from None
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return _listed(json.loads(text, object_pairs_hook=_once_each))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{what}: {file} is no list of names in JSON: {error}") from None
    return [line.strip() for line in text.splitlines()]


def _of_model(what: str, there: Mapping[str, str]) -> list[str]:
    for key in METADATA_KEYS:
        if key not in there:
            continue
        try:
            try:
                value = json.loads(there[key], object_pairs_hook=_once_each)
            except ValueError:
                value = _literal(there[key])
            if names := _listed(value):
                return names
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
            raise ConfigError(f"{what}: the model's metadata {key!r} holds no names of classes: {error}") from None
    raise ConfigError(
        f"{what}: the model's metadata has no names of classes ({', '.join(METADATA_KEYS)}): give a file of them"
    )


def _once_each(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """A table of pairs; raises ValueError where two have one key, of which the first would be lost."""
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"it names {key!r} {count} times")
    return dict(pairs)


def _literal(text: str) -> Any:
    """A value in Python's notation, of literals alone: no name and no call is looked at."""
    value = ast.literal_eval(text)
    if isinstance(value, dict):
        table = ast.parse(text.lstrip(" \t"), mode="eval").body
        _once_each([(ast.literal_eval(key), None) for key in getattr(table, "keys", []) if key is not None])
    return value


def _listed(value: Any) -> list[str]:
    """The names in a list, or in a table by number; raises ValueError where they are neither."""
    if isinstance(value, dict):
        numbers = {int(key): name for key, name in value.items()}
        if sorted(numbers) != list(range(len(value))):
            raise ValueError("its numbers do not go from 0 on, each once")
        value = [numbers[number] for number in range(len(numbers))]
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError("it is neither a list of texts nor a table of numbers to texts")
    return [name.strip() for name in value]


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name[:40]) for name in names[:_SHOWN]) + more
