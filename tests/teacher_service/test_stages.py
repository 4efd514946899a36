"""Loading and inference beside the polling thread: order, retries, dead letters by row."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import classifier
from support.streams import fetcher, manifest, order, teacher_record

from pipeline.datasets import Dataset
from pipeline.datasets.base import Samples
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec, Dense
from schemas.errors import DataUnavailable, DecodeError, ModelFailed
from schemas.records import DeadLetter, SoftTargets, TeacherInput
from teacher_service import stages as stages_module
from teacher_service.leases.chain import Chain, Job, Mark, Parcel
from teacher_service.models.session import OnnxTeacher
from teacher_service.parcels import Parcels
from teacher_service.stages import Stages

BROKEN = "support.user_data:bytes_0_to_255?count=100&broken=7"


class Bench:
    """Stages whose jobs come out in a queue."""

    def __init__(self, source: Fetcher, model: OnnxTeacher) -> None:
        self.manifest = manifest(source)
        self.done: queue.Queue[Parcel] = queue.Queue()
        parcels = Parcels(model.teacher, CodecSpec("float32"), "s.work-orders")
        self.stages = Stages(source, model, parcels, self.done.put)

    def job(self, sequence: int) -> Job:
        chain = Chain(sequence % 4, 1, Mark(sequence // 4, sequence), 4)
        return chain.accept(sequence // 4, order(self.manifest, sequence))

    def take(self, count: int) -> list[Parcel]:
        return [self.done.get(timeout=20) for _ in range(count)]


@contextmanager
def bench(source: Fetcher, path: Path, **record: Any) -> Iterator[Bench]:
    made = Bench(source, OnnxTeacher(path, teacher_record(path, **record), threads=1))
    try:
        yield made
    finally:
        made.stages.stop()


def test_the_lowest_sequence_goes_first(tmp_path: Path) -> None:
    with bench(fetcher(), classifier(tmp_path / "m.onnx")) as made:
        made.stages.add([made.job(sequence) for sequence in (9, 2, 30, 5)])
        made.stages.add([made.job(sequence) for sequence in (7, 0)])
        made.stages.start()
        assert [parcel.job.sequence for parcel in made.take(6)] == [0, 2, 5, 7, 9, 30]


def test_a_job_of_a_lease_that_ended_is_dropped_also_where_its_record_is_queued_again(tmp_path: Path) -> None:
    with bench(fetcher(), classifier(tmp_path / "m.onnx")) as made:
        before = [made.job(sequence) for sequence in (0, 4, 8)]
        made.stages.add(before)
        for job in before:
            job.chain.end()
        again = [made.job(sequence) for sequence in (0, 4, 8)]
        made.stages.add(again)
        made.stages.start()
        assert [parcel.job for parcel in made.take(3)] == again
        assert made.done.empty()


def test_what_was_not_begun_can_be_taken_back(tmp_path: Path) -> None:
    with bench(fetcher(), classifier(tmp_path / "m.onnx")) as made:
        made.stages.add([made.job(sequence) for sequence in (4, 0)])
        assert sorted(job.sequence for job in made.stages.clear()) == [0, 4]
        assert made.stages.clear() == []
        made.stages.start()


def test_labels_are_those_of_the_model_for_the_orders_samples(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx")
    source = fetcher()
    with bench(source, path) as made:
        made.stages.add([made.job(3)])
        made.stages.start()
        (parcel,) = made.take(1)
        assert parcel.value is not None
        targets = SoftTargets.decode(parcel.value, "here")
    asked = order(made.manifest, 3)
    inputs = source.fetch(asked.sample_ids, asked.view_seed).inputs
    values = targets.output("logits").values()
    assert isinstance(values, Dense)
    assert np.array_equal(values.logits, OnnxTeacher(path, teacher_record(path), threads=1).label(inputs)["logits"])
    assert targets.kept_rows is None
    assert (targets.sequence, targets.epoch, targets.view_seed) == (3, asked.epoch, asked.view_seed)
    assert np.array_equal(targets.sample_ids, asked.sample_ids)
    assert not parcel.letters


def test_samples_that_cannot_be_decoded_go_to_the_dead_letters_by_row(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx")
    inputs = (TeacherInput("x", "pixels", "float32", "nchw", 1.0, ()),)
    with bench(fetcher(BROKEN), path, inputs=inputs) as made:
        made.stages.add([made.job(1)])
        made.stages.start()
        (parcel,) = made.take(1)
    asked = order(made.manifest, 1).sample_ids
    bad = [(row, sample_id) for row, sample_id in enumerate(asked.tolist()) if sample_id % 7 == 5]
    letters = [DeadLetter.decode(letter, "here") for letter in parcel.letters]
    assert bad
    assert [(letter.row, letter.sample_id) for letter in letters] == bad
    assert {letter.reason for letter in letters} == {f"sample {sample_id} is cut short" for _, sample_id in bad}
    assert {(letter.topic, letter.partition, letter.offset, letter.sequence) for letter in letters} == {
        ("s.work-orders", 1, 0, 1)
    }
    assert parcel.value is not None
    targets = SoftTargets.decode(parcel.value, "here")
    assert targets.kept_rows is not None
    assert sorted([*targets.kept_rows.tolist(), *(row for row, _ in bad)]) == list(range(len(asked)))
    assert (parcel.num_rows, parcel.num_faults) == (len(asked), len(bad))


def test_a_reason_that_is_no_utf_8_is_escaped(tmp_path: Path) -> None:
    class Nameless:
        """A dataset whose faults name files as the file system does."""

        def __init__(self) -> None:
            self._dataset = fetcher().dataset

        def __getattr__(self, name: str) -> Any:
            return getattr(self._dataset, name)

        def read(self, sample_ids: Any) -> Samples:
            samples = self._dataset.read(sample_ids)
            kept = samples.kept_rows[1:]
            return Samples({"image": samples.fields["image"][1:]}, kept, ((0, "caf\udce9.png: is cut short"),))

    source: Any = Nameless()
    with bench(Fetcher(source, view_spec("none", {})), classifier(tmp_path / "m.onnx")) as made:
        made.stages.add([made.job(0)])
        made.stages.start()
        (parcel,) = made.take(1)
    (letter,) = [DeadLetter.decode(letter, "here") for letter in parcel.letters]
    assert letter.reason == "caf\\udce9.png: is cut short"


def test_rows_without_finite_outputs_are_left_out(tmp_path: Path) -> None:
    source = fetcher()
    asked = order(manifest(source), 0)
    means = source.fetch(asked.sample_ids, asked.view_seed).inputs["image"].mean(axis=(1, 2, 3))
    path = classifier(tmp_path / "m.onnx", nan_above=float(np.sort(means)[-2]))
    with bench(source, path) as made:
        made.stages.add([made.job(0)])
        made.stages.start()
        (parcel,) = made.take(1)
    (letter,) = [DeadLetter.decode(letter, "here") for letter in parcel.letters]
    assert letter.row == int(means.argmax())
    assert "not finite" in letter.reason
    assert parcel.value is not None
    assert SoftTargets.decode(parcel.value, "here").num_kept == 31


def test_an_order_without_any_good_row_is_still_an_order(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx", nan_above=-1.0)
    with bench(fetcher(), path) as made:
        made.stages.add([made.job(0)])
        made.stages.start()
        (parcel,) = made.take(1)
    assert parcel.value is not None
    assert SoftTargets.decode(parcel.value, "here").num_kept == 0
    assert len(parcel.letters) == 32


def test_a_record_that_is_no_order_becomes_one_letter_with_its_bytes(tmp_path: Path) -> None:
    with bench(fetcher(), classifier(tmp_path / "m.onnx")) as made:
        raw = b"x" * 100_000
        error = DecodeError("s.work-orders/2@7", "no Avro " + "z" * 5_000, raw)
        made.stages.add([Chain(2, 1, Mark(7, 30), 4).accept(7, error)])
        made.stages.start()
        (parcel,) = made.take(1)
    (letter,) = [DeadLetter.decode(letter, "here") for letter in parcel.letters]
    assert (letter.partition, letter.offset, letter.sequence, letter.row) == (2, 7, None, None)
    assert letter.raw == raw[:65_536]
    assert len(letter.reason) == 1_000
    assert parcel.value is None


class _Flaky:
    """A dataset whose reads fail some times before they go through."""

    def __init__(self, dataset: Dataset, failures: int) -> None:
        self._dataset = dataset
        self.failures = failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def read(self, sample_ids: Any) -> Any:
        if self.failures > 0:
            self.failures -= 1
            raise OSError("stale file handle")
        return self._dataset.read(sample_ids)


def flaky(failures: int) -> Fetcher:
    source: Any = _Flaky(fetcher().dataset, failures)
    return Fetcher(source, view_spec("none", {}))


def test_a_read_that_fails_for_a_while_is_tried_again_without_dead_letters(tmp_path: Path) -> None:
    source = flaky(2)
    with bench(source, classifier(tmp_path / "m.onnx")) as made:
        made.stages.add([made.job(0)])
        made.stages.start()
        (parcel,) = made.take(1)
    assert not parcel.letters
    assert parcel.num_faults == 0
    assert source.dataset.failures == 0  # type: ignore[attr-defined]


def test_a_read_that_never_succeeds_stops_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr(stages_module, "DATA_RETRY", 0.3)
    with bench(flaky(1_000), classifier(tmp_path / "m.onnx")) as made:
        made.stages.add([made.job(0)])
        made.stages.start()
        failure = eventually(lambda: made.stages.failure, what="the failure")
    assert isinstance(failure, DataUnavailable)
    assert "order 0 cannot be read (stale file handle)" in str(failure)
    assert made.done.empty()


def test_a_model_that_fails_twice_stops_the_worker_and_blames_no_sample(tmp_path: Path, eventually: Any) -> None:
    path = classifier(tmp_path / "m.onnx", (1, 7, 8))  # takes other inputs than the dataset gives
    with bench(fetcher(), path) as made:
        made.stages.add([made.job(0)])
        made.stages.start()
        failure = eventually(lambda: made.stages.failure, what="the failure")
    assert isinstance(failure, ModelFailed)
    assert "fails on order 0" in str(failure)
    assert made.done.empty()
