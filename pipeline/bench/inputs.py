"""What a model is called on: samples of its own data, or random ones of the shapes that its file declares."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.hashing import hash_int, tag
from pipeline.onnx_runtime import ONNX_DTYPES, open_session
from pipeline.user_files import refuse_irregular
from schemas.errors import ConfigError

MAX_ROWS = 64
"""Different samples; a larger batch has them again and again."""
_SEED = tag("bench")


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a model takes, of which batches of any size are made."""

    arrays: Mapping[str, NDArray[Any]]
    """input -> [n, ...] of those that have the batch, n up to MAX_ROWS; the others as they are"""
    batched: frozenset[str]
    """Those whose first dimension is the batch."""
    only: int | None = None
    """The one batch size that the model takes; None: any."""

    def batch(self, size: int) -> dict[str, NDArray[Any]]:
        """Return inputs of `size` samples; `only` is for the caller to see to."""
        return {
            name: values[np.arange(size) % len(values)] if name in self.batched else values
            for name, values in self.arrays.items()
        }


@dataclass(frozen=True, slots=True)
class Declared:
    """An input as ONNX Runtime tells it."""

    name: str
    type: str
    """Such as `tensor(float)`."""
    shape: tuple[int | str | None, ...]
    """A free dimension is its name, or None."""

    def free(self) -> Iterator[tuple[int, str]]:
        """Axis and name of each free dimension; one without is called `INPUT.AXIS`."""
        for axis, size in enumerate(self.shape):
            if not isinstance(size, int):
                yield axis, size or f"{self.name}.{axis}"


def declared_inputs(path: Path, provider: str) -> list[Declared]:
    """Open a model as it will be run, and return what it takes. Raises ConfigError as `open_session`."""
    refuse_irregular(path)
    taken = open_session(path, provider, threads=1).get_inputs()
    return [Declared(each.name, each.type, tuple(each.shape)) for each in taken]


def sizes_of(texts: Iterable[str]) -> dict[str, int]:
    """Read `NAME=N` of --size. Raises ConfigError."""
    sizes: dict[str, int] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if not name or not re.fullmatch(r"[1-9]\d{0,8}", number):
            raise ConfigError(f"--size {text!r}: write NAME=N, such as sequence=128")
        if sizes.setdefault(name, int(number)) != int(number):
            raise ConfigError(f"--size {name} is given as {sizes[name]} and as {number}: give one of them")
    return sizes


def random_inputs(path: Path, declared: Sequence[Declared], sizes: Mapping[str, int], rows: int) -> Inputs:
    """Return random values of a model's own shapes, the same each time.

    The first dimension of an input, where it is free, is the batch. Floats are in [0, 1), bytes in 0...255, other
    integers 0 or 1, which are in every vocabulary.

    Args:
        path: of the model, for messages.
        declared: its inputs.
        sizes: name of a free dimension -> its size; of names that this model lacks nothing is said.
        rows: different samples; no more than MAX_ROWS are made.

    Raises:
        ConfigError: a free dimension has no size, the batch is given one, or an input is of a type that is not known.
    """
    batches = {name: each.name for each in declared for axis, name in each.free() if axis == 0}
    for name, of in batches.items():
        if name in sizes:
            raise ConfigError(f"{path}: {name!r}, the first dimension of {of!r}, is the batch: use --batch-size")
    for each in declared:
        _refuse_unknown(path, each, batches, sizes)
    batched = frozenset(each.name for each in declared if each.shape and not isinstance(each.shape[0], int))
    arrays = {
        each.name: _random(each, (min(rows, MAX_ROWS), *shape[1:]) if each.name in batched else shape)
        for each in declared
        for shape in [tuple(_size(each, axis, sizes) for axis in range(len(each.shape)))]
    }
    first = next((each for each in declared if each.shape), None)
    only = None if batched else 1 if first is None else int(first.shape[0] or 0)
    return Inputs(arrays, batched, only)


def _refuse_unknown(path: Path, each: Declared, batches: Mapping[str, str], sizes: Mapping[str, int]) -> None:
    if each.type not in ONNX_DTYPES:
        raise ConfigError(f"{path}: input {each.name!r} is a {each.type}, of which no random values are made")
    for axis, name in each.free():
        if axis and name in batches:
            raise ConfigError(
                f"{path}: {name!r} is the batch of input {batches[name]!r} and dimension {axis} of {each.name!r}: such "
                "a model cannot be measured"
            )
        if axis and name not in sizes:
            shape = ", ".join(str(size or "?") for size in each.shape)
            raise ConfigError(f"{path}: input {each.name!r} is [{shape}]: say how large with --size {name}=N")


def _size(each: Declared, axis: int, sizes: Mapping[str, int]) -> int:
    size = each.shape[axis]
    if isinstance(size, int):
        return size
    return sizes[size or f"{each.name}.{axis}"] if axis else 0


def _random(each: Declared, shape: Sequence[int]) -> NDArray[Any]:
    dtype = np.dtype(ONNX_DTYPES[each.type])
    draw = np.random.Generator(np.random.PCG64(hash_int(_SEED, tag(each.name))))
    if dtype.kind == "f":
        return draw.random(math.prod(shape), np.float32).reshape(shape).astype(dtype)
    return draw.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
