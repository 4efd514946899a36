"""Batches that are taken in parts, and gradients that are clipped."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from train_runs import digits_run, run

from schemas.errors import ConfigError
from student_trainer.preparation import choose_device

PLAIN = {"student": {"dropout": 0.0}}


def losses(path: Path) -> list[float]:
    return [line["loss"] for line in lines(path)]


def lines(path: Path) -> list[dict[str, Any]]:
    found = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if "loss" in line]


@pytest.mark.parametrize("rows", [1, 7, 49, 50])
def test_a_batch_in_parts_teaches_what_the_whole_one_does(tmp_path: Path, rows: int) -> None:
    whole = run(tmp_path / "whole", digits_run(**PLAIN))
    parts = run(tmp_path / "parts", digits_run(**PLAIN, train={"micro_batch": rows}))
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    for name, weights in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], weights, rtol=1e-4, atol=1e-5)
    assert (parts.weights_sha256 == whole.weights_sha256) == (rows == 50)


def test_a_run_in_parts_resumes_to_its_own_bits_and_says_so_where_the_parts_are_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = digits_run(train={"micro_batch": 16}, checkpoint={"every": 1})
    whole = run(tmp_path / "whole", settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    for path in (tmp_path / "whole", tmp_path / "other"):
        for number in range(5, 13):
            shutil.rmtree(path / f"checkpoints/step-{number:08d}", ignore_errors=True)
    assert run(tmp_path / "whole", settings).weights_sha256 == whole.weights_sha256
    assert "micro_batch" not in caplog.text
    with caplog.at_level(logging.WARNING):
        again = run(tmp_path / "other", digits_run(train={"micro_batch": 10}, checkpoint={"every": 1}))
    assert again.finished
    assert "train.micro_batch was 16, is 10" in caplog.text


def test_gradients_beyond_the_norm_are_scaled_down_to_it(tmp_path: Path) -> None:
    plain = {"name": "sgd", "lr": 0.5, "momentum": 0.0}

    def moved(name: str, **optimizer: Any) -> tuple[float, list[dict[str, Any]]]:
        """How far one step moves the weights."""
        settings = digits_run(
            **PLAIN, optimizer=plain | optimizer, schedule={"name": "constant"}, train={"steps": 1, "log_every": 1}
        )
        first = run(tmp_path / f"{name}-0", digits_run(**PLAIN, optimizer=plain | {"lr": 1e-30}, train={"steps": 1}))
        after = run(tmp_path / name, settings)
        before, behind = (torch.cat([w.flatten() for w in each.model.parameters()]) for each in (first, after))
        return (behind - before).norm().item() / 0.5, lines(tmp_path / name)

    free, [line] = moved("free")
    assert "gradient_norm" not in line
    clipped, [line] = moved("clipped", clip_norm=free / 4)
    assert line["gradient_norm"] == pytest.approx(free, rel=1e-3)
    assert clipped == pytest.approx(free / 4, rel=1e-3)
    loose, [line] = moved("loose", clip_norm=free * 4)
    assert loose == pytest.approx(free, rel=1e-3)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "micro_batch", 0),
        ("train", "micro_batch", -3),
        ("optimizer", "clip_norm", 0),
        ("optimizer", "clip_norm", -1.0),
    ],
)
def test_what_is_no_size_and_no_norm_is_refused(section: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be"):
        digits_run(**{section: {key: value}})


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    assert choose_device(digits_run()) == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank, device in (("0", "cuda:0"), ("1", "cuda:1")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert choose_device(digits_run()) == torch.device(device)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="process 3 of this machine, which has 2 GPUs"):
        choose_device(digits_run())
    assert choose_device(digits_run(train={"device": "cpu"})) == torch.device("cpu")
