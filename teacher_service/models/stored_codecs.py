"""One epoch of a dataset as a teacher labels it, each sample once, in several codecs side by side; needs no Kafka."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.datasets import open_dataset
from pipeline.datasets.base import once_readable
from pipeline.sequence import Sequence as OrderSequence
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec
from schemas.errors import BadSamples, ConfigError
from schemas.head import Head
from schemas.records import SoftTargets, Teacher
from teacher_service.models.assess import some_samples
from teacher_service.models.declared import NOTHING, Declared
from teacher_service.models.describe import describe_on
from teacher_service.models.heads import COMPARED_ROWS, with_heads
from teacher_service.models.labels import Asked, label
from teacher_service.models.session import OnnxTeacher

TEACHER = "t"
"""What the teacher is called."""
ORDER_SIZE = 256
MOST_BYTES = 4 << 30
"""Of all labels, which lie in memory."""
_FLOAT = CodecSpec("float32")


@dataclass(frozen=True, slots=True, eq=False)
class StoredEpoch:
    """Labels as workers would have stored them, under one view seed."""

    fetcher: Fetcher
    sequence: OrderSequence
    """Of one epoch."""
    output: str
    """Which of the model's outputs, by the name that was declared."""
    teacher: Teacher
    """With that output once for each codec."""
    outputs: Mapping[str, CodecSpec]
    """Name of an output -> its codec."""
    records: tuple[bytes, ...]
    """Of each order."""
    heads: Mapping[str, Head]
    """SHA-256 of a last layer that is stored once -> itself."""


def store_epoch(
    model: Path,
    dataset: str,
    codecs: Sequence[CodecSpec],
    declared: Declared = NOTHING,
    *,
    view: str = "none",
    view_params: Mapping[str, Any] | None = None,
    num_samples: int,
    seed: int = 0,
    progress: Callable[[int, int], object] = lambda done, num_orders: None,
) -> StoredEpoch:
    """Label samples of a dataset, all of them or a hashed part, by the first output with one row of classes a sample.

    Args:
        model: the ONNX file.
        dataset: URI.
        codecs: each of them holds that output.
        declared: what is said of its inputs and outputs.
        view: as `topics create` has it.
        view_params: its parameters.
        num_samples: at most.
        seed: of the order of samples, and of their views.
        progress: told how many orders are labelled.

    Raises:
        ConfigError: no such output, or labels that do not fit into memory.
        TeacherRejected: the file cannot serve.
        BadSamples, DataUnavailable: the dataset cannot be decoded, or not read.
    """
    fetcher = Fetcher(open_dataset(dataset), view_spec(view, view_params or {}))
    with once_readable(fetcher.dataset.uri):
        ids = some_samples(fetcher.dataset, min(num_samples, fetcher.dataset.num_samples))
        sequence = OrderSequence(len(ids), min(ORDER_SIZE, len(ids)), 1, seed, partitions=1)
        view_seed = sequence.view_seed(0)
        described = describe_on(model, TEACHER, fetcher, ids, view_seed, ORDER_SIZE, "0" * 16, declared)
        one = described.class_output
        if one is None:
            raise ConfigError(f"{model}: no output gives a sample one row of classes, of which a student could learn")
        outputs = {f"codec{number}": spec for number, spec in enumerate(codecs)}
        teacher = replace(
            described, outputs=tuple(replace(one, name=name, codec=spec) for name, spec in outputs.items())
        )
        if any(spec.of_hidden for spec in codecs):
            whole = OnnxTeacher(model, described)
            few = fetcher.fetch(ids[:COMPARED_ROWS], view_seed, whole.size).inputs
            teacher = with_heads(model, teacher, few, whole.answers(few))
        opened = OnnxTeacher(model, teacher)
        records: list[bytes] = []
        num_kept = num_bytes = 0
        for number in range(sequence.num_orders):
            sample_ids = ids[sequence.sample_ids(number)]
            fetched = fetcher.fetch(sample_ids, view_seed, opened.size)
            labels = label(opened, fetched, _FLOAT, Asked(sample_ids, view_seed))
            record = SoftTargets(
                "0" * 16, number, 0, sample_ids, view_seed, labels.kept, TEACHER, teacher.sha256, labels.outputs
            )
            records.append(record.encode())
            num_kept += record.num_kept
            num_bytes += len(records[-1])
            if num_bytes > MOST_BYTES:
                raise ConfigError(
                    f"the labels of {num_kept} samples take more than {MOST_BYTES >> 30} GiB: say --train-samples, or "
                    "name fewer codecs"
                )
            progress(number + 1, sequence.num_orders)
    if not num_kept:
        raise BadSamples(f"dataset {dataset}: no sample of it could be labelled")
    heads = {head.sha256: head for head in opened.heads.values()}
    return StoredEpoch(fetcher, sequence, one.name, teacher, outputs, tuple(records), heads)
