"""What Avro's own resolution cannot do between a schema version and the next, both ways.

A version that only adds fields with defaults needs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_Datum = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lift:
    """The way from one version of a schema to the next, and back."""

    up: Callable[[_Datum], _Datum]
    """A datum of this version -> the same one of the next."""
    down: Callable[[_Datum], _Datum]
    """A datum of a later version -> as much of it as this version can hold."""


def _teacher_1_up(datum: _Datum) -> _Datum:
    """The one output of version 1 is a list of one, of a class axis; its inputs had a scale alone."""
    output = {
        "name": "logits",
        "output": datum["output"],
        "kind": datum["kind"],
        "shape": [datum["num_classes"]],
        "class_axis": 0,
        "num_classes": datum["num_classes"],
        "codec": None,
        "per": "sample",
        "positions": "",
        "class_map": [],
        "reduction": "",
        "cut": "numpy",
        "head_sha256": None,
    }
    inputs = [{**one, "mean": [], "std": [], "channel_order": ""} for one in datum["inputs"]]
    return {**datum, "inputs": inputs, "outputs": [output], "generation": 0}


_TEACHER_1_KINDS = ("logits", "probabilities", "log_probabilities")


def _teacher_1_down(datum: _Datum) -> _Datum:
    first = datum["outputs"][0]
    held = {name: first[name] for name in ("output", "kind", "num_classes")}
    if first["kind"] not in _TEACHER_1_KINDS:
        held["kind"] = "logits"  # the writer sees that the other is lost
    return {**datum, **held}


LIFTS: dict[tuple[str, int], Lift] = {("teacher", 1): Lift(_teacher_1_up, _teacher_1_down)}
"""(schema, version) -> its way to version + 1."""
