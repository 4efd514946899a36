"""Models, data and views that are not what the stream is made of: one line each, before anything is labelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.models import classifier, quantised_dynamically, with_external_data
from support.processes import Distillog
from support.small_runs import run_file
from support.streams import records, stream_with_teacher

from pipeline.kafka.settings import KafkaSettings
from pipeline.names import soft_targets_topic
from pipeline.streams import Stream, open_stream

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.short, pytest.mark.timeout(300)]

DATASET = "mnist1d?split=train&n=320"
SHAPE = (1, 40)


@pytest.fixture
def stream(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], tmp_path: Path) -> Stream:
    model = classifier(tmp_path / "honest.onnx", SHAPE)
    return stream_with_teacher(kafka_settings, fresh_name("model"), model, DATASET)


@dataclass(frozen=True)
class Case:
    make: Callable[[Path], Path]
    words: tuple[str, ...]
    """of the one line"""
    added: bool = False
    """it can be added as a teacher, and is refused by `teach`"""


def _without_its_data(path: Path) -> Path:
    for file in with_external_data(classifier(path, SHAPE), "weights.bin"):
        file.unlink()
    return path


def _quantised(path: Path) -> Path:
    return quantised_dynamically(classifier(path.with_name("exact.onnx"), SHAPE), path)


def _text(path: Path) -> Path:
    path.write_text("this is no model")
    return path


MODELS = {
    "another class count": Case(lambda path: classifier(path, SHAPE, 7), ("7 classes", "has 10")),
    "probabilities declared as logits": Case(
        lambda path: classifier(path, SHAPE, tail="probabilities"), ("declared as logits", "--kind probabilities")
    ),
    "another shape of samples": Case(lambda path: classifier(path, (1, 41)), ("1x41", "1x40")),
    "its external data missing": Case(_without_its_data, ("weights.bin", "missing")),
    "no model at all": Case(_text, ("not an ONNX model",)),
    "no such file": Case(lambda path: path, ("no such file",)),
    "dropout left on": Case(
        lambda path: classifier(path, SHAPE, flaw="dropout_mask"), ("dropout", "evaluation mode"), added=True
    ),
    "batch statistics left on": Case(
        lambda path: classifier(path, SHAPE, flaw="batch_normalization"), ("batch statistics",), added=True
    ),
    "weights quantised dynamically": Case(_quantised, ("quantised dynamically", "statically"), added=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_teach_is_refused_in_one_line(
    name: str, distillog: Distillog, stream: Stream, tmp_path: Path
) -> None:
    case, model = MODELS[name], tmp_path / "other.onnx"
    case.make(model)
    add = ("topics", "add-teacher", stream.manifest.stream, "other", model)
    if case.added:
        distillog.succeed(*add)
        distillog.refuse("teach", stream.manifest.stream, model, "--until-idle", words=(model.name, *case.words))
        topic = soft_targets_topic(stream.manifest.stream, "other")
        assert not any(records(distillog.settings, topic).values())
    else:
        distillog.refuse(*add, words=case.words)
        assert list(open_stream(distillog.settings, stream.manifest.stream).teachers) == ["t"]


def test_a_model_whose_external_data_went_missing_since_is_refused(
    distillog: Distillog, stream: Stream, tmp_path: Path
) -> None:
    model = classifier(tmp_path / "large.onnx", SHAPE)
    (data,) = with_external_data(model, "large.bin")
    distillog.succeed("topics", "add-teacher", stream.manifest.stream, "large", model)
    data.unlink()
    distillog.refuse("teach", stream.manifest.stream, model, words=("large.bin", "missing"))


def test_a_model_that_is_no_teacher_of_the_stream_is_refused(
    distillog: Distillog, stream: Stream, tmp_path: Path
) -> None:
    model = classifier(tmp_path / "stranger.onnx", SHAPE, seed=1)
    name = stream.manifest.stream
    distillog.refuse("teach", name, model, words=("stranger.onnx", "is no teacher of stream", "add-teacher"))
    distillog.refuse("teach", name, model, "--teacher", "t", words=("is not the model of teacher 't'",))
    distillog.refuse("teach", name, model, "--teacher", "u", words=("has no teacher 'u'", "there: t"))


OTHER_DATA = {
    "fewer samples": ("mnist1d?split=train&n=310", ("num_samples is 310 here, 320 in the manifest",)),
    "other samples": ("mnist1d?split=train&n=320&seed=1", ("seed is 1 here, the default in the manifest",)),
    "the other split": ("mnist1d?split=test&n=320", ("split is test here, train in the manifest",)),
}


@pytest.mark.parametrize("name", OTHER_DATA)
def test_other_data_than_the_stream_was_made_of_is_refused_to_worker_and_student(
    name: str, distillog: Distillog, stream: Stream, tmp_path: Path
) -> None:
    dataset, words = OTHER_DATA[name]
    teach = ("teach", stream.manifest.stream, tmp_path / "honest.onnx", "--dataset", dataset)
    distillog.refuse(*teach, words=(dataset, *words))
    file = run_file(tmp_path, stream.manifest.stream, data={"dataset": dataset})
    distillog.refuse("runs", "start", file, "--folder", tmp_path / "runs", words=(dataset, *words))


def test_views_that_another_version_of_the_code_makes_are_refused_to_worker_and_student(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, model = fresh_name("view"), classifier(tmp_path / "honest.onnx", SHAPE)
    view = ("--view", "support.fault_data:brightened", "--view-param", "by=0.2")
    create = ("topics", "create", name, "--dataset", DATASET, "--partitions", 4)
    distillog.succeed(*create, *view)
    distillog.succeed("topics", "add-teacher", name, "t", model)
    distillog.refuse(*create, "--view", "none", words=("exists and differs", "view is", "brightened", "asked none"))
    distillog.refuse(*create, *view[:-1], "by=0.3", words=("exists and differs", "by is 0.2", "asked 0.3"))

    monkeypatch.setenv("BRIGHTENED_VERSION", "2")
    words = ("view", "brightened")
    distillog.refuse("teach", name, model, words=words)
    file = run_file(tmp_path, name)
    distillog.refuse("runs", "start", file, "--folder", tmp_path / "runs", words=words)


RUNS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a teacher that the stream has not": ({"teachers": {"name": "u"}}, ("has no teacher 'u'", "there: t")),
    "more steps than the stream holds": ({"train": {"steps": 1000}}, ("1000", "26")),
    "an evaluation on other data": (
        {"evaluation": {"dataset": "support.user_data:two_fields"}},
        ("support.user_data:two_fields", "first", "the student takes signal float32[1, 40]"),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_cannot_be_trained_is_refused_before_its_first_step(
    name: str, distillog: Distillog, stream: Stream, tmp_path: Path
) -> None:
    sections, words = RUNS[name]
    file = run_file(tmp_path, stream.manifest.stream, **sections)
    distillog.refuse("runs", "start", file, "--folder", tmp_path / "runs", words=words)
