"""Runs on texts: masked and causal language models, small and from one another, without any broker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_texts import WORDS, text_files, tokenizer_file
from train_runs import run

from schemas.errors import ConfigError
from student_trainer.launch import trained_data
from student_trainer.run.folder import read_settings
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.trained import load_student


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def books(tmp_path: Path) -> Path:
    return text_files(tmp_path / "books", 120)


def text_run(books: Path, view: dict[str, Any] | str = "masked", steps: int = 6, **sections: Any) -> RunSettings:
    """A language model of two layers that learns from hard labels of positions."""
    uri = f"text:{books}?length=24"
    document: dict[str, Any] = {
        "name": "r",
        "source": "dataset",
        "data": {"dataset": uri, "view": view, "order_size": 40, "labelled": 0},
        "student": {
            "name": "transformer",
            "inputs": ["input_ids", "attention_mask"],
            "width": 16,
            "positions": True,
            "tied": True,
        },
        "losses": [{"name": "cross_entropy", "labels": "labels"}],
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"batch_size": 16, "steps": steps, "log_every": 3},
        "checkpoint": {"every": 3, "keep": 9},
        "evaluation": {"dataset": uri, "metrics": [{"name": "position_nll", "labels": "labels"}]},
    }
    for section, values in sections.items():
        document[section] = document.get(section, {}) | values
    return run_settings(document)


@pytest.mark.parametrize("view", ["masked", "next_token"])
def test_a_language_model_learns_what_the_texts_repeat(books: Path, tmp_path: Path, view: str) -> None:
    causal = {"causal": view == "next_token", "dropout": 0.0}
    found = run(tmp_path / "r", text_run(books, view, 40, student=causal)).metrics
    assert found["position_nll"] < 0.7 * np.log(len(WORDS)), found


def test_a_resumed_run_of_tied_weights_has_the_same_bits(books: Path, tmp_path: Path) -> None:
    settings = text_run(books)
    whole = run(tmp_path / "whole", settings).weights_sha256
    assert load_student(tmp_path / "whole").network.num_classes == len(WORDS) + 5
    run(tmp_path / "cut", replace(settings, train=replace(settings.train, steps=3)))
    (tmp_path / "cut" / "run.toml").write_text((tmp_path / "whole" / "run.toml").read_text())
    assert run(tmp_path / "cut", read_settings(tmp_path / "cut")).weights_sha256 == whole


def test_a_small_one_begins_with_every_second_layer_of_a_large_runs(books: Path, tmp_path: Path) -> None:
    run(tmp_path / "large", text_run(books, student={"layers": 4}))
    weights = {"weights": {"path": str(tmp_path / "large"), "layers": {"0": 0, "1": 2}}}
    small = text_run(books, steps=3, student=weights, optimizer={"lr": 1e-12, "weight_decay": 0.0})
    run(tmp_path / "small", small)
    there, here = (load_student(tmp_path / name).model.state_dict() for name in ("large", "small"))
    for name, values in here.items():
        assert torch.allclose(values, there[name.replace("layers.1.", "layers.2.")], atol=1e-6), name


def test_another_vocabulary_is_refused_in_an_evaluation_and_for_first_weights(books: Path, tmp_path: Path) -> None:
    run(tmp_path / "r", text_run(books))
    other = tokenizer_file(tmp_path / "other.json", (*WORDS[::-1],))
    uri = f"text:{books}?length=24&tokenizer={other}"
    with pytest.raises(ConfigError, match=r"is read with the tokenizer .*, the student learned with .* \(SHA-256\)"):
        trained_data(load_student(tmp_path / "r"), uri)
    begun = {"weights": {"path": str(tmp_path / "r")}}
    evaluation = {"dataset": uri}
    with pytest.raises(ConfigError, match=r"learned with tokenizer .*, here it is .*has a row for each token"):
        run(tmp_path / "s", text_run(books, data={"dataset": uri}, student=begun, evaluation=evaluation))
