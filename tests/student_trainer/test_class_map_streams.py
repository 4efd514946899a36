"""Streams whose teachers have class maps and multilabel outputs: what a student of them is, and what a loop gets."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from own_loops import CLASSES, URI, opened
from reader_logs import Logs, label
from torch import nn
from train_runs import digits_run
from train_runs import run as train_run

from pipeline.create import StreamOptions, add_teacher, create_stream
from pipeline.datasets import open_dataset
from pipeline.kafka.clients import new_admin, new_producer
from pipeline.kafka.settings import KafkaSettings
from pipeline.onnx_runtime import open_session
from pipeline.streams import delete_stream, open_stream
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError, ManifestMismatch, StreamConflict
from schemas.records import Output, Teacher, TeacherInput, TeacherOutput
from student_trainer.export import export_student
from student_trainer.learning.mean_losses import binary_kl, forward_kl
from student_trainer.run.settings import run_settings
from student_trainer.sources.base import Cursor
from student_trainer.sources.stream import StreamSource
from student_trainer.sources.stream_settings import StreamSettings
from student_trainer.trained import load_student

pytestmark = pytest.mark.kafka

SIX = TeacherOutput.of_classes("y", "logits", 6)
SOME = replace(SIX, class_map=(9, -1, 2, -1, 5, 0))
PERMUTED = replace(TeacherOutput.of_classes("y", "logits", CLASSES), class_map=tuple(range(CLASSES))[::-1])
TAGS = TeacherOutput("tags", "y", "multilabel", (CLASSES,), 0, CLASSES, CodecSpec("float16"))


@pytest.fixture
def make(kafka_settings: KafkaSettings) -> Iterator[Callable[..., Logs]]:
    """A stream of the teachers' outputs."""
    admin, producer = new_admin(kafka_settings), new_producer(kafka_settings)
    made: list[str] = []

    def build(uri: str = URI, /, **teachers: tuple[TeacherOutput, ...]) -> Logs:
        name = f"maps-{secrets.token_hex(4)}"
        made.append(name)
        fetcher = Fetcher(open_dataset(uri), view_spec("signal" if uri == URI else "none", {}))
        stream, _ = create_stream(kafka_settings, name, fetcher, uri, StreamOptions(order_size=18, partitions=2))
        for teacher, outputs in teachers.items():
            inputs = (TeacherInput("x", "signal", "float32", "", 1.0, ()),)
            digest = secrets.token_hex(32)
            record = Teacher(stream.manifest.stream_id, teacher, digest, "m.onnx", inputs, outputs, 18)
            add_teacher(kafka_settings, stream, record)
        return Logs(kafka_settings, open_stream(kafka_settings, name), admin, producer)

    yield build
    producer.close(timeout=5)
    admin.close()
    for name in made:
        delete_stream(kafka_settings, name)


def source(logs: Logs) -> StreamSource:
    return StreamSource(logs.settings, StreamSettings(logs.stream.manifest.stream, tuple(logs.stream.teachers)))


def test_a_student_has_the_classes_of_the_dataset_where_all_teachers_have_maps(make: Callable[..., Logs]) -> None:
    of_maps = source(make(a=(SOME,), b=(PERMUTED, TAGS)))
    assert of_maps.num_classes == CLASSES
    assert of_maps.targets["a.logits"].classes == (0, 2, 5, 9)
    assert source(make(a=(TAGS,))).num_classes == CLASSES


def test_a_class_that_the_stream_does_not_have_is_refused(make: Callable[..., Logs]) -> None:
    beyond = replace(SOME, class_map=(CLASSES, -1, 2, -1, 5, 0))
    with pytest.raises(StreamConflict, match=r"the class map of logits has class 10, stream .* has 10, from 0 on"):
        make(a=(beyond,))


