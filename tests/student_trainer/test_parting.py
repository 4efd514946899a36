"""What one process of several finds, and how the others come to hear of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import Distillog
from support.small_runs import weights
from torch import Tensor, nn
from train_runs import digits_run

from schemas.errors import ConfigError, PeerLost
from student_trainer.batches import Batch
from student_trainer.learning.students import Network
from student_trainer.learning.terms import resolve
from student_trainer.learning.trainee import Trainee
from student_trainer.processes.gradients import summed
from student_trainer.processes.meeting import assemble, leave
from student_trainer.processes.world import Alone, Standing
from student_trainer.run.settings import run_settings

PLAIN = {"student": {"dropout": 0.0}}


class First(Alone):
    """Rank 0 of two, where the other gives nothing."""

    size = 2

    def __init__(self, standing: Standing | None = None) -> None:
        self._standing = standing

    def stand(self, *args: Any, **more: Any) -> Standing:
        if self._standing is None:
            raise PeerLost("another process of the run is gone")
        return self._standing

    def words(self, text: str) -> list[str]:
        return ["", "rank 1: its disk is away"]


class Alike(First):
    """Rank 0 of two, where the other has the same."""

    def sum(self, values: Tensor) -> None:
        values.mul_(2)


class OtherMean(First):
    """Rank 0 of two that differ in one buffer."""

    def sum(self, values: Tensor) -> None:
        if len(values) == 3 * 8:  # of the student's three tensors
            values[:8] += 1
        values.mul_(2)


class Drifting(nn.Module):
    """Keeps a running mean of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)
        if self.training:
            self.get_buffer("mean").mul_(0.9).add_(rows.mean(dim=0).detach(), alpha=0.1)
        return self.layer(rows - self.get_buffer("mean"))


def drifting(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Drifting()


def test_statistics_of_one_process_alone_are_refused_at_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    document = digits_run(train={"batch_size": 8}).as_dict() | {"student": {"name": f"{__name__}:drifting"}}
    settings = run_settings(document)
    batch = Batch(torch.arange(4), {"image": torch.rand(4, 1, 8, 8)}, torch.arange(4))
    network = Network.of("image", (1, 8, 8), 10)

    def trainee(world: Alone) -> Trainee:
        return Trainee(settings, network, 5, 1.0, torch.device("cpu"), resolve(settings, {}), world=world)

    with pytest.raises(ConfigError, match="mean is another on each process after step 1"):
        trainee(OtherMean()).take_step(batch, 0)
    trainee(Alone()).take_step(batch, 0)
    trainee(Alike()).take_step(batch, 0)  # where both see the same


def test_who_leaves_keeps_its_own_error_where_the_others_are_gone() -> None:
    leave(First(), ValueError("the cause"))


def test_who_is_ready_hears_why_another_cannot_begin() -> None:
    assemble(First(Standing(0, 0, 0, 0, ())))
    with pytest.raises(PeerLost, match="rank 1: its disk is away"):
        assemble(First(Standing(0, 0, 1, 0, ())))


def test_torchrun_goes_on_with_a_run_that_began_as_the_given_file_says_and_with_no_other(
    distillog: Distillog, tmp_path: Path
) -> None:
    env, runs = {"TORCHELASTIC_RUN_ID": "none"}, str(tmp_path / "runs")
    sections = {**PLAIN, "train": {"steps": 5}}

    def start(lr: float, restarts: str = "0") -> Any:
        file = dataset_file(tmp_path, "one", **sections, optimizer={"lr": lr})
        return distillog.call(
            "runs", "start", str(file), "--folder", runs, **env | {"TORCHELASTIC_RESTART_COUNT": restarts}
        )

    assert start(0.1).exit_code == 0
    found = weights(tmp_path / "runs", "one")
    again = start(0.1)
    assert again.exit_code == 0
    assert "goes on from its newest checkpoint" in again.stderr
    assert weights(tmp_path / "runs", "one") == found
    other = start(0.5)
    assert other.exit_code == 1
    assert "there is a run of this name" in other.stderr
    # Its file was edited while it ran: torchrun, which starts it anew, cannot be told to take another name.
    anew = start(0.5, restarts="1")
    assert anew.exit_code == 0, anew.output
    assert weights(tmp_path / "runs", "one") == found


def dataset_file(folder: Path, name: str, **sections: Any) -> Path:
    """A run file without a stream."""
    path = folder / f"{name}.toml"
    path.write_text(replace(digits_run(**sections), name=name).as_toml())
    return path


@pytest.mark.faults
@pytest.mark.short
@pytest.mark.timeout(200)
def test_orders_of_many_batches_and_other_data_on_a_process_hold_nobody_up(
    distillog: Distillog, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    # An order has more batches than lie ready for a process that waits for rank 0.
    many = {"data": {"order_size": 256}, "train": {"batch_size": 8, "prefetch": 2, "steps": 60}}
    file = dataset_file(tmp_path, "many", **many)
    distillog.torchrun(2, "runs", "start", file, "--folder", runs, "--quiet").succeed()

    other = dataset_file(tmp_path, "other", data={"dataset": "support.user_data:by_rank", "view": {"name": "none"}})
    refused = distillog.torchrun(2, "runs", "start", other, "--folder", runs, "--quiet", restarts=3)
    assert refused.wait() != 0
    assert "is not the one that rank 0 has (another fingerprint)" in refused.stderr


def test_a_gradient_lies_in_memory_as_its_parameter_does() -> None:
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    layer(torch.rand(2, 3, 5, 5)).sum().backward()
    before = {name: each.grad.clone() for name, each in layer.named_parameters() if each.grad is not None}
    loss = torch.zeros(())
    summed(First(), list(layer.parameters()), loss, {}, (0, 1), 2, [])  # of two, where the other gives nothing
    for name, each in layer.named_parameters():
        assert each.grad is not None
        assert each.grad.stride() == each.stride()
        assert torch.equal(each.grad, before[name])
