"""Distillog from Python: labels in a training loop of one's own, and streams as the command line has them.

A façade: each name is found where it is implemented when it is first used, so that this import needs neither PyTorch
nor ONNX Runtime nor Kafka.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from distillog_command import hidden

if _text := hidden():
    raise ImportError(_text)

from schemas import errors
from schemas.errors import DistillogError

if TYPE_CHECKING:
    from pipeline.by_name import create_stream, feed, status
    from student_trainer.learning.mean_losses import (
        attention_transfer,
        binary_kl,
        cosine,
        cross_entropy,
        dist,
        dkd,
        forward_kl,
        jsd,
        logit_mse,
        mse,
        nkd,
        reverse_kl,
        rkd_angle,
        rkd_distance,
        sampled_cross_entropy,
        similarity,
        teacher_argmax,
    )
    from student_trainer.own_loop.iterable import LabelledBatch, LabelledBatches
    from student_trainer.own_loop.labelled_batches import labelled_batches
    from teacher_service.models.adding import add_teacher
    from teacher_service.models.declared import Declared, DeclaredOutput, Scaling

__all__ = [
    "Declared",
    "DeclaredOutput",
    "DistillogError",
    "LabelledBatch",
    "LabelledBatches",
    "Scaling",
    "add_teacher",
    "attention_transfer",
    "binary_kl",
    "cosine",
    "create_stream",
    "cross_entropy",
    "dist",
    "dkd",
    "errors",
    "feed",
    "forward_kl",
    "jsd",
    "labelled_batches",
    "logit_mse",
    "mse",
    "nkd",
    "reverse_kl",
    "rkd_angle",
    "rkd_distance",
    "sampled_cross_entropy",
    "similarity",
    "status",
    "teacher_argmax",
]

_LOSSES = "student_trainer.learning.mean_losses"
_WHERE = {
    "add_teacher": "teacher_service.models.adding",
    "Declared": "teacher_service.models.declared",
    "DeclaredOutput": "teacher_service.models.declared",
    "Scaling": "teacher_service.models.declared",
    "create_stream": "pipeline.by_name",
    "feed": "pipeline.by_name",
    "status": "pipeline.by_name",
    "labelled_batches": "student_trainer.own_loop.labelled_batches",
    "LabelledBatch": "student_trainer.own_loop.iterable",
    "LabelledBatches": "student_trainer.own_loop.iterable",
    "attention_transfer": _LOSSES,
    "binary_kl": _LOSSES,
    "cosine": _LOSSES,
    "cross_entropy": _LOSSES,
    "dist": _LOSSES,
    "dkd": _LOSSES,
    "forward_kl": _LOSSES,
    "jsd": _LOSSES,
    "logit_mse": _LOSSES,
    "mse": _LOSSES,
    "nkd": _LOSSES,
    "reverse_kl": _LOSSES,
    "rkd_angle": _LOSSES,
    "rkd_distance": _LOSSES,
    "sampled_cross_entropy": _LOSSES,
    "similarity": _LOSSES,
    "teacher_argmax": _LOSSES,
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_WHERE[name]), name)
    return found


def __dir__() -> list[str]:
    return __all__
