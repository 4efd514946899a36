"""Open a stream, or captured files, for a training loop of one's own, by plain arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed

from pipeline.captured.urls import is_url
from pipeline.user_code import said
from schemas.errors import ConfigError
from schemas.names import check_name
from student_trainer.batches import Share
from student_trainer.own_loop.iterable import LabelledBatches
from student_trainer.run.settings import DataSettings, StarveSettings, TeacherSettings, TrainSettings
from student_trainer.run.student_settings import StudentSettings
from student_trainer.sources.files import FilesSource
from student_trainer.sources.stream_settings import StreamSettings
from student_trainer.sources.teachers import TeachersSource

if TYPE_CHECKING:
    from student_trainer.reporter import RunReporter


def labelled_batches(
    stream: str | None = None,
    *,
    files: Path | str | None = None,
    teachers: Sequence[str],
    batch_size: int,
    size: Sequence[int] = (),
    dataset: str | None = None,
    passes: int = 1,
    labelled: int | None = None,
    label_seed: int = 0,
    loaders: int = 1,
    loader_processes: bool = False,
    prefetch: int = 8,
    run: str | None = None,
    starve_warning: float = 30.0,
    starve_timeout: float = 600.0,
    device: torch.device | str | None = None,
    rank: int | None = None,
    world: int | None = None,
    bootstrap_servers: str | None = None,
    kafka_config: Path | str | None = None,
) -> LabelledBatches:
    """Open a stream for a training loop: the rows, order and bytes that `distillog runs start` trains on.

    Args:
        stream: its name; with `files` it is held against theirs, and may be left out.
        files: folder of what `distillog capture` stored of it, or the URL of one, to be read instead: without a broker,
            and to the same bits. A state of the one is one of the other.
        teachers: whose soft targets, by their names in the stream; or one of them.
        batch_size: rows of a batch, of all processes together.
        size: the spatial size asked of the view, e.g. (160, 160); (): as the samples come.
        dataset: URI of the same data, if not at the manifest's.
        passes: how many times the stream is gone over.
        labelled: label budget: how many samples show their true label, stratified by class; None: all.
        label_seed: which samples those are.
        loaders: threads that read and view samples; no result depends on it.
        loader_processes: whether these are processes instead, for data and views of your own that threads cannot share.
        prefetch: batches that lie ready.
        run: the name under which rank 0 reports where it stands; None: nobody hears of it.
        starve_warning: seconds without a label until a warning says what is waited for.
        starve_timeout: seconds without a label until Starved is raised.
        device: of the tensors; None: CUDA where there is one, else the CPU.
        rank: which of `world` processes this is, each of which reads the log itself and fetches the views of its own
            part of each batch; None, both: as torch.distributed says where it is initialised, else 0 of 1.
        world: how many processes train together.
        bootstrap_servers: as `--bootstrap-servers`, else as every command finds the cluster.
        kafka_config: as `--kafka-config`.

    Raises:
        ConfigError: an argument out of its range, batches that do not divide among the processes, no such device; or
            neither a stream nor files, or what only a stream has beside files.
        StreamNotFound: no such stream, or no such teacher in it.
        ManifestMismatch: the data or views here are not those of the manifest.
        DataUnavailable, BrokerUnavailable: no answer.
    """
    names = [TeacherSettings(name).name for name in ([teachers] if isinstance(teachers, str) else teachers)]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"teachers must be one or more names, each once, is {teachers!r}")
    train = TrainSettings(
        batch_size=batch_size, passes=passes, loaders=loaders, loader_processes=loader_processes, prefetch=prefetch
    )
    data = DataSettings(labelled=labelled, label_seed=label_seed)
    asked = StreamSettings(
        stream=stream or "",
        teachers=tuple(names),
        passes=train.passes,
        dataset=dataset or "",
        labelled=data.labelled,
        label_seed=data.label_seed,
        loaders=train.loaders,
        loader_processes=train.loader_processes,
        starve=StarveSettings(starve_warning, starve_timeout),
    )
    report = None
    if files is not None:
        if run is not None or bootstrap_servers is not None or kafka_config is not None:
            raise ConfigError(
                "files are read without a broker, so nobody hears of a run: leave out run, bootstrap_servers and "
                "kafka_config"
            )
        folder = files if is_url(files) else Path(files)

        def open_source() -> TeachersSource:
            return FilesSource(folder, asked)
    elif stream is None:
        raise ConfigError("say what to read: the name of a stream, or files=FOLDER")
    else:
        open_source, report = _of_stream(asked, run, bootstrap_servers, kafka_config)
    return LabelledBatches(
        open_source,
        report,
        asked,
        train.batch_size,
        StudentSettings("own", size=tuple(size)).size,
        train.prefetch,
        _device(device),
        _share(rank, world),
    )


def _of_stream(
    asked: StreamSettings, run: str | None, bootstrap_servers: str | None, kafka_config: Path | str | None
) -> tuple[Callable[[], TeachersSource], Callable[[TeachersSource], RunReporter] | None]:
    """Return what opens a stream, and what reports of a run to it."""
    # Files are read without Kafka's client.
    from pipeline.kafka.cluster import KafkaCluster
    from pipeline.kafka.found import find_cluster
    from student_trainer.reporter import RunReporter
    from student_trainer.sources.stream import StreamSource

    kafka = find_cluster(bootstrap_servers, kafka_config)
    if run is None:
        return lambda: StreamSource(kafka, asked), None
    name = check_name("run", run)

    def report(source: TeachersSource) -> RunReporter:
        assert isinstance(source, StreamSource)  # it was opened here
        return RunReporter(KafkaCluster(kafka), source.stream, name, asked.teachers, lambda: source.starving)

    return lambda: StreamSource(kafka, asked), report


def _device(asked: torch.device | str | None) -> torch.device:
    has_cuda = torch.cuda.is_available()
    try:
        device = torch.device(asked if asked is not None else "cuda" if has_cuda else "cpu")
    except RuntimeError as error:
        raise ConfigError(f"device {asked!r}: {said(error)}") from None
    if device.type == "cuda" and not has_cuda:
        raise ConfigError("device: PyTorch finds no CUDA device; leave it out, or give cpu")
    return device


def _share(rank: int | None, world: int | None) -> Share:
    if (rank is None) != (world is None):
        raise ConfigError("rank and world: give both of them, or none")
    if rank is not None and world is not None:
        return Share(rank, world)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Share(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return Share()
