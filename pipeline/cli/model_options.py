"""Options that say what an ONNX file of somebody else's is: `topics add-teacher` and `runs evaluate --teacher`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from teacher_service.models.declared import Declared, DeclaredOutput, Scaling

T = TypeVar("T")

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_NUMBERS = rf"{_NUMBER}(?:,{_NUMBER})*"
_FORMULA = re.compile(rf"(?P<scale>{_NUMBER}(?:/{_NUMBER})?)(?:-(?P<mean>{_NUMBERS}))?(?:/(?P<std>{_NUMBERS}))?")
"""SCALE[-MEAN[/STD]]"""

_KINDS = ("logits", "probabilities", "log_probabilities", "multilabel", "features", "values")

_OUTPUT = re.compile(
    rf"(?:(?P<name>[^=]*)=)?(?P<output>.+?)(?::(?P<kind>{'|'.join(_KINDS)})(?:@(?P<axis>[1-9]\d?))?)?", re.DOTALL
)
"""An ONNX output may have colons in its name: only a kind behind the last one is none of it."""

_LEAST, _MOST = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127
"""What a 32-bit float, as which inputs are computed, holds in full."""


def _as_number(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Return a number that is not 0, also of a fraction such as 1/255. Raises BadParameter."""
    try:
        number = None if value is None else _number(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a number that a 32-bit float holds, such as 255 or 1/255."
        ) from None
    if number == 0:
        raise click.BadParameter(f"{value!r}: a factor of 0 leaves nothing of a sample.")
    return number


def _as_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...]:
    """Return one number, or one for each channel. Raises BadParameter."""
    try:
        return _numbers(value or "")
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not numbers that a 32-bit float holds, joined by commas: 0.485,0.456,0.406."
        ) from None


def _as_divisors(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...]:
    """As `_as_numbers`, above 0."""
    numbers = _as_numbers(ctx, param, value)
    if min(numbers, default=1.0) <= 0:
        raise click.BadParameter(f"{value!r}: nothing is divided by 0 or less.")
    return numbers


_OPTIONS = [
    click.option(
        "--output",
        "outputs",
        metavar="[NAME=]ONNX_OUTPUT[:KIND[@AXIS]]",
        multiple=True,
        help="ONNX output to take, under a name (repeatable).  [default: the only one]",
    ),
    click.option(
        "--class-map",
        metavar="NAME=FILE",
        multiple=True,
        help="The dataset's class of each of an output's classes, one a line: a number, a name, or - (repeatable).",
    ),
    click.option(
        "--class-names",
        metavar="NAME=FILE",
        multiple=True,
        help="Names of an output's classes, which are found among the dataset's; @model: its own (repeatable).",
    ),
    click.option(
        "--reduce",
        metavar="NAME=REDUCTION",
        multiple=True,
        help="Done to an output before it is stored: mean@AXIS, first@AXIS or attention@AXIS (repeatable).",
    ),
    click.option("--kind", type=click.Choice(_KINDS), help="What the only output holds.  [default: logits]"),
    click.option(
        "--input",
        "inputs",
        metavar="FIELD=NAME[*SCALE[-MEAN[/STD]]]",
        multiple=True,
        help="Field of the dataset for an ONNX input, and its arithmetic (repeatable).  [default: by name]",
    ),
    click.option("--scale", callback=_as_number, metavar="SCALE", help="Factor on the images' values: 255, or 1/255."),
    click.option("--mean", callback=_as_numbers, metavar="M[,M,M]", help="Subtracted after that, for each channel."),
    click.option("--std", callback=_as_divisors, metavar="S[,S,S]", help="Divided by after that."),
    click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Layout of image inputs.  [default: by shape]"),
    click.option("--channel-order", type=click.Choice(["bgr"]), help="The model wants red and blue exchanged."),
    click.option("--batch", type=click.IntRange(min=1), help="Rows of each inference.  [default: the model's]"),
]


