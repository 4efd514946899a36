"""Weights of a checkpoint, loaded into the student that its settings make, and the hash that they have."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.user_code import said
from schemas.errors import CheckpointError
from student_trainer.learning.students import STUDENTS


def load_weights(model: nn.Module, weights: Mapping[str, Any], name: str, place: Path) -> None:
    """Load a state dict.

    Args:
        model: as it was built; of no use after an error.
        weights: what `state_dict` gave then.
        name: of the student, as its settings say.
        place: the checkpoint.

    Raises:
        CheckpointError: the student is another one than it was; names the first tensor that differs.
    """
    try:
        model.load_state_dict(weights)
    except MemoryError:
        raise
    except Exception as error:  # a student may be of the user's own, with a `load_state_dict` of its own
        raise misfit(name, place, _first_difference(model, weights) or said(error)) from error


def misfit(name: str, place: Path, why: str) -> CheckpointError:
    """Return what to raise where a student, built as the checkpoint's settings say, is not the one that was saved."""
    changed = f"the code of {name} has changed"
    if name in STUDENTS:
        changed = f"another version of Distillog builds {name} otherwise (a default, as of cnn's pool, has changed)"
    return CheckpointError(
        f"{place}: does not fit the student {name} that its settings make now: {why}. Probably {changed}: bring back "
        "the version that it was trained with, or train anew"
    )


def _first_difference(model: nn.Module, weights: Mapping[str, Any]) -> str:
    now = model.state_dict()
    differing = []
    for name in dict.fromkeys([*now, *weights]):
        before, after = _shape(weights, name), _shape(now, name)
        if before != after:
            differing.append(f"{name} was {before}, is {after}")
    more = f" (and {len(differing) - 1} more)" if differing[1:] else ""
    return differing[0] + more if differing else ""


def _shape(tensors: Mapping[str, Any], name: str) -> str:
    if name not in tensors:
        return "not there"
    found = tensors[name]
    return str(tuple(found.shape)) if isinstance(found, Tensor) else type(found).__name__


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the hex SHA-256 over a state dict's names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        # Through bytes, since NumPy knows no bfloat16; a scalar has no bytes to view, so it becomes a row first.
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
