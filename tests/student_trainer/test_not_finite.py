"""A loss or a gradient that is not finite stops the run, and what it had learned before is on disk."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn
from train_runs import Spoilt, digits_run, run

from pipeline.cli import main
from pipeline.datasets.base import Arrays, Ints
from schemas.errors import NotFinite
from student_trainer.batches import Batch
from student_trainer.checkpoint import load_checkpoint
from student_trainer.learning.guard import Guard
from student_trainer.learning.losses import LOSSES, Loss, cross_entropy
from student_trainer.learning.optimizers import OPTIMIZERS
from student_trainer.learning.students import Network
from student_trainer.learning.terms import resolve
from student_trainer.learning.trainee import Trainee
from student_trainer.run.folder import read_run
from student_trainer.run.json_lines import JsonLines
from student_trainer.run.settings import RunSettings
from student_trainer.sources.dataset import DatasetSource

BAD_STEP = 8
BATCH = 50


class Poisoned(DatasetSource):
    """One sample is NaN: the 20th row of the eighth batch of 50."""

    def __init__(self, settings: RunSettings) -> None:
        super().__init__(settings)
        self.fetcher = Spoilt(self.fetcher, self._spoil)

    def _spoil(self, sample_ids: Ints, inputs: Arrays) -> None:
        inputs["image"][sample_ids == bad_sample(self)] = np.nan


def bad_sample(source: DatasetSource) -> int:
    sequence, row = divmod((BAD_STEP - 1) * BATCH + 19, source.sequence.order_size)
    return int(source.sequence.sample_ids(sequence)[row])


def normalised(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A student with running statistics, which see a batch before its loss does."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(int(np.prod(input_shape)), 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes)
    )


def small_run(student: str = "mlp", **sections: dict[str, Any]) -> Any:
    settings = digits_run(**{"train": {"log_every": 5}, "checkpoint": {"every": 3, "keep": 2}} | sections)
    if student == "mlp":
        return settings
    return replace(settings, student=replace(settings.student, name="test_not_finite:normalised", params={}))


@pytest.fixture(params=["looked at once", "looked at later"])
def looks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """On CUDA steps are looked at when metrics are written; the same code, on the CPU."""
    if request.param == "looked at later":
        for module in ("records", "learning.guard"):
            monkeypatch.setattr(f"student_trainer.{module}.looks_at_once", lambda device: False)
    return str(request.param)


@pytest.mark.parametrize("student", ["mlp", "batch norm"])
def test_a_loss_that_is_nan_stops_the_run_with_the_weights_of_before(tmp_path: Path, looks: str, student: str) -> None:
    settings = small_run(student)
    whole = run(tmp_path / "whole", small_run(student, train={"steps": BAD_STEP - 1}, schedule={"name": "constant"}))
    settings = replace(settings, schedule=replace(settings.schedule, name="constant"))
    source = Poisoned(settings)
    with pytest.raises(NotFinite) as caught:
        run(tmp_path / "r", settings, source)
    text = str(caught.value)
    assert f"step {BAD_STEP}, pass 0, sequence 5: the loss is nan on samples " in text
    if student == "mlp":  # a batch norm makes NaN of the whole batch
        assert f"the loss is nan on samples {bad_sample(source)} of a batch of {BATCH};" in text
    else:
        assert "and 34 more of a batch of 50;" in text
    assert "it was not taken, step-00000007 is of before it;" in text
    assert read_run(tmp_path / "r")["state"] == "failed"
    # As if it had ended there: weights, running statistics and the optimizer's state.
    saved, state = load_checkpoint(tmp_path / "r/checkpoints")
    _, expected = load_checkpoint(tmp_path / "whole/checkpoints")
    assert saved.step == BAD_STEP - 1
    assert saved.at() == whole.cursor
    torch.testing.assert_close(state["model"], expected["model"], rtol=0, atol=0)
    torch.testing.assert_close(state["optimizer"]["state"], expected["optimizer"]["state"], rtol=0, atol=0)
    assert [line["step"] for line in lines(tmp_path / "r")] == [5]


class Huge(Poisoned):
    """One pixel of that sample is so large that its square is none of float32."""

    def _spoil(self, sample_ids: Ints, inputs: Arrays) -> None:
        inputs["image"][sample_ids == bad_sample(self), 0, 0, 0] = 1e25


def normalised_first(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Its loss and gradients stay finite whatever it is given: the statistics alone do not."""
    masked = nn.Linear(int(np.prod(input_shape)), num_classes)
    masked.register_buffer("mask", torch.tensor([-torch.inf, 0.0]))  # a constant, which may be infinite
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(int(np.prod(input_shape))), masked)


