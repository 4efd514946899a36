"""A run's exported student in int8 or float16, beside the one in float32: how good each is, and what stays in float."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bench.inputs import declared_inputs
from pipeline.whole_files import replace_file
from schemas.errors import ConfigError
from schemas.records import ViewSpec
from student_trainer.evaluate import predictor
from student_trainer.export import fix_batch, latency
from student_trainer.fidelity import Measure, Scores, calibration
from student_trainer.launch import export_run, trained_data
from student_trainer.learning.student_outputs import ONLY, pick
from student_trainer.quantising import Batch, Layer, Quantiser, largest_weight
from student_trainer.run.peer_settings import FIRST
from student_trainer.run.targets import refuse_targets
from student_trainer.scores.by_default import of_features
from student_trainer.trained import load_student

KINDS = {"int8": "int8", "int8_dynamic": "dynamic int8", "fp16": "float16"}
"""What is asked for -> what it is called."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which files are wanted, and how."""

    files: dict[str, Path]
    """A key of KINDS -> where to."""
    samples: int = 512
    """Of calibration, at most."""
    seed: int = 0
    """Which samples these are."""
    max_drop: float = 1.0
    """Points of accuracy that a file may lose; where the data has no labels, or features none, of agreement with
    float32."""
    weight_bits: str = "auto"
    """As `largest_weight` takes it."""
    batch: int | None = None
    """The one batch that the files take."""


