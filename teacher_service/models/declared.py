"""What a user says of an ONNX file that somebody made, and how it is said on a command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from schemas.codecs import CodecSpec
from schemas.errors import ConfigError
from schemas.records import Teacher, TeacherInput
from schemas.teacher import CHANNEL_ORDERS, number_text, numbers_text
from schemas.teacher_output import KINDS

_A_KIND = f"one of {', '.join(KINDS)}"


def _need(declared: object, key: str, fits: bool, wanted: str) -> None:
    if not fits:
        value = " ".join(repr(getattr(declared, key)).split())[:100]
        raise ConfigError(f"{type(declared).__name__}: {key} is {value}: give {wanted}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_mapping(value: Any, of: type) -> bool:
    if not isinstance(value, Mapping):
        return False
    return all(isinstance(key, str) and isinstance(each, of) for key, each in value.items())


@dataclass(frozen=True, slots=True)
class Scaling:
    """The arithmetic before an input: (value * scale - mean) / std."""

    scale: float | None = None
    """None: not said."""
    mean: tuple[float, ...] = ()
    """One number, or one for each channel; () = not said."""
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Raise ConfigError for a value of another type."""
        _need(self, "scale", self.scale is None or _is_number(self.scale), "a number, or None")
        for key in ("mean", "std"):
            numbers = getattr(self, key)
            are_numbers = isinstance(numbers, list | tuple) and all(map(_is_number, numbers))
            _need(self, key, are_numbers, "numbers in a tuple, such as (0.5,)")
            object.__setattr__(self, key, tuple(numbers))

    def over(self, general: Scaling) -> Scaling:
        """Return this one, and where it says nothing what holds in general."""
        scale = general.scale if self.scale is None else self.scale
        return Scaling(scale, self.mean or general.mean, self.std or general.std)


@dataclass(frozen=True, slots=True)
class DeclaredOutput:
    """An output that is to be published, as it is written: `NAME=ONNX_OUTPUT:KIND@AXIS`."""

    output: str
    """The ONNX graph's name of it."""
    name: str = ""
    """In the soft targets; "": `logits`, or its kind where it holds no classes."""
    kind: str = ""
    """One of KINDS; "": `logits`, and refused where the rows say otherwise."""
    axis: int | None = None
    """The dimension that counts classes, 0 being the batch; None: the last."""
    codec: CodecSpec | str | None = None
    """How it is stored; None: as the stream says, and as float16 of multilabel, features, values. Texts are parsed."""
    positions: str = ""
    """The view's field that chooses its positions, those where it is not 0; "": a sample has one row of it."""
    class_map: Path | str | None = None
    """File with the dataset's class of each of its classes, one a line; None: they are the dataset's, in its order."""
    reduction: str = ""
    """What is done to it before it is stored, such as `mean@1`; "": nothing."""
    class_names: Path | str | None = None
    """File with the names of its classes, or "@model": the ONNX file has them; its map is made by these. None: none."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a value of another type, or one that there is not."""
        for key in ("output", "name", "kind", "positions", "reduction"):
            _need(self, key, isinstance(getattr(self, key), str), "a text")
        _need(self, "output", self.output != "", "the name of an output of the ONNX file")
        _need(self, "kind", self.kind in ("", *KINDS), _A_KIND)
        _need(self, "axis", self.axis is None or _is_whole(self.axis), "a whole number, or None")
        if isinstance(self.codec, str):
            object.__setattr__(self, "codec", CodecSpec.parse(self.codec))
        _need(self, "codec", isinstance(self.codec, CodecSpec | None), "a codec, such as 'float16', or None")
        is_path = isinstance(self.class_map, Path | str) and self.class_map != ""
        _need(self, "class_map", self.class_map is None or is_path, "the path of a file, or None")
        is_path = isinstance(self.class_names, Path | str) and self.class_names != ""
        _need(self, "class_names", self.class_names is None or is_path, "the path of a file, '@model' or None")
        _need(self, "class_names", self.class_names is None or self.class_map is None, "None beside a class_map")

    @property
    def codec_spec(self) -> CodecSpec | None:
        """`codec`, which is no text any more."""
        assert not isinstance(self.codec, str)
        return self.codec

    def __str__(self) -> str:
        kind = f":{self.kind}" if self.kind else ""
        axis = "" if self.axis is None else f"@{self.axis}"
        return f"{self.name}={self.output}{kind}{axis}" if self.name else self.output