def test_running_statistics_that_are_not_finite_stop_the_run_too(tmp_path: Path, looks: str) -> None:
    settings = small_run(schedule={"name": "constant"})
    settings = replace(settings, student=replace(settings.student, name="test_not_finite:normalised_first", params={}))
    with pytest.raises(NotFinite, match=r"step 8, .* running statistic is not finite, .* step-00000007 is of before"):
        run(tmp_path / "r", settings, Huge(settings))
    saved, state = load_checkpoint(tmp_path / "r/checkpoints")
    assert saved.step == BAD_STEP - 1
    assert torch.isfinite(state["model"]["1.running_var"]).all()
    assert run(tmp_path / "r", settings).weights_sha256 == run(tmp_path / "whole", settings).weights_sha256


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_good_checkpoints_do_not_rotate_out_however_often_it_is_resumed(tmp_path: Path, looks: str) -> None:
    settings = small_run()
    for _ in range(3):
        with pytest.raises(NotFinite):
            run(tmp_path / "r", settings, Poisoned(settings))
    assert sorted(each.name for each in (tmp_path / "r/checkpoints").iterdir()) == [
        "step-00000003",
        "step-00000006",
        "step-00000007",
    ]


def test_a_run_that_was_stopped_so_goes_on_with_the_same_bits_once_its_data_are_repaired(
    tmp_path: Path, looks: str
) -> None:
    settings = small_run()
    with pytest.raises(NotFinite):
        run(tmp_path / "r", settings, Poisoned(settings))
    assert run(tmp_path / "r", settings).weights_sha256 == run(tmp_path / "whole", settings).weights_sha256


class _Steep(torch.autograd.Function):
    """The identity; the gradient of a row of NaN is infinite."""

    @staticmethod
    def forward(context: Any, logits: Tensor, bad: Tensor) -> Tensor:
        context.save_for_backward(bad)
        return logits.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (bad,) = context.saved_tensors
        return torch.where(bad, torch.inf, gradient), None


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "torch.optim:RMSprop"])
def test_a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is(
    tmp_path: Path, looks: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def steep(logits: Tensor, target: None, labels: Tensor, temperature: float, labelled_fraction: float) -> Tensor:
        nonlocal calls
        calls += 1
        bad = torch.tensor(calls == BAD_STEP)
        return cross_entropy(_Steep.apply(logits, bad), target, labels, temperature)

    monkeypatch.setitem(LOSSES, "cross_entropy", Loss(steep, frozenset({"labels"})))
    settings = replace(small_run(), optimizer=replace(small_run().optimizer, name=optimizer, params={}))
    with pytest.raises(
        NotFinite, match=r"step 8, .* the gradient or a .* is not finite, with a loss of \d.* on samples .* 34 "
    ):
        run(tmp_path / "r", settings)
    assert load_checkpoint(tmp_path / "r/checkpoints")[0].step == BAD_STEP - 1


def test_a_loss_that_is_infinite_stops_the_run_though_its_gradient_is_finite(
    tmp_path: Path, looks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def high(logits: Tensor, target: None, labels: Tensor, temperature: float, labelled_fraction: float) -> Tensor:
        nonlocal calls
        calls += 1
        return cross_entropy(logits, target, labels, temperature) + (torch.inf if calls == BAD_STEP else 0.0)

    monkeypatch.setitem(LOSSES, "cross_entropy", Loss(high, frozenset({"labels"})))
    with pytest.raises(NotFinite, match=r"step 8, .* the loss is inf on samples "):
        run(tmp_path / "r", small_run())
    assert load_checkpoint(tmp_path / "r/checkpoints")[0].step == BAD_STEP - 1


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "torch.optim:RMSprop"])
@pytest.mark.parametrize("bad_step", [0, 3])
def test_a_refused_step_leaves_no_trace_in_an_optimizer(optimizer: str, bad_step: int) -> None:
    """Not even the first, at which a fused one allocates its state."""
    settings = digits_run()
    settings = replace(settings, optimizer=replace(settings.optimizer, name=optimizer))
    if optimizer != "sgd":
        settings = replace(settings, optimizer=replace(settings.optimizer, params={}))
    trainee = make(settings)
    for step in range(bad_step):
        trainee.take_step(batch(step), step)
    before = copied(trainee)
    result = trainee.take_step(batch(bad_step, poison=True), bad_step)
    assert result.refused
    trainee.take_step(batch(bad_step + 1), bad_step + 1)  # nor is anything learned after it
    after = copied(trainee)
    torch.testing.assert_close(after["model"], before["model"], rtol=0, atol=0)
    for at, state in after["optimizer"]["state"].items():
        expected = before["optimizer"]["state"].get(at, {name: torch.zeros_like(each) for name, each in state.items()})
        torch.testing.assert_close(state, expected, rtol=0, atol=0)


