"""A stream, or what was captured of it, as batches for a loop of one's own: an iterable dataset as PyTorch has them.

It is what a run trains on, row by row and bit by bit, without any training in it. Letters: B rows that this process
gets of a batch, C classes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from schemas.errors import CheckpointError, ConfigError, StreamChanged
from student_trainer.batches import Batch, Share
from student_trainer.checkpoint import another_stream
from student_trainer.learning.partner_labels import PartnerTarget
from student_trainer.learning.targets import Target
from student_trainer.own_loop.walk import Walk
from student_trainer.run.edits import flat
from student_trainer.sources.base import Cursor
from student_trainer.sources.stream_settings import StreamSettings
from student_trainer.sources.teachers import TeachersSource
from student_trainer.supply import supply

if TYPE_CHECKING:
    from student_trainer.reporter import RunReporter

_WORKERS = (
    "labelled batches come from threads of their own, and each worker process of a DataLoader would read them all "
    "again: iterate over them directly, or with num_workers=0, batch_size=None"
)


@dataclass(frozen=True, slots=True, eq=False)
class Halves:
    """The labels of B rows each of which shows two samples, share * one + (1 - share) * other.

    A row's hard loss is share * loss(own) + (1 - share) * loss(partner), each 0 where there is no label.
    """

    own: Tensor
    """[B] int64, of `sample_ids`; -1 as in `labels`."""
    partner: Tensor
    """[B] int64, of the samples that they are mixed with."""
    share: Tensor
    """[B] float32 in [0, 1], of the own."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledBatch:
    """B rows to train on, on the batches' device."""

    sample_ids: Tensor
    """[B] int64."""
    inputs: dict[str, Tensor]
    """Field of the dataset -> [B, ...] as its view gives it."""
    labels: Tensor
    """[B] int64 true labels; -1 = no label, or outside the label budget, or the view mixes two classes (`halves`)."""
    targets: dict[str, dict[str, Target]]
    """Teacher -> output ("logits") -> its soft targets of B rows, in float32, as the losses take them.

    Of codecs that keep all classes, `.logits` is [B, C]; of topk, `.indices` and `.log_probs` are [B, k]; of
    sampled, `.draws` is [B, N]. One of positions is a `PositionTarget`."""
    weights: Tensor
    """[B] float32, each row's factor on its losses: 0 where the sample cannot be decoded, else 1."""
    halves: Halves | None = None
    """The labels of a view that mixes each sample with another; None: it does not."""

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> LabelledBatch:
        """Bring a batch to a device, and its soft targets to float32."""
        batch = batch.to(device)
        targets: dict[str, dict[str, Target]] = {}
        labels, halves = batch.labels, None
        for name, target in batch.targets.items():
            if isinstance(target, PartnerTarget):
                halves = Halves(labels, target.labels, target.share)
                labels = torch.where(labels == target.labels, labels, -1)
                continue
            teacher, _, output = name.partition(".")
            targets.setdefault(teacher, {})[output] = target.widened()
        weights = torch.ones(len(batch.labels), device=device) if batch.weights is None else batch.weights
        ids = batch.sample_ids.to(device, non_blocking=True)
        return cls(ids, batch.inputs, labels, targets, weights, halves)


