"""A small stream with labels written by hand, and what a loop of one's own gets of it, for tests."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from reader_logs import Logs, label
from torch import Tensor

from pipeline.create import StreamOptions, add_teacher, create_stream
from pipeline.datasets import open_dataset
from pipeline.kafka.clients import new_admin, new_producer
from pipeline.kafka.settings import KafkaSettings
from pipeline.sequence import Sequence as Orders
from pipeline.streams import delete_stream, open_stream
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec
from schemas.records import Output, SoftTargets, Teacher, TeacherInput, TeacherOutput
from student_trainer.learning.targets import DenseTarget, TopKTarget
from student_trainer.own_loop.iterable import LabelledBatch, LabelledBatches
from student_trainer.own_loop.labelled_batches import labelled_batches

URI = "mnist1d?split=train&n=100&seed=0"
CLASSES = 10


@contextmanager
def hand_written(
    settings: KafkaSettings, teachers: Sequence[str] = ("cnn",), codec: str = "float16", orders: int | None = None
) -> Iterator[Logs]:
    """A stream of 12 orders, 2 epochs of 100 samples; the labels of the first `orders` (all) lie there."""
    name, admin, producer = f"own-{secrets.token_hex(4)}", new_admin(settings), new_producer(settings)
    fetcher = Fetcher(open_dataset(URI), view_spec("signal", {"noise": 0.1}))
    options = StreamOptions(order_size=18, epochs=2, partitions=2, codec=CodecSpec.parse(codec))
    stream, _ = create_stream(settings, name, fetcher, URI, options)
    for teacher in teachers:
        inputs = (TeacherInput("x", "signal", "float32", "", 1.0, ()),)
        outputs = (TeacherOutput.of_classes("logits", "logits", CLASSES),)
        digest = secrets.token_hex(32)
        add_teacher(
            settings, stream, Teacher(stream.manifest.stream_id, teacher, digest, "m.onnx", inputs, outputs, 18)
        )
    logs = Logs(settings, open_stream(settings, name), admin, producer)
    written = Orders.of(logs.stream.manifest).num_orders if orders is None else orders
    for teacher in teachers:
        logs.write(teacher, *(soft_targets(logs, teacher, sequence) for sequence in range(written)))
    try:
        yield logs
    finally:
        producer.close(timeout=5)
        admin.close()
        delete_stream(settings, name)


def soft_targets(logs: Logs, teacher: str, sequence: int) -> SoftTargets:
    """Logits drawn from a seed; of order 3 only three rows, as if the others could not be decoded."""
    targets = label(logs.stream, teacher, sequence)
    rows = np.array([0, 5, 9]) if sequence == 3 else np.arange(len(targets.sample_ids))
    chance = np.random.default_rng([sequence, len(teacher)])
    logits = chance.normal(size=(len(rows), CLASSES)).astype(np.float32) * 3
    output = Output.of("logits", logits, logs.stream.manifest.codec)
    return replace(targets, kept_rows=rows if sequence == 3 else None, outputs=(output,))


def opened(logs: Logs, **arguments: Any) -> LabelledBatches:
    """`labelled_batches` over a stream, of 16 rows unless they say otherwise, on the CPU."""
    known: dict[str, Any] = {"teachers": list(logs.stream.teachers), "batch_size": 16, "device": "cpu"}
    address = logs.settings.bootstrap_servers
    return labelled_batches(logs.stream.manifest.stream, **known | {"bootstrap_servers": address} | arguments)


def tensors(batch: LabelledBatch) -> dict[str, Tensor]:
    """All that there is in a batch, by name."""
    found = {"sample_ids": batch.sample_ids, "labels": batch.labels, "weights": batch.weights, **batch.inputs}
    for teacher, outputs in batch.targets.items():
        for output, target in outputs.items():
            if isinstance(target, TopKTarget):
                tails = {f"{teacher}.{output}/tail {t}": tail for t, tail in target.log_tails.items()}
                found |= {f"{teacher}.{output}": target.indices, f"{teacher}.{output}/log": target.log_probs, **tails}
            else:
                assert isinstance(target, DenseTarget)
                found[f"{teacher}.{output}"] = target.logits
    return found


def same(some: Iterable[LabelledBatch], others: Iterable[LabelledBatch]) -> bool:
    """Whether two series of batches are equal bit for bit."""
    pairs = [(tensors(a), tensors(b)) for a, b in zip(some, others, strict=True)]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def threads() -> set[threading.Thread]:
    """Those of ours that prepare batches, view samples or report."""
    ours = ("prefetch", "reporter", "views", "lookout")
    return {each for each in threading.enumerate() if each.name.startswith(ours)}