def make(settings: Any) -> Trainee:
    return Trainee(settings, Network.of("image", (1, 8, 8), 10), 12, 1.0, torch.device("cpu"), resolve(settings, {}))


def batch(step: int, poison: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(BATCH, 1, 8, 8, generator=generator)
    if poison:
        inputs[3] = torch.nan
    return Batch(torch.arange(BATCH), {"image": inputs}, torch.randint(10, (BATCH,), generator=generator))


def copied(trainee: Trainee) -> dict[str, Any]:
    return copy.deepcopy(trainee.state())


def fp16() -> Trainee:
    settings = digits_run()
    settings = replace(settings, student=replace(settings.student, name="test_not_finite:normalised", params={}))
    return make(replace(settings, train=replace(settings.train, precision="fp16")))


def test_under_fp16_an_overflow_is_skipped_alone() -> None:
    trainee = fp16()
    trainee.take_step(batch(0), 0)
    before = copied(trainee)
    assert trainee.take_step(batch(1, poison=True), 1).refused
    torch.testing.assert_close(copied(trainee)["model"], before["model"], rtol=0, atol=0)  # running statistics, too
    assert trainee.scaler.get_scale() == before["scaler"]["scale"] / 2
    assert not trainee.take_step(batch(2), 2).refused
    assert trainee.lost_scale() is None


def test_under_fp16_overflows_without_end_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Poisoned):
        def _spoil(self, sample_ids: Ints, inputs: Arrays) -> None:
            bad = np.concatenate([self.sequence.sample_ids(number)[::7] for number in range(4, 20)])
            inputs["image"][np.isin(sample_ids, bad)] = np.nan

    monkeypatch.setattr("student_trainer.train.choose_device", lambda settings: torch.device("cpu"))
    settings = digits_run(train={"precision": "fp16", "steps": 100, "log_every": 1}, checkpoint={"every": 0})
    with pytest.raises(NotFinite, match=r"fp16's gradient scale fell to .*: take bf16"):
        run(tmp_path / "r", settings, Broken(settings))
    found = lines(tmp_path / "r")
    assert 30 < len(found) < 60
    assert found[0]["loss"] > 0
    assert found[-1]["loss"] is None
    saved, state = load_checkpoint(tmp_path / "r/checkpoints")
    assert saved.step == len(found) + 1
    assert all(torch.isfinite(each).all() for each in state["model"].values())


@pytest.mark.parametrize("every", [1, 0])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, every: int, looks: str) -> None:
    settings = small_run(optimizer={"lr": 1e300}, checkpoint={"every": every, "keep": 1})
    with pytest.raises(NotFinite, match=r"weights (are|were) not finite"):
        run(tmp_path / "r", settings)
    folder = tmp_path / "r/checkpoints"
    if folder.exists():
        assert all(torch.isfinite(each).all() for each in load_checkpoint(folder)[1]["model"].values())


def test_no_line_of_metrics_holds_a_number_that_is_no_json(tmp_path: Path) -> None:
    metrics = JsonLines(tmp_path / "metrics.jsonl", 0)
    with pytest.raises(ValueError, match="JSON"):
        metrics.write({"loss": float("nan")})
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def distillog(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_the_commands_say_it_in_one_line(tmp_path: Path) -> None:
    """A run as a user starts it, and the evaluation of a student that gives NaN."""
    file = tmp_path / "r.toml"
    file.write_text(small_run(data={"dataset": "test_not_finite:with_a_hole", "view": {"name": "none"}}).as_toml())
    result = distillog("runs", "start", file, "--folder", tmp_path / "runs", "--quiet")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path}/runs/r: step ")
    assert "the loss is nan on samples 77 of a batch of 50" in result.stderr
    assert result.stderr.count("\n") == 1

    result = distillog("runs", "evaluate", "r", "--folder", tmp_path / "runs")
    assert result.exit_code == 1
    assert "the student gives NaN or infinity for 1 of 300 samples, the first is sample 77" in result.stderr
    assert result.stderr.count("\n") == 1


class WithAHole:
    """300 samples, of which one is NaN."""

    num_classes = 10
    labels = np.arange(300) % 10

    def __len__(self) -> int:
        return 300

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        value = np.nan if sample_id == 77 else sample_id / 300
        return {"image": np.full((1, 8, 8), value, np.float32)}


def with_a_hole() -> WithAHole:
    return WithAHole()


def test_buffers_that_are_no_statistics_are_no_hindrance() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("spread", torch.ones(1).expand(4))
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
    guard = Guard(model, torch.device("cpu"), skips=False)
    guard.begin()
    guard.check(torch.tensor(1.0), [torch.ones(2)])
    guard.undo()
    assert not guard.refused