@dataclass(frozen=True, slots=True)
class Declared:
    """What is not said is found by itself, or refused where it cannot be found."""

    outputs: tuple[DeclaredOutput, ...] = ()
    """The model's only one if not said."""
    kind: str | None = None
    """What a single output holds of which nothing else is said."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Field of the dataset -> ONNX input; found by itself where names or counts leave no choice."""
    scaling: Mapping[str, Scaling] = field(default_factory=dict)
    """By field."""
    general: Scaling = Scaling()
    """Of all images; where no field is one, of the only field."""
    layout: str | None = None
    """Of image inputs: `nchw` or `nhwc`; by shape if not said."""
    channel_order: str = ""
    """Of images of three channels: "" as the field has them, or `bgr`."""
    batch: int | None = None
    """Rows of each call; the model's own where it is fixed, else the order size, or as many as 256, or fewer of large
    outputs."""
    codec: CodecSpec | str | None = None
    """How the only output is stored, of which nothing else is said of that. Texts are parsed."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a value of another type, or one that there is not."""
        outputs = self.outputs
        are_outputs = isinstance(outputs, list | tuple) and all(isinstance(one, DeclaredOutput) for one in outputs)
        _need(self, "outputs", are_outputs, "a tuple of DeclaredOutput")
        object.__setattr__(self, "outputs", tuple(outputs))
        _need(self, "kind", self.kind is None or self.kind in KINDS, f"{_A_KIND}, or None")
        _need(self, "inputs", _is_mapping(self.inputs, str), "a dict, field of the dataset to ONNX input")
        _need(self, "scaling", _is_mapping(self.scaling, Scaling), "a dict, field of the dataset to Scaling")
        _need(self, "general", isinstance(self.general, Scaling), "a Scaling")
        _need(self, "layout", self.layout in (None, "nchw", "nhwc"), "'nchw', 'nhwc' or None")
        _need(self, "channel_order", self.channel_order in CHANNEL_ORDERS, "'' or 'bgr'")
        if isinstance(self.codec, str):
            object.__setattr__(self, "codec", CodecSpec.parse(self.codec))
        _need(self, "codec", isinstance(self.codec, CodecSpec | None), "a codec, such as 'head', or None")
        _need(self, "batch", self.batch is None or _is_whole(self.batch), "a whole number, or None")

    def options(self, teacher: Teacher) -> list[str]:
        """Return the options of the command line that declare just this teacher, of which these declared some."""
        words: list[str] = []
        alone = len(teacher.inputs) == 1
        for one in teacher.inputs:
            if self.inputs or not alone:
                words += ["--input", f"{one.field}={one.input}" + ("" if alone else one.formula)]
        if alone:
            words += _of_scaling(teacher.inputs[0])
        layout = next((one.layout for one in teacher.inputs if one.layout), None)
        if layout and (self.layout or layout == "nhwc"):
            words += ["--layout", layout]
        if any(one.channel_order for one in teacher.inputs):
            words += ["--channel-order", "bgr"]
        for output in self.outputs:
            words += ["--output", str(output)]
            said = {
                "--codec": output.codec,
                "--positions": output.positions,
                "--class-map": output.class_map,
                "--class-names": output.class_names,
                "--reduce": output.reduction,
            }
            words += [word for option, value in said.items() if value for word in (option, f"{output.name}={value}")]
        words += ["--kind", self.kind] if self.kind else []
        words += ["--codec", str(self.codec)] if self.codec else []
        return words + (["--batch", str(self.batch)] if self.batch else [])


NOTHING = Declared()


def _of_scaling(one: TeacherInput) -> list[str]:
    words = ["--scale", number_text(one.scale)]
    for name, numbers in (("--mean", one.mean), ("--std", one.std)):
        words += [name, numbers_text(numbers)] if numbers else []
    return words
