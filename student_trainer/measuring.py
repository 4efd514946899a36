"""A run's exported student, with samples to call it on, for those who measure it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.bench.inputs import declared_inputs
from schemas.errors import ConfigError
from schemas.records import ViewSpec
from student_trainer.launch import export_run, trained_data
from student_trainer.trained import load_student


def student_to_measure(
    path: Path, dataset: str | None, view: ViewSpec | None, count: int, say: Callable[[str], object]
) -> tuple[Path, dict[str, NDArray[Any]]]:
    """Return a run's `student.onnx` and the first `count` samples of its data as that takes them, name -> [n, ...].

    The file is taken as it lies there, since further training changes its weights and not its speed; where none does,
    the newest checkpoint is exported first, and `say` is told so. Fewer samples come of a small dataset.

    Raises:
        ConfigError: as `trained_data` and `export_run`, or the file takes what the student does not.
        CheckpointError: no whole checkpoint.
    """
    trained = load_student(path)
    _, fetched = trained_data(trained, dataset, view, count)
    onnx = path / "student.onnx"
    if not onnx.exists():
        say(f"{onnx} is not there yet: exporting the newest checkpoint")
        export_run(path, onnx, dataset, view)
    names = [each.name for each in declared_inputs(onnx, "cpu")]
    if missing := [name for name in names if name not in trained.network.fields]:
        raise ConfigError(f"{onnx}: takes {missing[0]!r}, which the student does not: export it again")
    return onnx, {name: fetched.inputs[name] for name in names}
