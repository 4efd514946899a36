"""A folder of images and a model of somebody else's: every wrong way to declare it is refused with the right one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.colours import CLASSES, image_folder, images, nearest_colour
from support.log_checker import assert_nothing_lost, check_labels
from support.models import classifier
from support.processes import Distillog
from support.streams import OPTIONS, fetcher

from pipeline import create
from pipeline.datasets import open_dataset
from pipeline.streams import open_stream
from schemas.avro import REGISTRY

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

NORMALISATION = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"images:{image_folder(tmp_path_factory.mktemp('colours'))}?size=16"


def make_stream(distillog: Distillog, name: str, dataset: str) -> None:
    distillog.succeed("topics", "create", name, "--dataset", dataset, "--order-size", 20, "--partitions", 2)


TEACHERS: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "that wants [0, 1]": ({}, ("--scale", "1"), "--scale 1/255"),
    "that wants bytes": ({"top": 255.0}, ("--scale", "1/255"), "--scale 1"),
    "that wants a normalised range": (
        {"normalised": True},
        ("--scale", "1/255"),
        f"--scale 1/255 {' '.join(NORMALISATION)}",
    ),
    "that wants a normalised range and gets bytes": (
        {"normalised": True},
        ("--input", "image=x*1"),
        f"--input image=x --scale 1/255 {' '.join(NORMALISATION)}",
    ),
    "that wants channels last": (
        {"nhwc": True, "open_shape": True},
        ("--scale", "1/255", "--layout", "nchw"),
        "--scale 1/255 --layout nhwc",
    ),
    "that wants blue first": ({"bgr": True}, ("--scale", "1/255"), "--scale 1/255 --channel-order bgr"),
}


@pytest.mark.parametrize("kind", TEACHERS)
def test_every_wrong_declaration_is_refused_with_the_right_one(
    kind: str, dataset: str, distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    build, wrong, right = TEACHERS[kind]
    name, model = fresh_name("colours"), nearest_colour(tmp_path / "m.onnx", **build)
    make_stream(distillog, name, dataset)
    add = ("topics", "add-teacher", name, "t", model)
    refused = distillog.refuse(*add, *wrong, words=("of 120 labelled samples as declared", "100.0%", "--as-declared"))
    command = refused.split("`")[1]
    assert command == f"distillog topics add-teacher {name} t {model} {right}"
    assert json.loads(distillog.succeed("topics", "describe", name, "--json"))["teachers"] == []

    added = distillog.succeed(*shlex.split(command)[1:])
    assert f"added teacher t of stream {name}" in added
    assert "accuracy as declared: 100.0% of 120 labelled samples" in added
    assert "already there, the same" in distillog.succeed(*shlex.split(command)[1:])
    distillog.succeed("feed", name)
    distillog.succeed("teach", name, model, "--until-idle", "--threads", 1)
    labels = check_labels(distillog.settings, open_stream(distillog.settings, name))
    assert_nothing_lost(labels)
    truth = open_dataset(dataset)
    for label in labels.accepted.values():
        logits = label.record.output("logits").values().logits
        assert np.array_equal(logits.argmax(axis=1), truth.labels(label.record.sample_ids))


def test_a_way_that_an_older_stream_cannot_hold_is_named_with_the_ways_out(
    dataset: str,
    distillog: Distillog,
    fresh_name: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    older = REGISTRY.fingerprints() | {"teacher": REGISTRY.fingerprint("teacher", 1).hex()}
    monkeypatch.setattr(create, "REGISTRY", SimpleNamespace(fingerprints=lambda: older))
    name, model = fresh_name("colours"), nearest_colour(tmp_path / "m.onnx", normalised=True)
    create.create_stream(distillog.settings, name, fetcher(dataset), dataset, OPTIONS)
    add = ("topics", "add-teacher", name, "t", model, "--scale", "1/255")
    no_room = ("has no room for mean, std", "make it anew, or put that into the model")
    refused = distillog.refuse(*add, words=("for 100.0% by", *no_room, "--as-declared"))
    assert refused.split("`")[1] == f"--scale 1/255 {' '.join(NORMALISATION)}"
    distillog.refuse(*add, *NORMALISATION, words=("has no room for mean, std", "make it anew"))
    bytes_for_unit = nearest_colour(tmp_path / "u.onnx")
    refused = distillog.refuse(*add[:3], "u", bytes_for_unit, "--scale", "1", words=("for 100.0% if added by",))
    assert "added" in distillog.succeed(*shlex.split(refused.split("`")[1])[1:])


def test_describe_shows_how_a_teacher_is_fed(
    dataset: str, distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name, model = fresh_name("colours"), nearest_colour(tmp_path / "m.onnx", normalised=True, bgr=True)
    make_stream(distillog, name, dataset)
    options = ("--scale", "1/255", *NORMALISATION, "--channel-order", "bgr")
    added = distillog.succeed("topics", "add-teacher", name, "t", model, *options)
    how = "*1/255-0.485,0.456,0.406/0.229,0.224,0.225, bgr"
    assert f"image -> x: float32, nchw, {how} (layout guessed by the shape); logits = y: logits, 6 classes; " in added
    described = distillog.succeed("topics", "describe", name).splitlines()
    at = next(place for place, line in enumerate(described) if line.startswith("teacher"))
    assert [line.strip() for line in described[at + 1 : at + 4]] == [
        f"image -> x: float32, nchw, {how}",
        "logits = y: logits, 6 classes",
        "batches of 20",
    ]
    (teacher,) = json.loads(distillog.succeed("topics", "describe", name, "--json"))["teachers"]
    (fed,) = teacher["inputs"]
    assert (fed["mean"], fed["channel_order"]) == ([0.485, 0.456, 0.406], "bgr")


def test_a_teacher_is_taken_as_declared_on_demand(
    dataset: str, distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name, model = fresh_name("colours"), nearest_colour(tmp_path / "m.onnx")
    make_stream(distillog, name, dataset)
    add = ("topics", "add-teacher", name, "t", model)
    distillog.refuse(*add, words=("takes float32, field 'image' gives uint8", "--scale 1/255", "--scale 1 "))
    wrong = (*add, "--scale", "1")
    taken = distillog.succeed(*wrong, "--as-declared")
    assert "accuracy as declared: 33.3% of 120 labelled samples" in taken
    assert "  --scale 1/255: 100.0% of 120" in taken
    answer = json.loads(distillog.succeed("topics", "add-teacher", name, "u", model, "--scale", "1/255", "--json"))
    assert (answer["added"], answer["accuracy"]) == (True, 1.0)


def test_a_teacher_that_is_right_for_the_commonest_class_alone_is_called_so_where_that_is_nearly_all(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name, model = fresh_name("colours"), nearest_colour(tmp_path / "m.onnx")
    make_stream(distillog, name, "support.colours:colours?count=400&only=5&rare=80")
    add = ("topics", "add-teacher", name, "t", model, "--scale")
    added = distillog.call(*add, "1")
    assert added.exit_code == 0, added.stderr
    assert "accuracy as declared: 98.0% of 256 labelled samples\n  --scale 1/255: 100.0% of 256\n" in added.stdout
    warning = (
        "warning: as declared, m.onnx is no better than always naming the commonest class, which is right for 98.0%"
    )
    assert added.stderr.startswith(warning)
    assert added.stderr.count("\n") == 1
    right = distillog.call(*add[:3], "right", model, "--scale", "1/255")
    assert (right.exit_code, right.stderr) == (0, "")
    quiet = distillog.call(*add[:3], "u", model, "--scale", "1", "--json")
    assert json.loads(quiet.stdout)["accuracy"] == pytest.approx(0.98, abs=0.001)
    assert quiet.stderr == added.stderr


def test_a_teacher_whose_outputs_are_not_finite_is_refused_where_workers_would_stop(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name, model = fresh_name("digits"), classifier(tmp_path / "m.onnx", nan_above=0.32)
    make_stream(distillog, name, "digits?split=train")
    add = ("topics", "add-teacher", name, "t", model)
    holes = r"outputs are not finite (NaN or infinity) for "
    refused = distillog.refuse(*add, words=(holes, " of 256 samples; workers stop", "--as-declared"))
    taken = distillog.call(*add, "--as-declared")
    assert taken.exit_code == 0, taken.stderr
    count = refused.split(holes)[1].split()[0]
    assert f"warning: as declared, m.onnx's {holes}{count} of 256 samples\n" in taken.stderr


def test_without_labels_every_way_is_shown_and_none_refused(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    np.save(folder / "image.npy", images(np.repeat([4, 5], 30)))
    name, model = fresh_name("colours"), nearest_colour(tmp_path / "m.onnx")
    created = distillog.call("topics", "create", name, "--dataset", f"npy:{folder}", "--partitions", 2)
    assert "does not say how many classes it has" in created.stderr
    add = ("topics", "add-teacher", name, "t", model, "--scale", "1")
    distillog.refuse(*add, "--classes", 7, words=("--classes 7", "gives 6 classes"))
    added = distillog.succeed(*add, "--classes", 6)
    assert "  as declared: 2 of 6 classes on 60 samples, the commonest for 50.0%; mean confidence 1.00" in added
    assert "  --scale 1/255: 2 of 6 classes on 60 samples" in added


def test_a_teacher_of_many_classes_fits_a_stream_that_knows_no_number(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name, model = fresh_name("fields"), classifier(tmp_path / "m.onnx", (4,), 1000)
    created = distillog.call("topics", "create", name, "--dataset", "support.user_data:two_fields", "--partitions", 2)
    assert created.exit_code == 0
    assert "added" in distillog.succeed("topics", "add-teacher", name, "t", model, "--input", "first=x")


RUN = """
name = "student"
source = "dataset"
[data]
dataset = "{dataset}"
view = {{ name = "crop_flip" }}
[student]
name = "mlp"
hidden = [8]
[[losses]]
name = "cross_entropy"
[optimizer]
name = "sgd"
lr = 0.1
[train]
batch_size = 20
steps = 6
[evaluation]
dataset = "{dataset}"
"""


def test_an_evaluation_compares_with_a_teacher_that_is_declared_alike(
    dataset: str, distillog: Distillog, tmp_path: Path
) -> None:
    model = nearest_colour(tmp_path / "m.onnx", normalised=True, nhwc=True, open_shape=True)
    file = tmp_path / "student.toml"
    file.write_text(RUN.format(dataset=dataset))
    distillog.succeed("runs", "start", file, "--folder", tmp_path / "runs", "--quiet")
    evaluate = ("runs", "evaluate", "student", "--folder", tmp_path / "runs", "--teacher", model)
    distillog.refuse(*evaluate, words=("give --layout nchw or --layout nhwc",))
    distillog.refuse(*evaluate, "--layout", "nhwc", words=("takes float32, field 'image' gives uint8", "--scale 1/255"))
    scaled = ("--scale", "1/255", *NORMALISATION)
    scores = json.loads(distillog.succeed(*evaluate, "--layout", "nhwc", *scaled, "--json"))
    assert scores["teacher_accuracy"] == 1.0
    assert scores["num_samples"] == 20 * len(CLASSES)
