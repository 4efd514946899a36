"""Which tensor of a file becomes which of a student's: by beginnings of names, and by numbered layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches

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
        Name -> name; "" of a layer that is left out, and of what is `fresh`.

    Raises:
        ConfigError: layers of no one stack, a layer that there is not, or names under which there is nothing.
    """
    for key, prefixes in (("names", weights.names), ("fresh", weights.fresh)):
        for prefix in prefixes:
            if not any(_is_under(name, prefix) for name in own):
                raise ConfigError(f"{_SECTION} {key}: the student has no {prefix!r}: {_hint(prefix, own)}")
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
        if is_under_any(name, weights.fresh):
            found[name] = ""
        elif not rest[0].isdecimal() or by_itself:
            found[name] = _renamed(name, weights.names)
        elif int(rest[0]) in numbers:
            found[name] = _joined(there_stack, str(numbers[int(rest[0])]), *rest[1:])
        else:
            found[name] = ""
    _refuse_unmatched(found, there, weights.names)
    return found


def is_under_any(name: str, prefixes: Iterable[str]) -> bool:
    """Whether a name is one of these, or of something inside of one."""
    return any(_is_under(name, prefix) for prefix in prefixes)


def _refuse_unmatched(found: Mapping[str, str], there: Collection[str], names: Mapping[str, str]) -> None:
    """Refuse, as ConfigError, a line of `names` by which nothing is found: a typo would leave all of it to the seed."""
    for prefix, source in names.items():
        sought = {name: place for name, place in found.items() if place and _longest(name, names) == prefix}
        if not sought or any(place in there for place in sought.values()):
            continue
        if not any(_is_under(name, source) for name in there):
            raise ConfigError(f"{_SECTION} names: the file has no {source!r}: {_hint(source, there)}")
        name, place = next(iter(sought.items()))
        raise ConfigError(
            f"{_SECTION} names: the file has nothing for the student's {prefix!r} in {source!r}: "
            f"for {name} there is no {place}"
        )


def _hint(prefix: str, names: Collection[str]) -> str:
    """Text to put behind a beginning that no name has: the nearest that one has, or where names begin at all."""
    parts = [name.split(".") for name in names]
    beginnings = {".".join(each[:count]) for each in parts for count in range(1, len(each) + 1)}
    return did_you_mean(prefix, get_close_matches(prefix, beginnings, n=1) or {each[0] for each in parts})


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
    prefix = _longest(name, names)
    return name if prefix is None else _joined(names[prefix], _below(name, prefix))


def _longest(name: str, prefixes: Iterable[str]) -> str | None:
    """Return the longest of the prefixes that a name is under."""
    return max((prefix for prefix in prefixes if _is_under(name, prefix)), key=len, default=None)


def _is_under(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def _below(name: str, prefix: str) -> str:
    """Return what follows a prefix in a name; "" where nothing does, or the name is not under it."""
    if not prefix:
        return name
    return name[len(prefix) + 1 :] if name.startswith(f"{prefix}.") else ""


def _joined(*parts: str) -> str:
    return ".".join(filter(None, parts))
