"""From a run file to a trained student: open the source, train, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pipeline.datasets import open_dataset
from pipeline.views.fetch import Fetched, Fetcher
from schemas.errors import ConfigError
from schemas.records import ViewSpec
from student_trainer.evaluate import evaluation_data, predictor, rows_at_once
from student_trainer.export import export_student, latency, save_weights
from student_trainer.export_metadata import metadata_of
from student_trainer.learning.students import num_parameters
from student_trainer.learning.trainee import weights_sha256
from student_trainer.metrics import Training
from student_trainer.preparation import first_samples, keep_freed_memory
from student_trainer.processes.world import ALONE, World
from student_trainer.records import Progress
from student_trainer.run.folder import RunFolder
from student_trainer.run.peer_settings import FIRST
from student_trainer.run.settings import RunSettings
from student_trainer.run.targets import refuse_targets
from student_trainer.sources.dataset import DatasetSource
from student_trainer.sources.files import FilesSource
from student_trainer.sources.stream_settings import StreamSettings
from student_trainer.sources.teachers import TeachersSource
from student_trainer.train import TrainResult, train
from student_trainer.trained import Trained, load_student

if TYPE_CHECKING:
    from pipeline.kafka.settings import KafkaSettings

_CHECKED = 256
"""samples on which an export is compared with PyTorch; fewer where its outputs are large, two at least"""


def launch(
    settings: RunSettings,
    folder: RunFolder,
    kafka: Callable[[], KafkaSettings],
    progress: Progress | None = None,
    *,
    resume: bool = False,
    say: Callable[[str], object] | None = None,
    training: Training | None = None,
    world: World = ALONE,
) -> TrainResult:
    """Train a run in its locked folder and write its `report.json`.

    Args:
        kafka: asked for the cluster only where the source is a stream.
        progress: is given each line of metrics.
        resume: go on from the newest checkpoint.
        say: is told, in a line, what begins.
        training: is told where the run stands, for others to look at.
        world: the processes that train together; this one is rank 0.

    Raises:
        DistillogError: as `train`, and as the source that the run file names.
    """
    training = training or Training(settings.train.batch_size)
    keep_freed_memory()
    if settings.source == "stream":
        # A run that needs no Kafka does without its client.
        from pipeline.kafka.cluster import KafkaCluster
        from student_trainer.reporter import RunReporter
        from student_trainer.sources.stream import StreamSource

        where = kafka()
        source = StreamSource(where, StreamSettings.of(settings))
        names = [teacher.name for teacher in source.teachers]
        cluster = KafkaCluster(where)
        passes = None if settings.train.steps else settings.train.passes
        with RunReporter(
            cluster,
            source.stream,
            settings.name,
            names,
            lambda: source.starving,
            passes=passes,
            left_out=lambda: source.left_out,
        ) as reporter:
            training.to = reporter
            _say_replay(source, say)
            result = train(settings, folder, source, training, progress, resume, say, world)
        folder.write_report(_report(settings, result) | _labels(source) | {"stream": source.statistics()})
    elif settings.source == "files":
        files = FilesSource(settings.data.files, StreamSettings.of(settings))
        _say_replay(files, say)
        result = train(settings, folder, files, training, progress, resume, say, world)
        folder.write_report(_report(settings, result) | _labels(files) | {"files": files.statistics()})
    else:
        result = train(settings, folder, DatasetSource(settings), training, progress, resume, say, world)
        folder.write_report(_report(settings, result))
    return result


def _say_replay(source: TeachersSource, say: Callable[[str], object] | None) -> None:
    """Say whose labels they are, where they are not the stream's own."""
    if say is not None and source.manifest.replay_of:
        origins = ", a replay of ".join(map(str, source.manifest.replay_of))
        say(f"stream {source.manifest.stream!r} is a replay of {origins}")


def _labels(source: TeachersSource) -> dict[str, Any]:
    origins = source.replay_of()
    return {"replay_of": origins} if origins else {}


