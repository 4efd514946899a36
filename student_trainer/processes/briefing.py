"""What rank 0 tells the others of a run before its first step: what is trained on, how long, and with which weights."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.sequence import Sequence
from pipeline.views.check import check_data
from pipeline.views.fetch import Fetcher
from schemas.errors import ManifestMismatch, PeerLost
from schemas.head import Head
from schemas.records import Manifest, Teacher
from student_trainer.learning.students import Network
from student_trainer.learning.targets import TargetSpec, specs_of_all
from student_trainer.processes.frames import know_heads, known, pack, unpack
from student_trainer.processes.world import World
from student_trainer.run.settings import RunSettings
from student_trainer.sources.base import OrderSource
from student_trainer.sources.dataset import DatasetSource

_RECORD = "rank 0's briefing"


@known
@dataclass(frozen=True, slots=True, eq=False)
class Briefing:
    """A run, to a process that reads no labels and has no folder."""

    settings: str
    """`RunSettings.as_dict` as JSON: whatever run file this process was given, all go by rank 0's."""
    records: tuple[Tensor, ...]
    """[n] uint8 each: `OrderSource.records`."""
    heads: tuple[Tensor, ...]
    """[n] uint8 each: the bytes of the last layers that targets are rebuilt by."""
    described: str
    """`OrderSource.describe` as JSON."""
    has_labels: bool
    num_classes: int
    label_classes: int
    labelled_fraction: float
    network: str
    """JSON."""
    total_steps: int
    step: int
    """Steps taken so far."""
    state: Tensor
    """[n] uint8: the trainee's state dicts, as `torch.save` writes them."""


def brief(
    world: World,
    settings: RunSettings,
    source: OrderSource,
    fraction: float,
    network: Network,
    total_steps: int,
    step: int,
    state: dict[str, Any],
) -> None:
    """Tell the others what they need; called by rank 0."""
    if world.size == 1:
        return
    saved = io.BytesIO()
    torch.save(state, saved)
    message = Briefing(
        json.dumps(settings.as_dict()),
        tuple(map(_tensor, source.records())),
        tuple(_tensor(head.encode()) for head in source.heads.values()),
        json.dumps(source.describe()),
        source.has_labels,
        source.num_classes,
        source.label_classes,
        fraction,
        json.dumps(network.as_dict()),
        total_steps,
        step,
        _tensor(saved.getvalue()),
    )
    world.tell(pack(message).numpy().tobytes())


def briefed(world: World) -> Briefing:
    """Return what rank 0 tells; called by all others.

    Raises:
        PeerLost: it cannot start the run.
    """
    message = world.tell()
    if not message:
        raise PeerLost("rank 0 cannot start the run; its own last words say why")
    briefing = unpack(_tensor(message))
    assert isinstance(briefing, Briefing)
    return briefing


def state_of(briefing: Briefing) -> dict[str, Any]:
    """Return the trainee's state dicts."""
    state: dict[str, Any] = torch.load(
        io.BytesIO(briefing.state.numpy().tobytes()), map_location="cpu", weights_only=True
    )
    return state


class Told:
    """What is `Known` of a run's orders, by what rank 0 told and by what the data here are."""

    sequence: Sequence
    fetcher: Fetcher
    targets: Mapping[str, TargetSpec]

    def __init__(self, settings: RunSettings, briefing: Briefing) -> None:
        """Open the dataset. Raises ManifestMismatch, ConfigError and DataUnavailable as the sources do."""
        self._heads = [Head.decode(each.numpy().tobytes(), _RECORD) for each in briefing.heads]
        know_heads(self._heads)
        self.has_labels, self.label_classes = briefing.has_labels, briefing.label_classes
        self.num_classes = briefing.num_classes
        if not briefing.records:
            own = DatasetSource(settings)
            there = json.loads(briefing.described)
            if (here := json.loads(json.dumps(own.describe(there)))) != there:
                other = ", ".join(key for key in sorted(there) if there[key] != here.get(key))
                raise ManifestMismatch(
                    f"dataset {own.fetcher.dataset.uri}: is not the one that rank 0 has (another {other}): every "
                    "process needs the same data"
                )
            self.sequence, self.fetcher, self.targets = own.sequence, own.fetcher, {}
            return
        first, *others = (each.numpy().tobytes() for each in briefing.records)
        manifest = Manifest.decode(first, _RECORD)
        train = settings.train
        self.sequence = Sequence.of(manifest)
        self.fetcher = check_data(manifest, settings.data.dataset or None, train.loaders, train.loader_processes)
        teachers = [Teacher.decode(each, _RECORD) for each in others]
        self.targets = specs_of_all(teachers, manifest.codec)


def _tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
