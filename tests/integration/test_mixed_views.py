"""Samples that a view mixes, labelled by a teacher and learned from live, replayed, from files and on two processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import classifier
from support.processes import Distillog
from support.small_runs import run_file, weights

from pipeline.captured.folder import CapturedFolder
from pipeline.datasets import open_dataset
from pipeline.views.fetch import Fetcher
from schemas.records import SoftTargets
from student_trainer.own_loop.labelled_batches import labelled_batches
from student_trainer.run.settings import load_run, run_settings
from teacher_service.models.session import OnnxTeacher

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

DATASET = "digits?split=train"
VIEW = ("--view", "crop_flip+mixup", "--view-param", "crop_flip.min_area=0.6", "--view-param", "mixup.alpha=0.4")
STUDENT = {"name": "mlp", "hidden": [16], "dropout": 0.0}
LOSSES = [{"name": "forward_kl", "temperature": 2.0}, {"name": "cross_entropy", "weight": 0.3}]
LABELLED = {"labelled": 500, "label_seed": 3}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return classifier(tmp_path / "m.onnx")


def make_stream(distillog: Distillog, name: str, model: Path) -> None:
    create = ("topics", "create", name, "--dataset", DATASET, "--partitions", 3, "--order-size", 25)
    distillog.succeed(*create, *VIEW)
    added = distillog.succeed("topics", "add-teacher", name, "t", model)
    assert "of 256 labelled samples" in added  # seen alone, where each has one class
    distillog.succeed("feed", name)


def file(tmp_path: Path, stream: str, run: str, **sections: Any) -> Path:
    data = {"stream": stream, **LABELLED}
    return run_file(tmp_path, stream, run, student=STUDENT, losses=LOSSES, data=data, **sections)


@pytest.mark.faults
@pytest.mark.short
def test_mixed_samples_are_labelled_and_learned_from_live_replayed_and_from_files_to_the_same_bits(
    distillog: Distillog, fresh_name: Callable[[str], str], model: Path, tmp_path: Path
) -> None:
    name, runs, folder = fresh_name("mixed"), tmp_path / "runs", tmp_path / "labels"
    make_stream(distillog, name, model)
    to = ("--folder", runs, "--quiet")
    live = distillog.start("runs", "start", file(tmp_path, name, "live"), *to)
    distillog.succeed("teach", name, model, "--threads", 1, "--loaders", 2, "--until-idle")
    live.succeed()
    distillog.succeed("runs", "start", file(tmp_path, name, "replayed", train={"loaders": 3}), *to)
    distillog.succeed("capture", name, folder, "--quiet")
    from_files = ("--set", "source=files", "--set", f"data.files={folder}")
    distillog.succeed("runs", "start", file(tmp_path, name, "files"), *from_files, *to)
    assert weights(runs, "replayed") == weights(runs, "files") == weights(runs, "live")
    assert "52 of 52 orders are labelled" in distillog.succeed("verify", name, model, "--threads", 1)
    check_labels_are_of_the_mix(folder, model)
    check_a_loop_of_ones_own(folder)


def test_two_processes_learn_from_mixed_labels_what_one_does(
    distillog: Distillog, fresh_name: Callable[[str], str], model: Path, tmp_path: Path
) -> None:
    name, runs = fresh_name("mixed"), tmp_path / "runs"
    make_stream(distillog, name, model)
    distillog.succeed("teach", name, model, "--threads", 1, "--until-idle")
    to, train = ("--folder", runs, "--quiet"), {"micro_batch": 4}
    distillog.succeed("runs", "start", file(tmp_path, name, "one", train=train), *to)
    distillog.torchrun(2, "runs", "start", file(tmp_path, name, "two", train=train), *to).succeed(240)
    assert losses(runs, "two") == pytest.approx(losses(runs, "one"), rel=1e-4)


def test_two_processes_draw_partners_from_the_labelled_alone_as_one_does(distillog: Distillog, tmp_path: Path) -> None:
    runs, document = tmp_path / "runs", load_run(file(tmp_path, "s", "hard")).as_dict()
    only = {"dataset": DATASET, "view": {"name": "cutmix", "alpha": 1.0}, "labelled": 90, "only_labelled": True}
    document |= {"source": "dataset", "teachers": [], "losses": [{"name": "cross_entropy"}], "data": only}
    document["train"] |= {"steps": 12}
    paths = [tmp_path / f"{name}.toml" for name in ("one", "two")]
    for path in paths:
        path.write_text(run_settings(document | {"name": path.stem}).as_toml())
    distillog.succeed("runs", "start", paths[0], "--folder", runs, "--quiet")
    distillog.torchrun(2, "runs", "start", paths[1], "--folder", runs, "--quiet").succeed(240)
    assert losses(runs, "two") == pytest.approx(losses(runs, "one"), rel=1e-4)


def losses(runs: Path, name: str) -> list[float]:
    lines = map(json.loads, (runs / name / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def check_labels_are_of_the_mix(folder: Path, model: Path) -> None:
    """Each stored row is what the model gives for the sum of two samples, each seen alone."""
    files = CapturedFolder(folder).teacher("t")
    fetcher = Fetcher(open_dataset(DATASET), files.manifest.view)
    teacher = OnnxTeacher(model, files.teacher, threads=1)
    far = 0.0
    for sequence in (0, 30):
        record = SoftTargets.decode(files.read(sequence).value, "it")
        found = fetcher.mixture(record.sample_ids, record.view_seed)
        assert found is not None
        own, partner = (
            fetcher.fetch(ids, record.view_seed, mix=False).inputs["image"] for ids in (record.sample_ids, found[0])
        )
        share = found[1].share.astype(np.float32)[:, None, None, None]
        stored = record.outputs[0].values().logits  # type: ignore[attr-defined]
        here = teacher.label({"image": share * own + (1 - share) * partner})["logits"]
        alone = teacher.label({"image": own})["logits"]
        assert np.allclose(centred(stored), centred(here), atol=0.02)
        far = max(far, float(abs(centred(stored) - centred(alone)).max()))
    assert far > 0.2
    files.close()


def centred(logits: Any) -> Any:
    return logits - logits.mean(axis=1, keepdims=True)


def check_a_loop_of_ones_own(folder: Path) -> None:
    known: dict[str, Any] = {"files": folder, "teachers": "t", "batch_size": 12, "device": "cpu", **LABELLED}
    whole = list(labelled_batches(**known))
    parts = [list(labelled_batches(**known, rank=rank, world=2)) for rank in (0, 1)]
    shown = 0.0
    for batch, *halves in zip(whole, *parts, strict=True):
        assert batch.halves is not None
        for field in ("own", "partner", "share"):
            there = [getattr(each.halves, field) for each in halves]
            assert torch.equal(torch.cat(there), getattr(batch.halves, field))
        assert torch.equal(torch.cat([each.inputs["image"] for each in halves]), batch.inputs["image"])
        share = batch.halves.share
        shown += float(share[batch.halves.own >= 0].sum() + (1 - share)[batch.halves.partner >= 0].sum())
    assert shown / (12 * len(whole)) == pytest.approx(500 / 1297, rel=0.1)
