"""The `[student]` section of a run file: the network, what goes into it and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError

MAX_SIDE = 1 << 16
"""Of what a student asks of the view."""


@dataclass(frozen=True, slots=True)
class WeightsSettings:
    """`[student.weights]`: what the student begins with."""

    path: str
    """The folder of a run, the newest checkpoint of which is taken, or a safetensors file."""
    layers: dict[str, int] = field(default_factory=dict)
    """The student's numbered layer -> the file's, e.g. {0 = 0, 1 = 2, 2 = 4}; left out: by their numbers."""
    names: dict[str, str] = field(default_factory=dict)
    """The beginning of the student's names -> the file's, e.g. {"encoder.layers" = "bert.encoder.layer"}."""
    fresh: tuple[str, ...] = ()
    """Beginnings of the student's names that keep the seed's weights, whatever the file has, e.g. ["head"]."""
    partial: bool = False
    """Keep the seed's weights where the file has none."""
    sha256: str = ""
    """Of the file, or as the run's report has it; written before the first step. Another one is refused."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("path is missing; give the folder of a run, or a safetensors file")
        for layer in self.layers:
            if not layer.isdecimal() or str(int(layer)) != layer:
                raise ConfigError(f"layers: {layer!r} is no number of a layer")
        if "" in self.fresh:
            raise ConfigError("fresh has an empty name; to keep all of the seed's weights, leave [student.weights] out")
        if both := sorted(self.names.keys() & set(self.fresh)):
            raise ConfigError(f"{both[0]!r} is in names and in fresh: it begins with the file's, or with the seed's")


@dataclass(frozen=True, slots=True)
class StudentSettings:
    """`[student]`: the network."""

    name: str
    """A name of STUDENTS, or `my_package.my_module:my_function`."""
    inputs: tuple[str, ...] = ()
    """The dataset's fields it takes, e.g. ["input_ids", "attention_mask"]; left out: the only one."""
    size: tuple[int, ...] = ()
    """The spatial size it asks of the view, e.g. [160, 160]; left out: as the samples come."""
    classes: int = 0
    """How many classes it tells apart; left out: as many as its teachers' output, else the dataset."""
    mean: tuple[float, ...] = ()
    """Taken off its images, bytes as [0, 1]: one number, or one for each channel; left out: 0."""
    std: tuple[float, ...] = ()
    """What they are then divided by; left out: 1."""
    outputs: dict[str, str] = field(default_factory=dict)
    """Inner values as outputs: name -> module of the network, e.g. `{hidden = "encoder.layers.2"}`."""
    weights: WeightsSettings | None = None
    """What it begins with; left out: the weights that the seed makes."""
    frozen: tuple[str, ...] = ()
    """Modules or parameters that do not learn, e.g. ["embeddings", "encoder.layers.0"]."""
    params: dict[str, Any] = field(default_factory=dict)
    """All other keys: the student's own parameters."""

    def __post_init__(self) -> None:
        for name in self.inputs:
            if self.inputs.count(name) != 1:
                raise ConfigError(f"inputs names {name!r} twice")
        if self.classes < 0:
            raise ConfigError(f"classes must not be negative, is {self.classes}")
        for side in self.size:
            if not 1 <= side <= MAX_SIDE:
                raise ConfigError(f"size must be of sides from 1 to {MAX_SIDE}, has {side}")
        for deviation in self.std:
            if not deviation > 0:
                raise ConfigError(f"std must be positive, has {deviation}")

    def placed(self) -> StudentSettings:
        """Return the same with the path of its first weights as an absolute one."""
        if self.weights is None:
            return self
        return replace(self, weights=replace(self.weights, path=str(Path(self.weights.path).absolute())))

    def pinned(self, sha256: str) -> StudentSettings:
        """Return the same, to begin with first weights of this SHA-256 alone."""
        if self.weights is None:
            return self
        return replace(self, weights=replace(self.weights, sha256=sha256))
