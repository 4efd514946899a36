"""The manifest of a stream: what it is, written once. Its topic holds the teachers' records too (teacher.py).

Letters: K probed samples, Q probed positions of each view.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from schemas.avro import REGISTRY, Datum
from schemas.codecs import CodecSpec
from schemas.columns import IntArray, pack, pack_ids, unpack, unpack_ids
from schemas.errors import EncodeError
from schemas.names import check_name

Param = float | int | str | bool


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """Which view, with its parameters."""

    name: str
    params: dict[str, Param]
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A few views as the stream's creator computed them, for every other machine to compare with."""

    sample_ids: IntArray
    """[K] int64"""
    view_seeds: IntArray
    """[K] int64"""
    draws: str
    """SHA-256 in hex of the random draws; compared exactly."""
    positions: IntArray
    """[K, Q] int64, flat indices into each view."""
    pixels: npt.NDArray[np.float32]
    """[K, Q] float32, the values there; compared to 1e-5."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A stream that labels were copied from."""

    stream: str
    stream_id: str
    manifest_sha256: str
    """Of its manifest's record."""

    def __str__(self) -> str:
        return f"{self.stream} ({self.stream_id})"


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """What a stream is; written once."""

    stream: str
    stream_id: str
    """Random, so that a stream made again under the same name inherits nothing."""
    dataset: str
    """URI."""
    dataset_fingerprint: str
    num_samples: int
    num_classes: int
    """0 = unknown."""
    class_names: tuple[str, ...]
    """One for each class, or ()."""
    view: ViewSpec
    view_probe: Probe
    order_size: int
    """Samples in an order; the last of an epoch may hold fewer."""
    epochs: int
    seed: int
    partitions: int
    codec: CodecSpec
    max_record_bytes: int
    schema_fingerprints: dict[str, str]
    """Schema name -> fingerprint in hex of the version that the stream's writers use."""
    replay_of: tuple[Origin, ...] = ()
    """The stream whose labels this one repeats, then the one that that one repeats, and so on; (): they are its own."""

    def encode(self) -> bytes:
        """Return the record's bytes in the version that it pins itself; EncodeError where a value does not fit."""
        if problem := self._problem():
            raise EncodeError(problem)
        datum = {name: getattr(self, name) for name in self.__slots__}
        datum["view"] = {"name": self.view.name, "params": _params_text(self.view), "version": self.view.version}
        datum["view_probe"] = {
            "sample_ids": pack_ids("sample_ids", self.view_probe.sample_ids),
            "view_seeds": pack_ids("view_seeds", self.view_probe.view_seeds),
            "draws": self.view_probe.draws,
            "positions": pack("positions", self.view_probe.positions),
            "pixels": pack("pixels", self.view_probe.pixels),
        }
        datum["codec"] = {"name": self.codec.name, "k": self.codec.k, "temperatures": self.codec.temperatures}
        datum["schema_fingerprints"] = dict(sorted(self.schema_fingerprints.items()))
        datum["replay_of"] = list(map(asdict, self.replay_of))
        return REGISTRY.encode("manifest", datum, self.schema_fingerprints)

    @classmethod
    def decode(cls, raw: bytes, address: str) -> Self:
        """Return the manifest; anything else raises DecodeError with `address`."""
        return REGISTRY.decode_as("manifest", cls._of, raw, address)

    @classmethod
    def _of(cls, datum: Datum) -> Self:
        view, probe, codec = datum["view"], datum["view_probe"], datum["codec"]
        parts: dict[str, Any] = {
            "class_names": tuple(datum["class_names"]),
            "view": ViewSpec(view["name"], json.loads(view["params"]), view["version"]),
            "view_probe": Probe(
                unpack_ids("sample_ids", probe["sample_ids"]),
                unpack_ids("view_seeds", probe["view_seeds"]),
                probe["draws"],
                unpack(probe["positions"]),
                unpack(probe["pixels"]),
            ),
            "codec": CodecSpec(codec["name"], codec["k"], tuple(codec["temperatures"])),
            "replay_of": tuple(Origin(**origin) for origin in datum["replay_of"]),
        }
        manifest = cls(**{**datum, **parts})
        if problem := manifest._problem():
            raise ValueError(problem)
        return manifest

    def _problem(self) -> str:
        check_name("stream", self.stream)
        numbers = (self.num_samples, self.order_size, self.epochs, self.partitions, self.max_record_bytes)
        if min(numbers) < 1 or self.num_classes < 0:
            return "samples, order size, epochs, partitions and record size must be at least 1, classes at least 0"
        if self.class_names and len(self.class_names) != self.num_classes:
            return f"{len(self.class_names)} class names for {self.num_classes} classes"
        params = self.view.params
        if not isinstance(params, dict) or not all(isinstance(key, str) and _is_param(params[key]) for key in params):
            return f"view {self.view.name!r} has a parameter that is no finite number, text, true or false"
        probe = self.view_probe
        if probe.positions.dtype != np.int64 or probe.pixels.dtype != np.float32:
            return f"the probe has {probe.positions.dtype} positions and {probe.pixels.dtype} pixels"
        if probe.positions.ndim != 2 or probe.positions.shape != probe.pixels.shape:
            return f"the probe has positions {probe.positions.shape} and pixels {probe.pixels.shape}"
        if not len(probe.sample_ids) == len(probe.view_seeds) == len(probe.positions):
            return "the probe has unequal numbers of samples, seeds and positions"
        return ""


def _params_text(view: ViewSpec) -> str:
    return json.dumps(view.params, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _is_param(value: object) -> bool:
    return isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value))