def model_options(command: Callable[..., T]) -> Callable[..., T]:
    """Add the options, passed on together as `declared`."""

    @wraps(command)
    def called(
        *args: Any,
        outputs: tuple[str, ...],
        class_map: tuple[str, ...],
        class_names: tuple[str, ...],
        reduce: tuple[str, ...],
        kind: str | None,
        inputs: tuple[str, ...],
        scale: float | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        layout: str | None,
        channel_order: str | None,
        batch: int | None,
        **others: Any,
    ) -> T:
        from teacher_service.models.declared import Declared, Scaling

        names, scaling = _inputs(inputs)
        general = Scaling(scale, mean, std)
        asked = tuple(map(_output, outputs))
        declared = Declared(asked, kind, names, scaling, general, layout, channel_order or "", batch)
        declared = of_outputs(declared, "--class-map", "FILE", class_map, lambda text: {"class_map": Path(text)})
        for name in {text.partition("=")[0] for text in class_map} & {text.partition("=")[0] for text in class_names}:
            raise click.UsageError(f"output {name} has both --class-map and --class-names: give one of them")
        declared = of_outputs(declared, "--class-names", "FILE", class_names, lambda text: {"class_names": text})
        declared = of_outputs(declared, "--reduce", "REDUCTION", reduce, lambda text: {"reduction": text})
        return command(*args, declared=declared, **others)

    for option in reversed(_OPTIONS):
        called = option(called)
    return called


def of_outputs(
    declared: Declared, option: str, form: str, texts: tuple[str, ...], parse: Callable[[str], dict[str, Any]]
) -> Declared:
    """Return a declaration that says more of its outputs.

    Args:
        declared: the declaration.
        option: which says it, each time `NAME=` and a value of that `form`.
        form: as a usage line has it.
        texts: what was given.
        parse: value -> the field of `DeclaredOutput` that it is.

    Raises:
        UsageError: no output of that name, or one that is given two.
    """
    from dataclasses import replace

    outputs = list(declared.outputs)
    names = [output.name for output in outputs]
    seen = set()
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value or name not in names:
            known = ", ".join(filter(None, names)) or "none has a name: say --output NAME=ONNX_OUTPUT"
            raise click.UsageError(f"{option} {text!r}: write NAME={form}, of an output that --output names ({known})")
        if name in seen:
            raise click.UsageError(f"{option} {text!r}: output {name} is given two")
        seen.add(name)
        at = names.index(name)
        outputs[at] = replace(outputs[at], **parse(value))
    return replace(declared, outputs=tuple(outputs))


def _output(text: str) -> DeclaredOutput:
    """Parse `[NAME=]ONNX_OUTPUT[:KIND[@AXIS]]`."""
    from teacher_service.models.declared import DeclaredOutput

    found = _OUTPUT.fullmatch(text)
    if found is None or found["name"] == "":
        raise click.UsageError(f"--output {text!r}: write NAME=ONNX_OUTPUT or NAME=ONNX_OUTPUT:KIND")
    axis = found["axis"] and int(found["axis"])
    return DeclaredOutput(found["output"], found["name"] or "", found["kind"] or "", axis or None)


def _inputs(texts: tuple[str, ...]) -> tuple[dict[str, str], dict[str, Scaling]]:
    """Parse `FIELD=NAME[*SCALE[-MEAN[/STD]]]` into field -> ONNX input, and field -> arithmetic."""
    from teacher_service.models.declared import Scaling

    names: dict[str, str] = {}
    scaling: dict[str, Scaling] = {}
    for text in texts:
        field, equals, name = text.partition("=")
        name, star, formula = name.partition("*")
        if not (field and equals and name):
            raise click.UsageError(f"--input {text!r}: write FIELD=NAME or FIELD=NAME*SCALE")
        if field in names:
            raise click.UsageError(f"--input {text!r}: field {field} is given twice")
        names[field] = name
        if not star:
            continue
        found = _FORMULA.fullmatch(formula)
        try:
            if found is None:
                raise ValueError
            scale, (mean, std) = _number(found["scale"]), (_numbers(found[part] or "") for part in ("mean", "std"))
        except ValueError:
            raise click.UsageError(
                f"--input {text!r}: {formula!r} is not a number that a 32-bit float holds, or SCALE-MEAN/STD such as "
                "1/255-0.5/0.25"
            ) from None
        if scale == 0:
            raise click.UsageError(f"--input {text!r}: a factor of 0 leaves nothing of a sample")
        if std and min(std) <= 0:
            raise click.UsageError(f"--input {text!r}: nothing is divided by 0 or less")
        scaling[field] = Scaling(scale, mean, std)
    return names, scaling


def _number(text: str) -> float:
    """Return a number, or a fraction of two; ValueError for all else, and for what a 32-bit float does not hold."""
    above, slash, below = text.partition("/")
    try:
        number = float(above) / float(below) if slash else float(above)
    except ZeroDivisionError:
        raise ValueError from None
    if number and not _LEAST <= abs(number) <= _MOST:
        raise ValueError
    return number


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(_number, text.split(","))) if text else ()
