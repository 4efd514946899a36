"""Files of class maps, as users write them: one line for each class of a model, in its order."""

from __future__ import annotations

from pathlib import Path

from pipeline.datasets.base import Dataset, may_have
from pipeline.user_files import refuse_irregular
from schemas.class_maps import NO_CLASS
from schemas.errors import ConfigError
from schemas.names import did_you_mean

_NONE = "-"
_MOST_BYTES = 4 << 20
"""Of a file: some hundred thousand classes by name. What is larger is another file, given by mistake."""
_LONGEST = 255
"""Characters of a name that one like it is looked for by."""
_MOST_DIGITS = 9
"""Of a class's number, where the dataset does not say how many it has."""


def read_class_map(file: Path, dataset: Dataset, of_labels: bool = True) -> tuple[int, ...]:
    """Return the dataset's class of each class of a model, -1 for one that the dataset does not have.

    A line is a class of the dataset, by name or by number from 0 on (a name comes first, where it is a number), or `-`.

    Args:
        file: the map.
        dataset: whose classes they are.
        of_labels: whether they are the classes that labels of samples have; else, as those of a vocabulary, they may be
            any: a number is taken as it is.

    Raises:
        ConfigError: the file cannot be read, or is too large; a line is no class of the dataset, or one that another
            line is; none is.
    """
    refuse_irregular(file)
    try:
        if (size := file.stat().st_size) > _MOST_BYTES:
            raise ConfigError(
                f"class map {file}: has {size:,} bytes, and a class map {_MOST_BYTES:,} at most: give a file with a "
                "line for each class of the model"
            )
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"class map {file}: cannot be read: {error}") from None
    numbers = {name: number for number, name in enumerate(dataset.class_names)}
    line_of: dict[int, int] = {}
    class_map = []
    for count, line in enumerate(lines, 1):
        is_number = line.isascii() and line.isdecimal() and len(line) <= _MOST_DIGITS
        if not of_labels and is_number:
            number: int | None = int(line)
        else:
            number = NO_CLASS if line == _NONE else numbers.get(line)
        if number is None:
            number = _number(f"class map {file}, line {count}", line, dataset)
        if number != NO_CLASS and line_of.setdefault(number, count) != count:
            raise ConfigError(
                f"class map {file}: lines {line_of[number]} and {count} are both class {line!r} of the dataset, and "
                "each of its classes is one of the model's at most"
            )
        class_map.append(number)
    if not line_of:
        raise ConfigError(f"class map {file}: no line is a class of dataset {dataset.uri}")
    return tuple(class_map)


def _number(where: str, line: str, dataset: Dataset) -> int:
    there = dataset.num_classes
    if line.isascii() and line.isdecimal():
        if len(line) <= _MOST_DIGITS and may_have(dataset, max(int(line) + 1, there)):
            return int(line)
        hint = f"it has classes 0 to {there - 1}" if there else "no dataset has so many"
    else:
        names = dataset.class_names
        hint = did_you_mean(line[:_LONGEST], names) if names else "its classes have numbers alone"
    raise ConfigError(
        f"{where}: {line[:80]!r} is no class of dataset {dataset.uri}: {hint}; write a number, a name, or - where the "
        "dataset does not have it"
    )
