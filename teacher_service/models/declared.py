"""What a user says of an ONNX file that somebody made, and how it is said on a command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from schemas.codecs import CodecSpec
from schemas.records import Teacher, TeacherInput
from schemas.teacher import number_text, numbers_text


@dataclass(frozen=True, slots=True)
class Scaling:
    """The arithmetic before an input: (value * scale - mean) / std."""

    scale: float | None = None
    """None: not said."""
    mean: tuple[float, ...] = ()
    """One number, or one for each channel; () = not said."""
    std: tuple[float, ...] = ()

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
    codec: CodecSpec | None = None
    """How it is stored; None: as the stream says, and as float16 of multilabel, features and values."""
    positions: str = ""
    """The view's field that chooses its positions, those where it is not 0; "": a sample has one row of it."""
    class_map: Path | str | None = None
    """File with the dataset's class of each of its classes, one a line; None: they are the dataset's, in its order."""
    reduction: str = ""
    """What is done to it before it is stored, such as `mean@1`; "": nothing."""

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
                "--reduce": output.reduction,
            }
            words += [word for option, value in said.items() if value for word in (option, f"{output.name}={value}")]
        words += ["--kind", self.kind] if self.kind else []
        return words + (["--batch", str(self.batch)] if self.batch else [])


NOTHING = Declared()


def _of_scaling(one: TeacherInput) -> list[str]:
    words = ["--scale", number_text(one.scale)]
    for name, numbers in (("--mean", one.mean), ("--std", one.std)):
        words += [name, numbers_text(numbers)] if numbers else []
    return words
