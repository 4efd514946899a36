"""Which tensor of a file becomes which of a student's: by beginnings of names, and by numbered layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from schemas.errors import ConfigError
from schemas.names import did_you_mean
from student_trainer.run.student_settings import WeightsSettings

_SECTION = "[student.weights]"


def places(own: Collection[str], there: Collection[str], weights: WeightsSettings) -> dict[str, str]:
    """Return the student's tensors -> the name of each in the file, whether it is there or not.

    Args:
        own: the student's names.
        there: the file's.
        weights: how the one follows from the other.

    Returns:
        Name -> name; "" of a layer that is left out.

    Raises:
        ConfigError: layers of no one stack, or a layer that there is not.
    """
    for prefix in weights.names:
        if not any(_is_under(name, prefix) for name in own):
            beginnings = {name.rpartition(".")[0] for name in own} | {name.partition(".")[0] for name in own}
            raise ConfigError(f"{_SECTION} names: the student has no {prefix!r}: {did_you_mean(prefix, beginnings)}")
    numbers = {int(layer): source for layer, source in weights.layers.items()}
    stack = _stack(own, there, weights) if numbers else ""
    there_stack = _renamed(stack, weights.names)
    if numbers:
        for what, prefix, names, asked in (
            ("student", stack, own, numbers),
            ("file", there_stack, there, numbers.values()),
        ):
            known = _layers(names, prefix)
            if unknown := [number for number in asked if number not in known]:
                raise ConfigError(
                    f"{_SECTION} layers: the {what} has no layer {unknown[0]} in {prefix or 'its stack'}, but "
                    f"{', '.join(map(str, sorted(known)))}"
                )
    found = {}
    for name in own:
        rest = _below(name, stack).split(".") if numbers and _below(name, stack) else [""]
        # A name that is mapped by itself is told from which layer it comes.
        by_itself = any(len(prefix) > len(stack) and _is_under(name, prefix) for prefix in weights.names)
        if not rest[0].isdecimal() or by_itself:
            found[name] = _renamed(name, weights.names)
        elif int(rest[0]) in numbers:
            found[name] = _joined(there_stack, str(numbers[int(rest[0])]), *rest[1:])
        else:
            found[name] = ""
    return found


def _stack(own: Collection[str], there: Collection[str], weights: WeightsSettings) -> str:
    """Return the student's stack of numbered layers that the file has, too: the only one, or the one in `names`."""
    there_are = {prefix for prefix in {*_outermost(own), *weights.names} if _layers(own, prefix)}
    in_both = {prefix for prefix in there_are if _layers(there, _renamed(prefix, weights.names))}
    chosen = sorted(in_both & weights.names.keys() or in_both)
    if len(chosen) != 1:
        which = f"both have {', '.join(chosen)}" if chosen else "none is in both"
        raise ConfigError(
            f"{_SECTION} layers: {which}; the student has {_shown(there_are)}, the file {_shown(_outermost(there))}: "
            'say which of these stacks in names = {"STUDENT\'S" = "THE FILE\'S"}'
        )
    return chosen[0]


def _shown(stacks: Collection[str]) -> str:
    return ", ".join(stack or "numbers alone" for stack in sorted(stacks)) or "no numbered layers"


def _outermost(names: Iterable[str]) -> set[str]:
    """Return what stands before the first number in each name."""
    found = set()
    for name in names:
        parts = name.split(".")
        numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
        if numbers:
            found.add(".".join(parts[: numbers[0]]))
    return found


def _layers(names: Iterable[str], prefix: str) -> set[int]:
    """Return the numbers that follow a prefix."""
    first = (_below(name, prefix).partition(".")[0] for name in names)
    return {int(part) for part in first if part.isdecimal()}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """Return a name with the longest of the prefixes that it is under replaced."""
    under = [prefix for prefix in names if _is_under(name, prefix)]
    if not under:
        return name
    prefix = max(under, key=len)
    return _joined(names[prefix], _below(name, prefix))


def _is_under(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def _below(name: str, prefix: str) -> str:
    """Return what follows a prefix in a name; "" where nothing does, or the name is not under it."""
    if not prefix:
        return name
    return name[len(prefix) + 1 :] if name.startswith(f"{prefix}.") else ""


def _joined(*parts: str) -> str:
    return ".".join(filter(None, parts))
