"""Positions of an output that is shorter than its input, from recordings to a student, over a real Kafka."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.log_checker import assert_nothing_lost, check_labels
from support.processes import Distillog
from support.recordings import RATE, recordings
from support.small_runs import report, run_file
from support.strided import CLASSES, strided_model

from pipeline.onnx_runtime import open_session
from pipeline.streams import open_stream
from pipeline.views.check import check_data
from student_trainer.run.settings import run_settings

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.short]

FEATURES = {"window": 100, "hop": 40, "mels": 8, "rate": RATE, "stride": 4, "shift": 0.2, "noise": 0.02}
LENGTH = 1000
FRAMES = 1 + (LENGTH - 100) // 40


def test_a_student_learns_the_positions_of_a_strided_teacher_where_recordings_lie(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name = fresh_name("strided")
    model = strided_model(tmp_path / "strided.onnx", FEATURES["mels"], FRAMES)
    folder = recordings(tmp_path / "words", count=60, length=500)
    uri = f"audio:{folder}?rate={RATE}&length={LENGTH}"
    view = [word for key, value in FEATURES.items() for word in ("--view-param", f"{key}={value}")]
    create = ("topics", "create", name, "--dataset", uri, "--view", "log_mel", *view)
    distillog.succeed(*create, "--partitions", 4, "--order-size", 12, "--epochs", 4)
    output = ("--output", "letters=letters", "--positions", "letters=heard", "--codec", "letters=float32")
    added = distillog.succeed("topics", "add-teacher", name, "t", model, *output)
    assert f"axis 2 of [N, 6, {CLASSES}], at positions by heard" in added
    distillog.succeed("feed", name)
    distillog.succeed("teach", name, model, "--threads", 1, "--until-idle")

    stream = open_stream(distillog.settings, name)
    found = check_labels(distillog.settings, stream)
    assert_nothing_lost(found)
    session, fetcher = open_session(model), check_data(stream.manifest)
    counts: set[int] = set()
    for one in found.accepted.values():
        record: Any = one.record
        inputs = fetcher.fetch(record.sample_ids, record.view_seed).inputs
        (letters,) = record.outputs
        heard = inputs["heard"] != 0
        assert heard.shape == (12, 6)
        assert letters.chosen.counts.tolist() == heard.sum(axis=1).tolist()
        counts |= set(letters.chosen.counts.tolist())
        (wanted,) = session.run(None, {"log_mel": inputs["log_mel"]})
        # Whatever a codec takes off a row: differences are the same.
        (stored,) = letters.values().columns.values()
        assert np.allclose(stored - stored[:, :1], wanted[heard] - wanted[heard][:, :1], atol=1e-4)
    assert len(counts) > 1

    document = tomllib.loads(run_file(tmp_path, name).read_text())
    document |= {
        "student": {"name": "support.strided:student", "inputs": ["log_mel"], "classes": CLASSES},
        "losses": [{"name": "forward_kl", "against": "letters"}],
        "optimizer": {"name": "adamw", "lr": 0.02},
    }
    path = tmp_path / "student.toml"
    path.write_text(run_settings(document).as_toml())
    distillog.succeed("runs", "start", path, "--folder", tmp_path / "runs")
    assert report(tmp_path / "runs")["steps"] == 20
