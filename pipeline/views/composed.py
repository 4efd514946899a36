"""Views one after the other: "crop_flip+affine" crops, then warps; a parameter names its view, "crop_flip.flip"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pipeline.datasets.base import Arrays, Ints
from pipeline.hashing import hash_int, tag
from pipeline.views.user import BadRows
from schemas.errors import ConfigError

JOINT = "+"
Apply = Callable[[Arrays, Ints, int, dict[str, Any], tuple[int, ...] | None], Arrays]


def stages_of(name: str) -> dict[str, str]:
    """Label -> name of each view, in their order; a user's is labelled as its function. Raises ConfigError."""
    names = name.split(JOINT)
    if len(names) > 1 and "" in names:
        raise ConfigError(f"view {name}: a name is missing beside a {JOINT}")
    stages = {each.rpartition(":")[2]: each for each in names}
    if len(stages) < len(names):
        raise ConfigError(f"view {name}: two of one name; each view is there once")
    return stages


def params_of(label: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """A view's own of all parameters."""
    return {key.removeprefix(f"{label}."): value for key, value in params.items() if key.startswith(f"{label}.")}


def flat(name: str, labels: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as "view.key", of a run file's tables as well. Raises ConfigError for one that names no view."""
    found: dict[str, Any] = {}
    for key, value in params.items():
        found |= {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
    for key in found:
        if key.partition(".")[0] not in labels or "." not in key:
            choices = ", ".join(f"{label}.{key.rpartition('.')[2]}" for label in labels)
            raise ConfigError(f"view {name} has no parameter {key!r}: say whose it is ({choices})")
    return found


def joint_version(name: str, versions: Mapping[str, int]) -> int:
    """One number that changes with each: 2001 of the versions 2 and 1. Raises ConfigError for one above 999."""
    joint = 0
    for label, version in versions.items():
        if not 0 <= version < 1000:
            raise ConfigError(f"view {name}: {label} has version {version}; views in a row have versions up to 999")
        joint = 1000 * joint + version
    return joint


def in_a_row(stages: Mapping[str, tuple[Apply, bool]]) -> Apply:
    """The views (label -> itself, whether it is a user's) as one; the last alone is asked for a size.

    So that a teacher and a student of different sizes see what comes before at one size. A row that a user's view
    refuses comes to no view behind it.
    """
    last = list(stages)[-1]

    def apply(
        samples: Arrays, sample_ids: Ints, view_seed: int, params: dict[str, Any], size: tuple[int, ...] | None
    ) -> Arrays:
        rows, reasons = np.arange(len(sample_ids)), dict[int, str]()
        for label, (stage, is_users) in stages.items():
            if not len(rows):
                break  # nothing is left, and what nothing is of has perhaps not the fields that the next view takes
            # Users' views draw from one generator of the seed and the sample: two of them must not draw the same.
            seed = hash_int(view_seed, tag(label)) >> 1 if is_users else view_seed
            asked = size if label == last else None
            try:
                samples = stage(samples, sample_ids[rows], seed, params_of(label, params), asked)
            except BadRows as bad:
                reasons |= {int(rows[row]): reason for row, reason in bad.reasons.items()}
                samples, rows = bad.inputs, np.delete(rows, list(bad.reasons))
        if reasons:
            raise BadRows(reasons, samples)
        return samples

    return apply
