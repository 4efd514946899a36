from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from train_runs import Spoilt, digits_run, run

from pipeline.datasets.base import Arrays, Ints
from schemas.codecs import CodecSpec, Dense
from schemas.errors import CheckpointError, ConfigError, DataUnavailable, RunLocked, Starved
from student_trainer.learning.targets import TargetSpec
from student_trainer.run.folder import RunFolder, read_run, read_settings
from student_trainer.run.settings import RunSettings, TeacherSettings
from student_trainer.sources.base import Cursor, LabelledOrder
from student_trainer.sources.dataset import DatasetSource


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def without_timing(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines(path)]


def test_a_run_learns_and_leaves_its_files(tmp_path: Path) -> None:
    settings = digits_run(train={"steps": 120}, student={"dropout": 0.0}, evaluation={"dataset": "digits?split=test"})
    result = run(tmp_path / "r", settings)
    assert result.finished
    assert result.step == 120
    assert result.metrics["accuracy"] > 0.8
    assert read_run(tmp_path / "r")["state"] == "done"
    assert read_settings(tmp_path / "r") == settings
    assert lines(tmp_path / "r")[-1]["evaluation"] == result.metrics
    assert lines(tmp_path / "r")[0]["loss"] > lines(tmp_path / "r")[-2]["loss"]


