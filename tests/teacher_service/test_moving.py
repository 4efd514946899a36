"""A worker's teacher through its generations: which are taken up, and which are left where they are."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.models import classifier
from support.moving import moving_stream, student_model
from support.streams import fetcher

from pipeline.generations import claim_teacher, publish_generation
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.sequence import Sequence
from pipeline.streams import Stream, open_stream
from schemas.records import Generation, Publisher
from teacher_service import moving as moving_module
from teacher_service.models.session import OnnxTeacher
from teacher_service.moving import Moving

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

EVERY = 10


@dataclass
class Labelling:
    """Whoever labels."""

    model: OnnxTeacher


class Moved:
    """A stream whose teacher "t" a run publishes for, written by hand."""

    def __init__(self, settings: KafkaSettings, stream: Stream, model: Path) -> None:
        self.settings, self.stream, self.model = settings, stream, model
        claim_teacher(settings, stream, Publisher(stream.manifest.stream_id, "t", "r", "id", EVERY))

    def publish(self, number: int, content: bytes, place: Path) -> None:
        """Write a record of `content`, whatever lies at its place."""
        sha256 = hashlib.sha256(content).hexdigest()
        record = Generation(
            self.stream.manifest.stream_id, "t", number, sha256, sha256, str(place), "id", number, number * EVERY
        )
        publish_generation(self.settings, self.stream, record)

    @property
    def base(self) -> OnnxTeacher:
        return OnnxTeacher(self.model, self.stream.teacher("t"), "cpu", 1)

    def moving(self) -> Moving:
        """As a worker makes it, that starts now."""
        stream = open_stream(self.settings, self.stream.manifest.stream)
        orders = Sequence.of(stream.manifest)
        views = fetcher().fetch(orders.sample_ids(0), orders.view_seed(0)).inputs
        return Moving(KafkaCluster(self.settings), stream, self.base, views)

    @contextmanager
    def labelling(self) -> Iterator[Labelling]:
        made, at_work = self.moving(), Labelling(self.base)
        made.start(at_work)
        try:
            yield at_work
        finally:
            made.stop()


@pytest.fixture
def moved(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], tmp_path: Path) -> Moved:
    model = student_model(tmp_path / "first.onnx")
    return Moved(kafka_settings, moving_stream(kafka_settings, fresh_name("moved"), model), model)


def test_the_newest_generation_that_is_fit_takes_its_place_and_its_file_goes_with_it(
    moved: Moved,
    eventually: Callable[..., object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(moving_module, "EVERY", 0.1)
    good = [student_model(tmp_path / f"good{seed}.onnx", seed).read_bytes() for seed in (1, 2)]
    other = classifier(tmp_path / "x.onnx").read_bytes()  # of another input and another output
    place = [tmp_path / f"{number}.onnx" for number in range(5)]
    with moved.labelling() as at_work:
        place[1].write_bytes(good[0][:-7])
        moved.publish(1, good[0], place[1])
        eventually(lambda: "is another file" in caplog.text, what="a warning of the file that is cut")
        assert at_work.model.teacher.generation == 0
        assert "generation 1 of teacher 't' cannot be had now" in caplog.text
        assert "labels go on by generation 0, and it is tried again" in caplog.text
        place[1].write_bytes(good[0])
        eventually(lambda: at_work.model.teacher.generation == 1, what="the generation whose file came right")
        assert at_work.model.teacher.sha256 == hashlib.sha256(good[0]).hexdigest()
        first = at_work.model.path
        assert first.exists()
        assert first != place[1]  # nobody changes it under the session

        place[2].write_bytes(other)
        moved.publish(2, other, place[2])
        eventually(lambda: "generation 2 of teacher 't' is not taken" in caplog.text, what="a refusal")
        assert f"{place[2]}" in caplog.text
        warnings = len(caplog.records)
        moved.publish(3, good[1], place[3])  # which nobody wrote
        eventually(lambda: f"{place[3]}: no such file" in caplog.text, what="a warning of no file")
        place[3].write_bytes(good[1])
        eventually(lambda: at_work.model.teacher.generation == 3, what="the one behind the one that is not fit")
        assert len([r for r in caplog.records[warnings:] if "generation 2" in r.message]) == 0
        eventually(lambda: not first.exists(), what="the end of the old file")
        here = at_work.model.path
    assert not here.exists()


def test_a_generation_that_is_not_finite_is_not_taken(
    moved: Moved, eventually: Callable[..., object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import onnx

    model = onnx.load(moved.model)
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights.flat[3] = np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, model.graph.initializer[0].name))
    content = model.SerializeToString()
    (tmp_path / "nan.onnx").write_bytes(content)
    moved.publish(1, content, tmp_path / "nan.onnx")
    with moved.labelling() as at_work:
        eventually(lambda: "is not finite" in caplog.text, what="a warning")
        assert at_work.model.teacher.generation == 0


def test_a_worker_begins_with_the_newest_that_it_can_have(
    moved: Moved, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = {number: student_model(tmp_path / f"{number}.onnx", number).read_bytes() for number in (1, 2)}
    for number, content in contents.items():
        moved.publish(number, content, tmp_path / f"{number}.onnx")
    made, base = moved.moving(), moved.base
    assert made.first(base).teacher.generation == 2
    assert made.of(base, 1) is not None
    assert made.of(base, 3) is None
    (tmp_path / "2.onnx").unlink()
    with caplog.at_level(logging.WARNING):
        assert made.first(base).teacher.generation == 1
    assert "no such file; labels go on by generation 0" in caplog.text
    (tmp_path / "1.onnx").unlink()
    assert made.first(base) is base
    made.stop()


def test_a_file_behind_a_url_is_read_and_hashed(moved: Moved, tmp_path: Path) -> None:
    from pipeline.captured.storage import storage_of

    content = student_model(tmp_path / "one.onnx", 1).read_bytes()
    folder = storage_of("memory://generations")
    folder.write_whole("one.onnx", content)
    sha256 = hashlib.sha256(content).hexdigest()
    record = Generation(
        moved.stream.manifest.stream_id, "t", 1, sha256, sha256, folder.address("one.onnx"), "id", 1, EVERY
    )
    publish_generation(moved.settings, moved.stream, record)
    made, base = moved.moving(), moved.base
    found = made.first(base)
    assert (found.teacher.generation, found.teacher.sha256, found.provider) == (1, sha256, base.provider)
    made.stop()
