"""source = "dataset": the same sequence as a stream's, without any teacher.

This is how a teacher is trained, how the hard-label baseline is, and the in-memory loop that benchmarks compare with.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from pipeline.datasets import open_dataset
from pipeline.datasets.fingerprint import fingerprint
from pipeline.sequence import Sequence
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.errors import ConfigError
from schemas.head import Head
from student_trainer.learning.losses import need_labels
from student_trainer.learning.targets import TargetSpec
from student_trainer.run.settings import RunSettings
from student_trainer.sources.base import Cursor, LabelledOrder
from student_trainer.sources.hard_labels import HardLabels, labelled_ids


class DatasetSource:
    """An `OrderSource` over a dataset alone.

    Raises:
        ConfigError: a dataset, view or label budget that does not fit, or a dataset without classes.
    """

    targets: Mapping[str, TargetSpec] = MappingProxyType({})
    heads: Mapping[str, Head] = MappingProxyType({})
    too_old = 0

    def __init__(self, settings: RunSettings) -> None:
        data = settings.data
        dataset = open_dataset(data.dataset)
        of_samples = need_labels(settings) or data.only_labelled
        if of_samples and not dataset.num_classes:
            raise ConfigError(
                f"[data] dataset {data.dataset} has no labels, or does not say how many classes (num_classes); without "
                "a teacher there is nothing to learn"
            )
        self.num_classes = self.label_classes = dataset.num_classes
        self._passes = settings.train.passes
        self._labels = HardLabels.of(dataset, data.labelled, data.label_seed)
        self.has_labels = of_samples
        if of_samples and not self._labels.any:
            raise ConfigError('[data] no sample shows a label; source = "dataset" learns from nothing else')
        self._only_labelled = data.only_labelled
        # Indices of the sequence are positions in here: with only_labelled it runs over the labelled samples.
        self._ids = ids = labelled_ids(dataset, self._labels) if data.only_labelled else None
        view, train = view_spec(data.view.name, data.view.params), settings.train
        self.fetcher = Fetcher(dataset, view, train.loaders, train.loader_processes, partners=ids)
        num_samples = dataset.num_samples if self._ids is None else len(self._ids)
        needed = -(-settings.train.steps * settings.train.batch_size // num_samples)
        epochs = data.epochs or -(-needed // self._passes)
        self.sequence = Sequence(num_samples, data.order_size, epochs, data.seed, partitions=1)
        self._closed = threading.Event()

    def records(self) -> tuple[bytes, ...]:
        """Return none: its settings say what it reads."""
        return ()

    @property
    def labelled_fraction(self) -> float:
        """Samples that show a label / all samples of the sequence."""
        return 1.0 if self._only_labelled else self._labels.fraction

    def orders(self, cursor: Cursor) -> Generator[LabelledOrder]:
        """Yield every order from the cursor's on, pass after pass."""
        sequence = self.sequence
        first = cursor.sequence
        for pass_number in range(cursor.pass_number, self._passes):
            for number in range(first, sequence.num_orders):
                if self._closed.is_set():
                    return
                sample_ids = sequence.sample_ids(number)
                if self._ids is not None:
                    sample_ids = self._ids[sample_ids]
                view_seed = sequence.view_seed(sequence.epoch_of(number))
                labels = self._labels.read(sample_ids, self._closed)
                partners = self._labels.of_partners(self.fetcher, sample_ids, view_seed, self._closed)
                yield LabelledOrder(pass_number, number, view_seed, sample_ids, labels, partners)
            first = 0

    def describe(self, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the dataset's fingerprint, by the algorithm of `like`'s, and what was made of it.

        Raises DataUnavailable when the data cannot be read now, ManifestMismatch for an algorithm of a newer Distillog.
        """
        dataset, pinned = self.fetcher.dataset, None if like is None else like.get("fingerprint")
        return {
            "fingerprint": fingerprint(dataset, like=pinned) if isinstance(pinned, str) else fingerprint(dataset),
            "view": asdict(self.fetcher.view),
            "num_samples": self.sequence.num_samples,
            "num_only_labelled": self.sequence.num_samples if self._only_labelled else 0,
        }

    def close(self) -> None:
        """End `orders` and its wait for storage."""
        self._closed.set()
