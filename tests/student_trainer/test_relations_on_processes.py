"""Losses that compare rows, averages of the weights, a past and peers, on processes as torchrun starts them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.models import classifier
from support.processes import Distillog
from support.small_runs import checkpoints, run_file, weights

from student_trainer.checkpoint import load_checkpoint

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(300)]
PEER = '[{name="wide", student={name="mlp", hidden=[24], dropout=0.0}}]'


def losses(runs: Path, name: str) -> list[float]:
    lines = map(json.loads, (runs / name / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


RELATIONS = ("--set", "losses.0.name=dist")
OWN = """
[[losses]]
name = "forward_kl"
key = "average"
against = "average.logits"

[[losses]]
name = "logit_mse"
against = "past.logits"
weight = 0.1

[[losses]]
name = "reverse_kl"
against = "peers.logits"
"""


# Losses that pull at each other make more of what float32 rounds.
@pytest.mark.parametrize(
    ("more", "options", "train", "off"),
    [
        pytest.param("", RELATIONS, {"steps": 40}, 1e-4, id="relations"),
        pytest.param(OWN, (*RELATIONS, "--set", f"peers={PEER}"), {"steps": 120, "passes": 2}, 1e-3, id="own"),
    ],
)
def test_two_processes_compare_all_rows_and_learn_as_one_does(
    distillog: Distillog,
    fresh_name: Callable[[str], str],
    tmp_path: Path,
    more: str,
    options: tuple[str, ...],
    train: dict[str, int],
    off: float,
) -> None:
    stream, model, runs = fresh_name("relations"), classifier(tmp_path / "m.onnx"), tmp_path / "runs"
    create = ("topics", "create", stream, "--dataset", "digits?split=train", "--partitions", 4, "--order-size", 25)
    distillog.succeed(*create)
    distillog.succeed("topics", "add-teacher", stream, "t", model)
    distillog.succeed("feed", stream)
    distillog.start("teach", stream, model, "--threads", 1, "--until-idle").succeed()
    student, asked = {"name": "mlp", "hidden": [16], "dropout": 0.0}, {"batch_size": 13, "ema": 0.9, **train}
    files = [run_file(tmp_path, stream, name, student=student, train=asked) for name in ("one", "two", "again")]
    for file in files:
        file.write_text(file.read_text() + more)
    start = ("--folder", runs, "--quiet", *options)
    distillog.succeed("runs", "start", files[0], *start)
    for file in files[1:]:
        distillog.torchrun(2, "runs", "start", file, *start).succeed()
    assert losses(runs, "two") == pytest.approx(losses(runs, "one"), rel=off)
    assert weights(runs, "again") == weights(runs, "two")
    one, two = (load_checkpoint(checkpoints(runs, name)[-1].parent)[1]["average"] for name in ("one", "two"))
    for name, each in one.items():
        assert two[name].numpy() == pytest.approx(each.numpy(), abs=off)
