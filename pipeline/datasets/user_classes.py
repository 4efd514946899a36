"""What a user's dataset says of its classes."""

from __future__ import annotations

import operator
from typing import Any

from schemas.errors import ConfigError


def classes_of(uri: str, thing: Any) -> tuple[int, tuple[str, ...]]:
    """(num_classes, class_names) of its attributes: 0 where unknown, () where they have no names.

    Raises ConfigError for attributes that are something else, or differ.
    """
    names = getattr(thing, "class_names", ())
    if isinstance(names, str):
        raise ConfigError(f"dataset {uri}: class_names is the text {names[:60]!r}; give one name a class")
    try:
        class_names = tuple(str(name) for name in names)
        num_classes = operator.index(getattr(thing, "num_classes", len(class_names)))
    except TypeError as error:
        raise ConfigError(
            f"dataset {uri}: class_names must be one name a class, num_classes a whole number: {error}"
        ) from error
    if num_classes < 0 or (class_names and len(class_names) != num_classes):
        raise ConfigError(f"dataset {uri}: num_classes is {num_classes}, with {len(class_names)} class_names")
    return num_classes, class_names