class LabelledBatches(IterableDataset[LabelledBatch]):
    """The batches of a stream; made by `labelled_batches`.

    Each iteration begins at the first row, or where `load_state_dict` said; a new one ends the one before. Whatever
    ends it (its end, `break`, an exception, Ctrl-C, that nobody holds it any more) ends its threads, too.
    """

    def __init__(
        self,
        open_source: Callable[[], TeachersSource],
        report: Callable[[TeachersSource], RunReporter] | None,
        settings: StreamSettings,
        batch_size: int,
        size: tuple[int, ...],
        depth: int,
        device: torch.device,
        share: Share,
    ) -> None:
        """With `report`, which gives what is told where each iteration stands; None: nobody is."""
        self.device = device
        """Where the tensors are."""
        self.batch_size = batch_size
        """Rows of a batch, of all processes together."""
        self._open, self._report, self._size, self._depth = open_source, report, size, depth
        self._share = share
        share.rows(batch_size)
        if batch_size % share.world:  # equal parts, so that the mean of the processes' means is the batch's
            raise ConfigError(
                f"batch_size {batch_size} is of all {share.world} processes together, and does not divide among them"
            )
        source = open_source()
        self._source: TeachersSource | None = source
        self._is: dict[str, Any] = {
            "batch_size": batch_size,
            "size": list(size),
            "labelled": settings.labelled,
            "label_seed": settings.label_seed,
            "source": source.describe(),
        }
        self.classes: dict[str, dict[str, tuple[int, ...]]] = {}
        """Teacher -> output -> the dataset's classes that its soft targets are of, rising; of class maps alone."""
        for name, spec in source.targets.items():
            teacher, _, output = name.partition(".")
            if spec.classes:
                self.classes.setdefault(teacher, {})[output] = spec.classes
        rows = source.sequence.num_samples * source.sequence.epochs * settings.passes
        self._length = rows // batch_size
        if not self._length:
            raise ConfigError(f"batch_size {batch_size} is more than the {rows} rows of the stream")
        self._start = self._cursor = Cursor.start()
        self._walk: weakref.ref[Walk[LabelledBatch]] | None = None

    def __len__(self) -> int:
        """Batches from the first row to the last; fewer come where a teacher could not label a sample."""
        return self._length

    def __iter__(self) -> Walk[LabelledBatch]:
        """Begin to read. Raises ConfigError in a worker process of a DataLoader, and whatever the stream raises."""
        if get_worker_info() is not None:
            raise ConfigError(_WORKERS)
        if self._walk is not None and (before := self._walk()) is not None:
            before.close()
        self._cursor, self._start = self._start, Cursor.start()
        source, self._source = self._source or self._opened_again(), None
        reporter = self._report(source) if self._report is not None and self._share.rank == 0 else None
        pin = self.device.type == "cuda"
        ready = supply(source, self._cursor, self.batch_size, self._size, self._depth, pin, self._share)
        walk = Walk(ready, reporter, self._cursor, self._hand_out)
        self._walk = weakref.ref(walk)
        return walk

    def state_dict(self) -> dict[str, Any]:
        """Return where the next iteration goes on if this is loaded: behind the batch that was handed out last.

        Plain values, for JSON or `torch.save`; equal on all ranks that have taken as many batches.
        """
        return {**self._is, "cursor": self._cursor.as_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on at a state, on as many processes as there are now.

        Raises:
            CheckpointError: it is of another stream, other teachers, another batch size, size or label budget.
        """
        try:
            cursor = Cursor.from_dict(state["cursor"])
            saved = {name: state[name] for name in self._is}
            another = another_stream(saved["source"], self._is["source"])
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CheckpointError("no state of labelled batches: load what their state_dict() returned") from None
        if another:
            raise CheckpointError(f"the state is of {another}: begin anew")
        was, now = flat(saved), flat(self._is)
        unlike = [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
        if unlike:
            differences = (f"{key} was {was.get(key)!r}, is {now.get(key)!r}" for key in unlike)
            raise CheckpointError(f"the state is of other labelled batches: {'; '.join(differences)}")
        self._start = self._cursor = cursor

    def __getstate__(self) -> dict[str, Any]:
        raise ConfigError(_WORKERS)  # a worker process that is spawned gets a copy

    def _opened_again(self) -> TeachersSource:
        source = self._open()
        if source.describe() != self._is["source"]:
            stream = source.manifest.stream
            raise StreamChanged(f"stream {stream!r} is another one by now: call labelled_batches again")
        return source

    def _hand_out(self, batch: Batch, cursor: Cursor) -> LabelledBatch:
        handed_out = LabelledBatch.of(batch, self.device)
        self._cursor = cursor
        return handed_out
