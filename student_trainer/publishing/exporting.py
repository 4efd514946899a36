"""A generation's ONNX file: the student's weights in a second student that nobody trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy

from schemas.records import Teacher
from student_trainer.export import export_student
from student_trainer.learning.student_outputs import ONLY
from student_trainer.learning.students import Network, build_student
from student_trainer.learning.weights import load_weights
from student_trainer.run.settings import RunSettings


class ModelFile(NamedTuple):
    """An ONNX file."""

    content: bytes
    sha256: str


class Exporter:
    """Makes a generation's file.

    The student itself is left alone: it is in training mode, and on the device that it trains on.

    Args:
        settings: of the student that is published.
        network: what it is built for.
        teacher: whose outputs the file has, by their names in ONNX.
        inputs: the fields that it takes, in order: name -> [N, ...] samples, N >= 2, on which the file is compared
            with PyTorch.
        metadata: what the file says of itself.
    """

    def __init__(
        self,
        settings: RunSettings,
        network: Network,
        teacher: Teacher,
        inputs: Mapping[str, NDArray[Any]],
        metadata: Mapping[str, str],
    ) -> None:
        self._student = settings.student
        self._model = build_student(settings.student, network, settings.train.seed)
        names = [each.output for each in teacher.outputs]
        self._outputs = () if names == [ONLY] else tuple(names)  # the only one is that, whatever the student calls it
        self._inputs = inputs
        self._metadata = metadata

    def export(self, weights: Mapping[str, Tensor], place: Path) -> ModelFile:
        """Make the file of a student's state dict; `place` says whose it is where it does not fit.

        Raises:
            ConfigError, CheckpointError: as `export_student` and `load_weights`.
        """
        if not any(is_lazy(each) for each in weights.values()):  # before its first step: of no shape, so of no weights
            load_weights(self._model, weights, self._student.name, place)
        with torch.random.fork_rng(devices=[]), TemporaryDirectory(prefix="distillog-export-") as folder:
            path = Path(folder) / "student.onnx"
            made = export_student(
                self._model, self._inputs, path, self._metadata, outputs=self._outputs, inner=self._student.outputs
            )
            return ModelFile(path.read_bytes(), made.sha256)
