"""Who publishes, and what: a run as it is without `[publish]`, its average, a peer, one of several processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.moving import images, label_all, moving_stream, publishing, student_model
from support.processes import Distillog
from support.small_runs import checkpoints, report, run_file, weights

from pipeline.onnx_runtime import open_session
from pipeline.streams import open_stream
from schemas.records import Generation
from student_trainer.checkpoint import load_checkpoint
from student_trainer.learning.average import averaged
from student_trainer.learning.students import Network, build_student
from student_trainer.learning.weights import tensors_sha256
from student_trainer.run.student_settings import StudentSettings

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

EVERY = 100
"""Of 162 orders: one generation."""

FEW = {"every": 0, "keep": 3}
"""Checkpoints: where the generation is published, and at the end."""

WIDE = [{"name": "wide", "student": {"name": "mlp", "hidden": [24], "dropout": 0.1}}]
LEARN_TOGETHER = [
    {"name": "forward_kl", "temperature": 2.0, "against": "t.logits"},
    {"name": "forward_kl", "temperature": 2.0, "against": "peers.logits", "key": "peers"},
]


@pytest.fixture
def stream(distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path) -> str:
    """Labelled whole."""
    name, model = fresh_name("published"), student_model(tmp_path / "first.onnx")
    moving_stream(distillog.settings, name, model)
    label_all(distillog, name, model)
    return name


def one_generation(distillog: Distillog, stream: str) -> Generation:
    (found,) = open_stream(distillog.settings, stream).lineage("t").generations
    return found


def onnx_logits(generation: Generation) -> NDArray[np.float32]:
    (logits,) = open_session(Path(generation.model), threads=1).run(["logits"], {"image": images()})
    return np.asarray(logits)


def logits_of(state: dict[str, Any], hidden: int) -> NDArray[np.float32]:
    """[8, 10]: what a student of these weights says of the first digits."""
    student = build_student(
        StudentSettings("mlp", params={"hidden": [hidden], "dropout": 0.1}), Network.of("image", (1, 8, 8), 10), seed=0
    )
    student.load_state_dict(state)
    student.eval()
    with torch.no_grad():
        return student(torch.from_numpy(images())).numpy()  # type: ignore[no-any-return]


def test_a_run_that_publishes_its_average_learns_as_without_publishing_and_so_does_its_replay(
    distillog: Distillog, stream: str, tmp_path: Path
) -> None:
    runs, sections = tmp_path / "runs", {"train": {"ema": 0.9}, "checkpoint": FEW}
    files = {
        "plain": run_file(tmp_path, stream, "plain", **sections),
        "student": publishing(tmp_path, stream, every=EVERY, **sections),
        "replay": publishing(tmp_path, stream, "replay", every=EVERY, **sections),
    }
    for file in files.values():
        distillog.succeed("runs", "start", file, "--folder", runs, "--quiet")
    assert weights(runs, "student") == weights(runs, "plain") == weights(runs, "replay")
    ends = {run: load_checkpoint(checkpoints(runs, run)[-1].parent)[1] for run in files}
    for run in ("student", "replay"):
        for part in ("model", "average"):
            assert tensors_sha256(ends[run][part]) == tensors_sha256(ends["plain"][part])
    assert report(runs)["generations"]["published"] == [1]
    assert report(runs, "replay")["generations"]["compared"] == [1]
    assert "generations" not in report(runs, "plain")
    # The file is of the average when it was published, not of the weights that learned it.
    generation = one_generation(distillog, stream)
    shutil.rmtree(checkpoints(runs)[-1])
    at, state = load_checkpoint(checkpoints(runs)[-1].parent)
    assert at.step == generation.step
    assert generation.weights_sha256 == tensors_sha256(averaged(state)) != tensors_sha256(state["model"])
    said = onnx_logits(generation)
    assert said == pytest.approx(logits_of(averaged(state), 16), abs=1e-5)
    assert abs(said - logits_of(state["model"], 16)).max() > 1e-3


def test_the_second_of_two_peers_publishes(distillog: Distillog, stream: str, tmp_path: Path) -> None:
    runs, sections = tmp_path / "runs", {"peers": WIDE, "losses": LEARN_TOGETHER, "checkpoint": FEW}
    for run in ("student", "replay"):
        file = publishing(tmp_path, stream, run, every=EVERY, publish={"peer": "wide"}, **sections)
        distillog.succeed("runs", "start", file, "--folder", runs, "--quiet")
    found, again, generation = report(runs), report(runs, "replay"), one_generation(distillog, stream)
    assert found["generations"]["published"] == again["generations"]["compared"] == [1]
    assert (again["weights_sha256"], again["peers"]) == (found["weights_sha256"], found["peers"])
    shutil.rmtree(checkpoints(runs)[-1])
    at, state = load_checkpoint(checkpoints(runs)[-1].parent)
    assert at.step == generation.step
    wide = state["peers"]["wide"]["model"]
    assert generation.weights_sha256 == tensors_sha256(wide)
    assert onnx_logits(generation) == pytest.approx(logits_of(wide, 24), abs=1e-5)


@pytest.mark.faults
@pytest.mark.short
def test_of_two_processes_the_first_publishes_and_a_resume_and_a_replay_compare(
    distillog: Distillog, stream: str, tmp_path: Path
) -> None:
    runs, sections = tmp_path / "runs", {"checkpoint": FEW, "train": {"batch_size": 13}}
    files = {run: publishing(tmp_path, stream, run, every=EVERY, **sections) for run in ("student", "replay")}
    distillog.torchrun(2, "runs", "start", files["student"], "--folder", runs, "--quiet").succeed(240)
    found, generation = report(runs), one_generation(distillog, stream)
    assert found["generations"] == {"published": [1], "compared": [], "missing": []}
    assert [path.name[:8] for path in sorted((tmp_path / "generations").iterdir())] == ["t-000000", "t-000001"]
    end = checkpoints(runs)[-1]
    shutil.rmtree(end)
    assert load_checkpoint(end.parent)[0].step == generation.step
    distillog.torchrun(2, "runs", "resume", "student", "--folder", runs, "--quiet").succeed(240)
    distillog.torchrun(2, "runs", "start", files["replay"], "--folder", runs, "--quiet").succeed(240)
    for run in ("student", "replay"):
        again = report(runs, run)
        assert again["weights_sha256"] == found["weights_sha256"]
        assert again["generations"] == {"published": [], "compared": [1], "missing": []}
    assert one_generation(distillog, stream) == generation
    assert len(list((tmp_path / "generations").iterdir())) == 2