@dataclass(frozen=True, slots=True)
class Smaller:
    """A file that was written."""

    kind: str
    path: Path
    sha256: str
    file_bytes: int
    scores: Scores
    drop: float
    """Points lost, negative where it won some."""
    p50_ms: float
    """As `Latency` has it."""
    samples_per_s: float
    layers: int
    """That have fewer bits."""
    in_float: tuple[str, ...]
    """Layers that stayed in float32, the most sensitive first."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self) | asdict(self.scores) | {"path": str(self.path)}


def export_smaller(
    path: Path,
    asked: Asked,
    onnx: Path | None = None,
    dataset: str | None = None,
    view: ViewSpec | None = None,
    calibrate: str | None = None,
    say: Callable[[str], object] = lambda text: None,
    **export: Any,
) -> tuple[dict[str, Any], Scores | None, list[Smaller]]:
    """Export a run's newest checkpoint in float32, as `export_run` does, and what else is asked for of that file.

    Args:
        path: the run's folder.
        asked: which files.
        onnx: where the one in float32 goes, as `export_run` has it.
        dataset: what they are evaluated on; None: the run's own.
        view: how its samples are seen; None: as the run sees them.
        calibrate: the dataset of the calibration's samples; None: the one that the run trains on where its file names
            it, else that of the evaluation.
        say: is told what is tried.
        export: further arguments of `export_run`.

    Returns:
        As `export_run`; of the float32 file, where others are asked for; the others.

    Raises:
        ConfigError: as `export_run` and `make_smaller`; nothing was written then but what `export_run` writes.
        CannotWrite: as `export_run`.
        NotFinite: a file's outputs are not finite.
    """
    peer, safetensors = export.get("peer", ""), export.get("safetensors")
    onnx = onnx or path / f"{peer or FIRST}.onnx"
    refuse_targets(
        ("ONNX", onnx),
        *([("safetensors", safetensors)] if safetensors else []),
        *(("ONNX", each) for each in asked.files.values()),
    )
    exported = export_run(path, onnx, dataset, view, batch=asked.batch, **export)
    if not asked.files:
        return exported, None, []
    trained = load_student(path, peer)
    settings = trained.settings
    with ExitStack() as stack:
        fetcher, _ = trained_data(trained, dataset, view)
        stack.callback(fetcher.close)
        learned, _ = trained_data(trained, calibrate or settings.data.dataset or fetcher.dataset.uri, view)
        stack.callback(learned.close)
        base = onnx
        if asked.batch is not None:  # which is of no use to calibrate and to evaluate
            base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distillog-"))) / onnx.name
            export_run(path, base, dataset, view, **{**export, "safetensors": None})
        fields = [each.name for each in declared_inputs(base, "cpu")]
        batches = calibration(learned, settings.student.size, fields, asked.samples, asked.seed)
        outputs = export.get("outputs") or (ONLY,)
        features = not trained.network.num_classes or of_features(settings, outputs[0])
        measure = Measure(fetcher, settings.student.size, settings.evaluation.batch_size, base, features)
        before, written = make_smaller(base, asked, batches, measure, say)
    return exported, before, written


def make_smaller(
    of_float: Path, asked: Asked, batches: Sequence[Batch], measure: Measure, say: Callable[[str], object]
) -> tuple[Scores, list[Smaller]]:
    """Write the files that are asked for, each once it is good enough.

    Args:
        of_float: the file in float32; its batch is dynamic.
        asked: which.
        batches: samples to calibrate static int8 on.
        measure: what files are held against.
        say: is told what is tried.

    Returns:
        The float32 file's scores, and what was written.

    Raises:
        ConfigError: nothing in it can have fewer bits, or it loses too much.
        NotFinite: a file's outputs are not finite.
        CannotWrite: the disk refuses.
    """
    before, written = measure.scores(of_float), []
    largest = largest_weight(asked.weight_bits)
    with Quantiser(of_float) as quantiser, tempfile.TemporaryDirectory(prefix="distillog-") as folder:
        for key, path in asked.files.items():
            fresh = Path(folder) / path.name
            in_float: tuple[Layer, ...] = ()
            if key == "int8":
                _refuse_none(path, quantiser)
                in_float = _static(path, fresh, quantiser, batches, largest, asked.max_drop, before, measure, say)
            elif key == "int8_dynamic":
                _refuse_dynamic(path, quantiser)
                quantiser.dynamic(fresh, largest)
            else:
                quantiser.halves(fresh)
            scores = measure.scores(fresh)
            drop = scores.drop(before)
            if drop > asked.max_drop:
                raise ConfigError(_too_much(path, KINDS[key], drop, asked.max_drop))
            if asked.batch is not None:
                fix_batch(fresh, asked.batch)
            content = fresh.read_bytes()
            replace_file(path, lambda place, content=content: place.write_bytes(content))  # type: ignore[misc]
            speed = latency(path, batches[0], batch=asked.batch)
            written.append(
                Smaller(
                    KINDS[key],
                    path,
                    hashlib.sha256(content).hexdigest(),
                    len(content),
                    scores,
                    drop,
                    speed.p50_ms,
                    speed.samples_per_s,
                    len(quantiser.layers) - len(in_float),
                    tuple(each.name for each in in_float),
                )
            )
    return before, written


def _static(
    path: Path,
    fresh: Path,
    quantiser: Quantiser,
    batches: Sequence[Batch],
    largest: int,
    max_drop: float,
    before: Scores,
    measure: Measure,
    say: Callable[[str], object],
) -> tuple[Layer, ...]:
    """Write static int8; layers go back to float32, the most sensitive first, until the file is good enough."""
    quantiser.static(fresh, batches, largest)
    drop = measure.scores(fresh).drop(before)
    in_float: tuple[Layer, ...] = ()
    if drop <= max_drop:
        return in_float
    say(f"{path}: int8 loses {drop:.2f} points: measuring how sensitive each of {len(quantiser.layers)} layers is")
    for layer in _most_sensitive(quantiser, batches, largest, fresh):
        in_float += (layer,)
        if len(in_float) == len(quantiser.layers):
            break
        quantiser.static(fresh, batches, largest, [each.node for each in in_float])
        drop = measure.scores(fresh).drop(before)
        say(f"{path}: with {layer.name} in float32, too, it loses {drop:.2f} points")
        if drop <= max_drop:
            return in_float
    raise ConfigError(_too_much(path, "int8 of even one layer", drop, max_drop))


def _most_sensitive(quantiser: Quantiser, batches: Sequence[Batch], largest: int, fresh: Path) -> list[Layer]:
    """Sort layers by how far the outputs are off on the calibration samples when it alone has 8 bits."""
    exact = [pick(predictor(quantiser.path)(batch), "") for batch in batches]
    errors = {}
    for layer in quantiser.layers:
        quantiser.static(fresh, batches, largest, only=layer.node)
        run = predictor(fresh)
        pairs = zip(exact, (pick(run(batch), "") for batch in batches), strict=True)
        errors[layer.node] = sum(float(np.square(_wide(one) - other).sum()) for one, other in pairs)
    return sorted(quantiser.layers, key=lambda each: -errors[each.node])  # stable: equals in the graph's order


def _wide(values: NDArray[Any]) -> NDArray[np.float64]:
    return values.astype(np.float64)


def _refuse_none(path: Path, quantiser: Quantiser) -> None:
    if not quantiser.layers:
        raise ConfigError(
            f"{path}: not written: the student has no convolution and no product with a matrix of weights, which is "
            "what has 8 bits: take --fp16"
        )


def _refuse_dynamic(path: Path, quantiser: Quantiser) -> None:
    _refuse_none(path, quantiser)
    if quantiser.num_convolutions:
        raise ConfigError(
            f"{path}: not written: the student has {quantiser.num_convolutions} convolutions, which dynamic int8 "
            "leaves as they are: take --int8"
        )


def _too_much(path: Path, kind: str, drop: float, max_drop: float) -> str:
    return (
        f"{path}: not written: {kind} loses {drop:.2f} points, more than --max-drop {max_drop:g}: allow more, or "
        "calibrate on more samples"
    )