def test_equal_runs_have_equal_weights_and_another_seed_has_others(tmp_path: Path) -> None:
    first, again = (run(tmp_path / name, digits_run()) for name in ("a", "b"))
    other = run(tmp_path / "c", digits_run(train={"seed": 1}))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert without_timing(tmp_path / "a") == without_timing(tmp_path / "b")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with a checkpoint after every step, to resume from; evaluations must leave no trace in it."""
    path = tmp_path_factory.mktemp("whole") / "r"
    result = run(path, digits_run(checkpoint={"every": 1, "keep": 99}))
    return path, result.weights_sha256


@pytest.mark.parametrize("step", [1, 2, 5, 7, 11, 12])
def test_a_run_resumed_from_any_checkpoint_ends_in_the_same_bits(
    tmp_path: Path, whole: tuple[Path, str], step: int
) -> None:
    path = tmp_path / "r"
    shutil.copytree(whole[0], path)
    for place in (path / "checkpoints").iterdir():
        if int(place.name.removeprefix("step-")) > step:
            shutil.rmtree(place)
    settings = digits_run(checkpoint={"every": 4}, evaluation={"dataset": "digits?split=test", "every": 2})
    assert run(path, settings).weights_sha256 == whole[1]
    assert [line for line in without_timing(path) if "loss" in line] == without_timing(whole[0])


def test_a_damaged_checkpoint_costs_steps_but_no_bits(tmp_path: Path, whole: tuple[Path, str]) -> None:
    path = tmp_path / "r"
    shutil.copytree(whole[0], path)
    for step in (11, 12):
        (path / f"checkpoints/step-{step:08d}/state.pt").write_bytes(b"damaged")
    assert run(path, digits_run()).weights_sha256 == whole[1]
    assert without_timing(path) == without_timing(whole[0])


class Sliced(DatasetSource):
    """The rows of another source in orders of another size, with a teacher that knows the labels."""

    targets = MappingProxyType({"t.logits": TargetSpec("logits", (10,), 10, CodecSpec(), default=True)})

    def __init__(self, settings: RunSettings, size: int) -> None:
        super().__init__(settings)
        orders = list(super().orders(Cursor.start()))
        self._sample_ids = np.concatenate([order.sample_ids for order in orders])
        self._rows = np.concatenate([order.labels for order in orders])
        self._view_seed = orders[0].view_seed
        self._order_size = size
        self.sequence = replace(self.sequence, order_size=size, partitions=2)

    def orders(self, cursor: Cursor) -> Iterator[LabelledOrder]:
        for sequence in range(cursor.sequence, self.sequence.num_orders):
            part = slice(sequence * self._order_size, (sequence + 1) * self._order_size)
            targets = {"t.logits": Dense(np.eye(10, dtype=np.float32)[self._rows[part]] * 5)}
            ids, labels = self._sample_ids[part], self._rows[part]
            yield LabelledOrder(0, sequence, self._view_seed, ids, labels, targets, place=sequence + 1)


def test_the_size_of_orders_leaves_no_trace_in_the_weights(tmp_path: Path) -> None:
    settings = digits_run()
    hinton = replace(
        settings,
        losses=(
            replace(settings.losses[0], weight=0.5),
            replace(settings.losses[0], name="forward_kl", temperature=2.0),
        ),
    )
    # Settings of a stream, which alone may name teachers; the source is given by hand.
    hinton = replace(
        hinton,
        source="stream",
        data=replace(hinton.data, stream="s", epochs=1),
        teachers=(TeacherSettings("t"),),
    )
    sizes = {size: run(tmp_path / str(size), hinton, Sliced(hinton, size)) for size in (7, 50, 64, 1000)}
    assert len({result.weights_sha256 for result in sizes.values()}) == 1
    assert sizes[64].cursor == Cursor(0, 9, 24)
    assert sizes[64].cursor.place == 9
    assert set(lines(tmp_path / "7")[0]["losses"]) == {"cross_entropy", "forward_kl"}


def broken_run(**train: Any) -> RunSettings:
    """52 steps over 2 epochs of 1,300 samples, of which ten cannot be decoded."""
    data = {"dataset": "support.user_data:bytes_0_to_255?count=1300&broken=131", "view": {"name": "none"}, "epochs": 2}
    return digits_run(data=data, optimizer={"lr": 1e-5}, schedule={"name": "constant"}, train={"steps": 0} | train)


def test_samples_that_cannot_be_decoded_leave_batches_full_and_are_counted_once(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", broken_run())
    assert (whole.step, whole.undecodable_rows, whole.dropped_rows) == (52, 20, 0)
    assert run(tmp_path / "three", broken_run(loaders=3)).weights_sha256 == whole.weights_sha256
    part = run(tmp_path / "r", broken_run(steps=31, trace=True))
    assert 10 <= part.undecodable_rows < 20
    rest = run(tmp_path / "r", broken_run(loaders=2, loader_processes=True, trace=True))
    assert (rest.weights_sha256, rest.undecodable_rows) == (whole.weights_sha256, 20)
    trace = [json.loads(line) for line in (tmp_path / "r/trace.jsonl").read_text().splitlines()]
    assert all(len(line["samples"]) == 50 for line in trace)


@pytest.mark.parametrize("student", [{"name": "mlp"}, {"name": "cnn", "batch_norm": True}])
def test_no_number_of_loaders_changes_the_weights(tmp_path: Path, student: dict[str, Any]) -> None:
    settings = digits_run()
    settings = replace(settings, student=replace(settings.student, name=student.pop("name"), params=student))
    evaluated = replace(settings, evaluation=replace(settings.evaluation, dataset="digits?split=test", every=5))
    alone = run(tmp_path / "1", evaluated)
    for loaders in (2, 5):
        more = replace(evaluated, train=replace(evaluated.train, loaders=loaders))
        result = run(tmp_path / str(loaders), more)
        assert (result.weights_sha256, result.metrics) == (alone.weights_sha256, alone.metrics)
        assert without_timing(tmp_path / str(loaders)) == without_timing(tmp_path / "1")


class Listener:
    """Notes what it is told, and may act at a step."""

    def __init__(self, act_at: int = -1, act: Any = None) -> None:
        self.cursors: list[Cursor] = []
        self.saved: list[Cursor] = []
        self.states: list[str] = []
        self._act_at, self._act = act_at, act

    def trained(self, cursor: Cursor) -> None:
        if self.cursors[-1:] == [cursor]:
            return  # told again, since the batch was waited for
        if len(self.cursors) == self._act_at:
            self._act()
        self.cursors.append(cursor)

    def checkpointed(self, cursor: Cursor) -> None:
        self.saved.append(cursor)

    def state(self, state: str) -> None:
        self.states.append(state)


def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(tmp_path: Path, whole: tuple[Path, str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    listener = Listener(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    result = run(tmp_path / "r", digits_run(), reporter=listener)
    assert not result.finished
    assert 4 <= result.step <= 5
    assert listener.saved[-1] == result.cursor  # at step 5 there is one anyway
    assert listener.states[-1] == "stopped"
    assert read_run(tmp_path / "r")["state"] == "stopped"
    assert signal.getsignal(signal.SIGTERM) == before
    assert run(tmp_path / "r", digits_run()).weights_sha256 == whole[1]


def test_the_reporter_hears_every_cursor_and_every_checkpoint(tmp_path: Path) -> None:
    listener = Listener()
    result = run(tmp_path / "r", digits_run(), reporter=listener)
    assert len(listener.cursors) == 13
    assert listener.cursors[0] == Cursor.start()
    assert listener.cursors[-1] == result.cursor
    assert listener.saved == [listener.cursors[5], listener.cursors[10], listener.cursors[12]]
    assert listener.states == ["training", "done"]


def test_a_resumed_run_reports_its_checkpoint_before_anything_else(tmp_path: Path) -> None:
    run(tmp_path / "r", digits_run(train={"steps": 6}))
    told: list[tuple[str, Cursor]] = []

    class Teller(Listener):
        def trained(self, cursor: Cursor) -> None:
            told.append(("trained", cursor))

        def checkpointed(self, cursor: Cursor) -> None:
            told.append(("checkpointed", cursor))

    run(tmp_path / "r", digits_run(), reporter=Teller())
    at = Cursor(0, 4, 44)  # 6 batches of 50 in orders of 64
    assert told[:2] == [("checkpointed", at), ("trained", at)]
    told.clear()
    run(tmp_path / "s", digits_run(), reporter=Teller())
    assert told[0] == ("trained", Cursor.start())


class Starving(DatasetSource):
    def orders(self, cursor: Cursor) -> Iterator[LabelledOrder]:
        yield from islice(super().orders(cursor), 5)
        raise Starved("no label came")


def test_a_run_that_starves_writes_a_checkpoint_first(tmp_path: Path, whole: tuple[Path, str]) -> None:
    settings = digits_run()
    with pytest.raises(Starved, match="no label came"):
        run(tmp_path / "r", settings, Starving(settings))
    assert read_run(tmp_path / "r")["state"] == "starved"
    assert (tmp_path / "r/checkpoints/step-00000006").exists()  # 5 orders of 64 hold 6 batches of 50
    assert run(tmp_path / "r", settings).weights_sha256 == whole[1]


class Open(DatasetSource):
    """Says where its orders are left, and by which thread."""

    left: str = ""

    def orders(self, cursor: Cursor) -> Iterator[LabelledOrder]:
        try:
            yield from super().orders(cursor)
        finally:
            self.left = threading.current_thread().name


@pytest.mark.parametrize("ends", ["in an error of the loader's", "after its steps"])
def test_a_source_is_left_when_the_run_ends_and_not_when_memory_is_tidied(tmp_path: Path, ends: str) -> None:
    settings = digits_run()
    source = Open(settings)

    def spoil(sample_ids: Ints, inputs: Arrays) -> None:
        if threading.current_thread().name == "prefetch":
            raise DataUnavailable("gone")

    if ends == "after its steps":
        run(tmp_path / "r", settings, source)
    else:
        source.fetcher = Spoilt(source.fetcher, spoil)
        with pytest.raises(DataUnavailable) as held:  # an error holds the frames that it went through
            run(tmp_path / "r", settings, source)
        assert held.value.__traceback__ is not None
    assert source.left == "prefetch"


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path, whole: tuple[Path, str]) -> None:
    with RunFolder.create(tmp_path / "r", digits_run()) as folder:
        folder.metrics.write_text('{"step": 3}\n')
    assert run(tmp_path / "r", digits_run()).weights_sha256 == whole[1]
    assert without_timing(tmp_path / "r") == without_timing(whole[0])


def test_a_resume_with_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    run(tmp_path / "r", digits_run())
    with pytest.raises(CheckpointError, match=r"train\.batch_size was 50, is 60"):
        run(tmp_path / "r", digits_run(train={"batch_size": 60}))


def test_a_run_begun_under_an_older_fingerprint_resumes_by_that_one(tmp_path: Path) -> None:
    class Older(DatasetSource):
        def describe(self, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
            return super().describe({"fingerprint": ""})  # as before algorithms had names

    settings = digits_run()
    begun = run(tmp_path / "r", settings, Older(settings))
    assert run(tmp_path / "r", settings).weights_sha256 == begun.weights_sha256
    with pytest.raises(CheckpointError, match=r"fingerprint was '8cca9cd79fa4.*, is '[0-9a-f]{64}'; num_samples"):
        run(tmp_path / "r", settings, DatasetSource(digits_run(data={"dataset": "digits?split=test"})))


def test_passes_go_over_the_same_views_again(tmp_path: Path) -> None:
    settings = digits_run(data={"epochs": 1}, train={"steps": 0, "passes": 2, "batch_size": 1000})
    result = run(tmp_path / "r", settings)
    assert result.step == 2
    assert result.dropped_rows == 2 * 1297 - 2000
    assert result.cursor.pass_number == 1


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"data": {"epochs": 1}, "train": {"steps": 26}}, "at most 25 steps"),
        (
            {"data": {"epochs": 1}, "train": {"steps": 0, "batch_size": 5000}},
            "batch_size 5000 is more than the 1297 rows",
        ),
        ({"train": {"device": "cpu", "precision": "fp16"}}, "fp16 needs CUDA"),
        ({"student": {"inputs": ["imgae"]}}, "is no field of the dataset"),
        ({"evaluation": {"dataset": "digits?split=test", "view": "afine"}}, "afine"),
        (
            {"data": {"view": "support.user_data:dimmed"}, "evaluation": {"dataset": "digits?split=test"}},
            r"set \[evaluation\] view .* dimmed\.evaluation = ",
        ),
        ({"data": {"labelled": 0}}, "no sample shows a label"),
        ({"data": {"labelled": 9999}}, "labelled"),
    ],
)
def test_a_run_that_cannot_be_is_refused_at_the_start(tmp_path: Path, sections: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run(tmp_path / "r", digits_run(**sections))


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    locked = pytest.raises(RunLocked, match=f"process {os.getpid()} trains")
    with RunFolder.create(tmp_path / "r", digits_run()), locked:
        RunFolder.open(tmp_path / "r")
    with RunFolder.open(tmp_path / "r"), pytest.raises(RunLocked):
        RunFolder.create(tmp_path / "r", digits_run())
    with pytest.raises(ConfigError, match="there is a run of this name"):
        RunFolder.create(tmp_path / "r", digits_run())
    with pytest.raises(ConfigError, match="there is no run"):
        RunFolder.open(tmp_path / "nowhere")


def test_bfloat16_trains_as_well(tmp_path: Path) -> None:
    result = run(tmp_path / "r", digits_run(train={"precision": "bf16", "device": "cpu"}))
    assert result.finished
    assert result.weights_sha256 != run(tmp_path / "f", digits_run()).weights_sha256