def _report(settings: RunSettings, result: TrainResult) -> dict[str, Any]:
    """What a run came to; whatever depends on the clock stands under "timing" alone."""
    return {
        "name": settings.name,
        "finished": result.finished,
        "steps": result.step,
        "parameters": num_parameters(result.model),
        "weights_sha256": result.weights_sha256,
        **({"peers": {name: _peer(model) for name, model in result.peers.items()}} if result.peers else {}),
        "cursor": {key: value for key, value in result.cursor.as_dict().items() if key not in ("place", "too_old")},
        "dropped_rows": result.dropped_rows,
        "undecodable_rows": result.undecodable_rows,
        **({"too_old_rows": result.too_old_rows} if settings.bounds_age else {}),
        **({} if result.generations is None else {"generations": result.generations}),
        **({} if settings.train.ema is None else {"ema": settings.train.ema}),
        "evaluation": result.metrics,
        "timing": {
            "seconds": result.seconds,
            "first_wait_s": result.first_wait_s,
            "longest_wait_s": result.longest_wait_s,
            "waited_s": result.waited_s,
            "views_per_s": result.views_per_s,
        },
    }


def _peer(model: nn.Module) -> dict[str, Any]:
    return {"parameters": num_parameters(model), "weights_sha256": weights_sha256(model)}


def trained_data(
    trained: Trained, dataset: str | None = None, view: ViewSpec | None = None, count: int = _CHECKED
) -> tuple[Fetcher, Fetched]:
    """Data to evaluate or check a student on, and the first `count` samples of it, which are what the student takes.

    It is the dataset asked for, else its [evaluation], else its training data, and is seen under `view` if one is
    given, else as `evaluation_data` says.

    Raises:
        ConfigError: the run file names none, and none is asked for; its samples are of another kind than the student
            takes; or as `evaluation_data`.
        DataUnavailable: it cannot be read now.
    """
    settings = trained.settings
    uri = dataset or settings.evaluation.dataset or settings.data.dataset
    if not uri:
        raise ConfigError(f"run {settings.name!r} has no [evaluation] dataset: give one with --dataset")
    fetcher = (
        Fetcher(open_dataset(uri), view, settings.train.loaders, settings.train.loader_processes)
        if view
        else evaluation_data(settings, trained.view, uri)
    )
    return fetcher, first_samples("dataset", fetcher, trained.network, settings.student.size, count)


def export_run(
    path: Path,
    onnx: Path | None = None,
    dataset: str | None = None,
    view: ViewSpec | None = None,
    *,
    outputs: Sequence[str] = (),
    safetensors: Path | None = None,
    with_projections: bool = False,
    peer: str = "",
    opset: int | None = None,
    batch: int | None = None,
) -> dict[str, Any]:
    """Export a run's newest checkpoint to ONNX and measure the file; see `export_student` and `latency`.

    Args:
        path: the run's folder.
        onnx: where to; None: `student.onnx` in that, or `PEER.onnx`.
        dataset: to compare on; None: the run's own.
        view: how its samples are seen; None: as the run sees them.
        outputs: which of the student's the file has, those of [student] outputs too; (): `logits`, or the only one.
        safetensors: where its weights go, before anything is exported; None: nowhere.
        peer: which of the run's [[peers]]; "": the student of [student].
        with_projections: whether the files have the layers of [[losses]], too; the ONNX file gives an output for each.
        opset: the version of ONNX's operators; None: PyTorch's choice.
        batch: the one batch that the file takes; None: any.

    Raises:
        ConfigError: nothing to check it on, or it differs from PyTorch; no such output; both files at one path.
        CannotWrite: the disk refuses, a path is no file's, or that of a run's own file; nothing was written then.
        CheckpointError: no whole checkpoint.
    """
    onnx = onnx or path / f"{peer or FIRST}.onnx"
    refuse_targets(("ONNX", onnx), *([("safetensors", safetensors)] if safetensors else []))
    trained = load_student(path, peer)
    projections = trained.projections if with_projections else {}
    if with_projections and not projections:
        raise ConfigError(f"{path}: none of its [[losses]] has a projection")
    fetcher, fetched = trained_data(trained, dataset, view)
    if safetensors is not None:
        save_weights(trained.model, projections, safetensors)
    predict = predictor(trained.outputs, trained.network.fields)
    rows = slice(max(2, rows_at_once(predict, fetched.inputs, _CHECKED)))
    inputs = {name: fetched.inputs[name][rows] for name in trained.network.fields}
    exported = export_student(
        trained.model,
        inputs,
        onnx,
        metadata_of(trained.network, fetcher.view),
        outputs=outputs,
        inner=trained.settings.student.outputs,
        projections=projections,
        opset=opset,
        batch=batch,
    )
    return asdict(exported) | asdict(latency(exported.path, inputs, batch=batch)) | {"safetensors": safetensors}
