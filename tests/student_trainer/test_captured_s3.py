"""Runs that learn from captured files in an S3 server: to the same bits as from a folder, checkpoint and resume."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.captures import captured
from support.object_store import s3_server, upload
from support.streams import fetcher, manifest

from pipeline.captured.capturing import CaptureForm
from pipeline.captured.folder import CapturedFolder
from pipeline.cli import main
from pipeline.datasets.fingerprint import fingerprint
from pipeline.sequence import Sequence
from pipeline.streams import Stream
from pipeline.views.probe import make_probe
from schemas.avro import REGISTRY
from schemas.errors import ConfigError, DecodeError
from schemas.records import Output, SoftTargets, Teacher, TeacherInput, TeacherOutput
from student_trainer.launch import launch
from student_trainer.own_loop.labelled_batches import labelled_batches
from student_trainer.run.folder import RunFolder
from student_trainer.run.settings import RunSettings, run_settings

URL = "s3://bucket/labels"
LOOP: dict[str, Any] = {"batch_size": 24, "device": "cpu"}


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with s3_server() as environment:
        yield environment


@pytest.fixture(scope="module")
def stream() -> Stream:
    source = fetcher()
    facts = {"dataset_fingerprint": fingerprint(source.dataset), "view_probe": make_probe(source)}
    made = manifest(source, schema_fingerprints=REGISTRY.fingerprints(), **facts)
    outputs = (TeacherOutput.of_classes("y", "logits", 10),)
    inputs = (TeacherInput("x", "image", "float32", "nchw", 1.0, ()),)
    return Stream(
        made,
        {
            name: Teacher(made.stream_id, name, secrets.token_hex(32), "m.onnx", inputs, outputs, 32)
            for name in ("t", "u")
        },
    )


def soft_targets(stream: Stream, teacher: str) -> Iterator[SoftTargets]:
    orders = Sequence.of(stream.manifest)
    random = np.random.default_rng(ord(teacher))
    for sequence in range(orders.num_orders):
        sample_ids, epoch = orders.sample_ids(sequence), orders.epoch_of(sequence)
        logits = random.standard_normal((len(sample_ids), 10), np.float32)
        yield SoftTargets(
            stream_id=stream.manifest.stream_id,
            sequence=sequence,
            epoch=epoch,
            sample_ids=sample_ids,
            view_seed=orders.view_seed(epoch),
            kept_rows=None,
            teacher=teacher,
            teacher_sha256=stream.teacher(teacher).sha256,
            outputs=(Output.of("logits", logits, stream.manifest.codec),),
        )


@pytest.fixture(scope="module")
def labels(stream: Stream, s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labels of two teachers, in a folder, and the same behind `URL`."""
    values = [each for teacher in stream.teachers for each in soft_targets(stream, teacher)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        folder = captured(
            tmp_path_factory.mktemp("s3") / "labels", stream, values, CaptureForm("null", max_file_bytes=30_000)
        )
    upload(folder, URL)
    return folder


def settings(files: Path | str, **train: Any) -> RunSettings:
    return run_settings(
        {
            "name": "r",
            "source": "files",
            "data": {"files": str(files)},
            "student": {"name": "mlp", "hidden": [16], "dropout": 0.1},
            "teachers": [{"name": "t", "weight": 2.0}, {"name": "u"}],
            "losses": [{"name": "forward_kl", "temperature": 2.0}],
            "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
            "train": {"batch_size": 24, "passes": 2, **train},
            "checkpoint": {"every": 20},
        }
    ).placed()


def no_kafka() -> Any:
    raise AssertionError


def weights(path: Path, of: RunSettings) -> str:
    resume = (path / "run.toml").exists()
    with RunFolder.open(path) if resume else RunFolder.create(path, of) as folder:
        return launch(of, folder, no_kafka, resume=resume).weights_sha256


def test_a_run_learns_the_same_from_s3_and_goes_on_from_a_checkpoint(
    labels: Path, s3: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        whole = weights(tmp_path / "local", settings(labels))
        part = weights(tmp_path / "s3", settings(URL, steps=37))
        assert weights(tmp_path / "s3", settings(URL)) == whole != part
    written = caplog.text + "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert URL in written
    assert s3["AWS_SECRET_ACCESS_KEY"] not in written
    assert s3["AWS_ACCESS_KEY_ID"] not in written


def test_captured_files_in_s3_are_checked_from_the_command_line(labels: Path, stream: Stream) -> None:
    done = CliRunner().invoke(main, ["capture", "s", URL, "--check", "--quiet"])
    assert done.exit_code == 0, done.output
    assert f"{URL}: " in done.output
    assert "bytes are as listed: 41 of 41 orders of teacher t, 41 of 41 orders of teacher u" in done.output


def test_a_loop_of_ones_own_and_a_replay_read_from_s3(labels: Path) -> None:
    whole = [
        [batch.targets["t"]["logits"].logits for batch in labelled_batches(files=each, teachers="t", **LOOP)]
        for each in (labels, URL)
    ]
    assert all(map(torch.equal, *whole))
    assert len(whole[0]) == len(whole[1]) > 10
    done = CliRunner().invoke(main, ["replay", "s3://bucket/nothing", "--to", "again"])
    assert "error: s3://bucket/nothing: holds no captured soft targets" in done.stderr


def test_a_capture_into_a_url_is_refused_with_what_to_do() -> None:
    done = CliRunner().invoke(main, ["capture", "s", URL])
    assert done.exit_code == 1
    assert f"error: {URL}: is a URL" in done.stderr
    assert "capture into a folder, then upload what lies there, contents.json last" in done.stderr


def test_what_s3_says_of_what_is_missing_is_one_line(labels: Path, s3: dict[str, str]) -> None:
    for url in ("s3://bucket/nothing", "s3://nobody/labels"):
        with pytest.raises(ConfigError, match=f"{url}: holds no captured soft targets"):
            CapturedFolder(url)
    files = upload(labels, "s3://bucket/cut")
    files.rm("bucket/cut/t-00001.avro")
    files.pipe("bucket/cut/u.index", files.cat_file("bucket/cut/u.index")[:-1])
    folder = CapturedFolder("s3://bucket/cut")
    for name, says in (("t", r"cut/t-00001\.avro: is missing"), ("u", r"cut/u\.index: is cut")):
        with pytest.raises(DecodeError, match=says):
            folder.teacher(name)


def test_any_order_of_a_large_file_in_s3_is_opened_by_what_it_needs(
    stream: Stream, tmp_path: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ranges of the file, whatever its size."""
    folder = captured(tmp_path / "c", stream, soft_targets(stream, "t"), CaptureForm("null", 1 << 20))
    files = upload(folder, "s3://bucket/ranges")
    size = len(files.cat_file("bucket/ranges/t-00000.avro"))
    real, read = type(files)._cat_file, []

    async def cat_file(self: Any, path: str, *arguments: Any, **more: Any) -> bytes:
        found: bytes = await real(self, path, *arguments, **more)
        read.append(len(found))
        return found

    monkeypatch.setattr(type(files), "_cat_file", cat_file)
    opened = CapturedFolder("s3://bucket/ranges").teacher("t")
    read.clear()
    opened.read(30)
    assert len(read) == 2  # the entry of the index, and the block
    assert sum(read) < size / 20
    opened.close()