class TwoHeads(nn.Module):
    """[B, L] -> `logits` [B, C], and `tags` [B, 40]."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.logits, self.tags = nn.Linear(inputs, num_classes), nn.Linear(inputs, 40)

    def forward(self, signal: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.logits(signal.flatten(1)), "tags": self.tags(signal.flatten(1))}


def two_heads(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return TwoHeads(prod(input_shape), num_classes)


def test_teachers_of_other_classes_teach_each_a_head_of_one_student(make: Callable[..., Logs], tmp_path: Path) -> None:
    forty = replace(TAGS, shape=(40,), num_classes=40)
    logs = make(a=(TeacherOutput.of_classes("y", "logits", CLASSES),), b=(forty,))
    chance = np.random.default_rng(0)
    for sequence in range(6):
        for name, output, width in (("a", "logits", CLASSES), ("b", "tags", 40)):
            record = label(logs.stream, name, sequence)
            rows = chance.normal(size=(len(record.sample_ids), width)).astype(np.float32)
            stored = Output.of(output, rows, CodecSpec("float16"), classes=name == "a")
            logs.write(name, replace(record, outputs=(stored,)))
    stream = logs.stream.manifest.stream
    heads = [{"name": "forward_kl", "against": "a.logits"}, {"name": "binary_kl", "on": "tags", "against": "b.tags"}]
    document = digits_run().as_dict() | {
        "source": "stream",
        "data": {"stream": stream},
        "teachers": [{"name": "a"}, {"name": "b"}],
        "student": {"name": f"{__name__}:two_heads"},
        "losses": heads,
        "train": {"batch_size": 18},
    }
    settings = run_settings(document)
    both = StreamSource(logs.settings, StreamSettings.of(settings))
    assert both.num_classes == CLASSES
    assert train_run(tmp_path / "r", settings, both).finished
    (batch, *_) = opened(logs, batch_size=18)
    assert (batch.targets["a"]["logits"].shape, batch.targets["b"]["tags"].shape) == ((18, CLASSES), (18, 40))

    one_head = [heads[0], {"name": "binary_kl", "against": "b.tags"}]
    settings = run_settings(document | {"losses": one_head})
    with pytest.raises(ConfigError, match=r"binary_kl: .* rows of \[N, 10\], against b.tags of \[N, 40\]"):
        train_run(tmp_path / "one", settings, StreamSource(logs.settings, StreamSettings.of(settings)))


@pytest.mark.parametrize("projected", [("attention@1", None), ("mean@1", None), ("", (3, -1, 1))], ids=str)
def test_a_file_has_projections_of_what_they_were_trained_on(
    make: Callable[..., Logs], projected: tuple[str, tuple[int, ...] | None], tmp_path: Path
) -> None:
    reduction, class_map = projected
    float16 = CodecSpec("float16")
    taught = TeacherOutput("taught", "t", "features", (4, 3), None, 0, float16, reduction=reduction)
    if class_map:
        taught = TeacherOutput("taught", "t", "multilabel", (3,), 0, 3, float16, class_map=class_map)
    logs = make(a=(taught,))
    for sequence in range(6):
        record = label(logs.stream, "a", sequence)
        rows = np.ones((len(record.sample_ids), *taught.stored_shape), np.float32)
        logs.write("a", replace(record, outputs=(Output.of("taught", rows, float16, classes=False),)))
    loss = {"name": "mse", "against": "taught", "projection": "linear", "on": "logits" if class_map else "tokens"}
    settings = run_settings(
        digits_run().as_dict()
        | {"source": "stream", "data": {"stream": logs.stream.manifest.stream}, "teachers": [{"name": "a"}]}
        | {"student": {"name": "support.students:encoder"}, "losses": [loss], "train": {"batch_size": 18}}
    )
    train_run(tmp_path / "r", settings, StreamSource(logs.settings, StreamSettings.of(settings)))
    trained, path = load_student(tmp_path / "r"), tmp_path / "student.onnx"
    samples = np.random.default_rng(0).normal(size=(5, *trained.network.inputs[0].shape)).astype(np.float32)
    inputs = {trained.network.fields[0]: samples}
    export_student(trained.model, inputs, path, projections=trained.projections)
    (found,) = open_session(path).run(["mse"], inputs)
    with torch.no_grad():
        given = trained.model(torch.tensor(samples))
        tokens = given["tokens"]
        before = given["logits"][:, [1, 3]] if class_map else tokens.mean(1) if "mean" in reduction else tokens**2
        before = before.mean(1) if reduction == "attention@1" else before
        expected = trained.projections["mse"].layer(before)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)

    twice = {"mse": replace(trained.projections["mse"], aligned=2 * trained.projections["mse"].aligned)}
    with pytest.raises(ConfigError, match="not written: what the projection 'mse' is of is reduced, or has"):
        export_student(trained.model, inputs, path, projections=twice)


def test_hard_labels_beside_features_have_the_classes_that_the_student_is_said_to_have(
    make: Callable[..., Logs], tmp_path: Path
) -> None:
    hidden = TeacherOutput("hidden", "h", "features", (4, 6), None, 0, CodecSpec("float16"))
    logs = make("support.user_data:unsaid", a=(hidden,))
    for sequence in range(6):
        record = label(logs.stream, "a", sequence)
        rows = np.ones((len(record.sample_ids), 4, 6), np.float32)
        logs.write("a", replace(record, outputs=(Output.of("hidden", rows, CodecSpec("float16"), classes=False),)))
    mse = {"name": "mse", "on": "tokens", "against": "hidden"}

    def trained(name: str, **student: int) -> bool:
        settings = run_settings(
            digits_run().as_dict()
            | {"source": "stream", "data": {"stream": logs.stream.manifest.stream}, "teachers": [{"name": "a"}]}
            | {"student": {"name": "support.students:encoder", **student}, "train": {"batch_size": 18}}
            | {"losses": [mse, {"name": "cross_entropy"}]}
        )
        return train_run(tmp_path / name, settings, StreamSource(logs.settings, StreamSettings.of(settings))).finished

    assert trained("three", classes=3)
    with pytest.raises(ConfigError, match=r"say it by \[student\] classes"):
        trained("unsaid")
    with pytest.raises(ConfigError, match="has label 2, but there are 2 classes, from 0 on"):
        trained("two", classes=2)


def test_a_loop_of_ones_own_is_told_the_classes_of_a_specialist(make: Callable[..., Logs]) -> None:
    logs = make(a=(SOME, TAGS))
    chance = np.random.default_rng(0)
    some = chance.normal(size=(18, 4)).astype(np.float32)
    tags = chance.normal(size=(18, CLASSES)).astype(np.float32)
    outputs = (
        Output.of("logits", some, CodecSpec("float16")),
        Output.of("tags", tags, CodecSpec("float16"), classes=False),
    )
    logs.write("a", replace(label(logs.stream, "a", 0), outputs=outputs))
    labels = opened(logs, batch_size=18)
    assert labels.classes == {"a": {"logits": (0, 2, 5, 9)}}
    batch = next(iter(labels))
    student = torch.randn(18, CLASSES, generator=torch.Generator().manual_seed(0))
    value = forward_kl(student[:, labels.classes["a"]["logits"]], batch.targets["a"]["logits"])
    p, q = (torch.distributions.Categorical(logits=each) for each in (torch.tensor(some), student[:, [0, 2, 5, 9]]))
    torch.testing.assert_close(value, torch.distributions.kl_divergence(p, q).mean(), rtol=1e-2, atol=1e-3)
    ones, others = (torch.distributions.Bernoulli(logits=each) for each in (torch.tensor(tags), student))
    expected = torch.distributions.kl_divergence(ones, others).sum(dim=1).mean()
    torch.testing.assert_close(binary_kl(student, batch.targets["a"]["tags"]), expected, rtol=1e-2, atol=1e-3)
    with pytest.raises(ConfigError, match="multilabel logits"):
        forward_kl(student, batch.targets["a"]["tags"])


def test_a_record_of_other_classes_than_the_map_says_is_not_trained_on(make: Callable[..., Logs]) -> None:
    logs = make(a=(SOME,))
    output = Output.of("logits", np.zeros((18, 6), np.float32), CodecSpec("float16"))
    logs.write("a", replace(label(logs.stream, "a", 0), outputs=(output,)))
    reading = source(logs).orders(Cursor.start())
    with pytest.raises(ManifestMismatch, match=r"logits of 6 classes .* the record of teacher 'a' says logits of 4 cl"):
        next(reading)
    reading.close()
