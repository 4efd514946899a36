"""The example of digits over photographs: what its splits share, what is kept, how it ends, and that all of it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.datasets import open_dataset
from pipeline.progress import Progress
from schemas.errors import ConfigError, RunLocked
from student_trainer.run.settings import run_settings

SCRIPT = Path(__file__).parents[2] / "examples" / "vision" / "vision.py"
sys.path.insert(0, str(SCRIPT.parent))

import networks  # noqa: E402
import scenes  # noqa: E402
import shown  # noqa: E402
import vision  # noqa: E402

COUNTS = {"train": 30, "validation": 20, "test": 20}


def test_no_digit_and_no_strip_of_a_photograph_is_in_two_splits():
    digits = {split: {glyph.tobytes() for glyph in glyphs} for split, (glyphs, _) in scenes._digits().items()}
    assert sum(map(len, digits.values())) > 1700
    for one, other in combinations(digits.values(), 2):
        assert not one & other
    ends = [end for strip in scenes.STRIPS.values() for end in strip]
    assert ends == sorted(ends)
    assert ends[0] == 0
    assert ends[-1] == 1
    # What is shown of a photograph fits into each strip.
    narrowest = min(high - low for low, high in scenes.STRIPS.values())
    assert all(photo.width * narrowest >= scenes.SIDES[1] for photo in scenes._photographs())


def test_pictures_are_equal_each_time_and_made_anew_where_one_is_damaged_or_a_setting_is_another(tmp_path, monkeypatch):
    first = scenes.paint(tmp_path / "one", COUNTS)
    files = sorted((tmp_path / "one").rglob("*.jpg"))
    assert len(files) == 70
    times = [path.stat().st_mtime_ns for path in files]
    assert scenes.paint(tmp_path / "one", COUNTS) == first
    assert [path.stat().st_mtime_ns for path in files] == times
    assert scenes.paint(tmp_path / "other", COUNTS) == first
    files[3].write_bytes(b"damaged")
    assert scenes.paint(tmp_path / "one", COUNTS) == first
    assert files[3].read_bytes() != b"damaged"
    monkeypatch.setattr(scenes, "SHADE", 0.25)
    assert scenes.paint(tmp_path / "one", COUNTS)["sha256"] != first["sha256"]


def test_pictures_are_a_folder_of_images_whose_classes_are_the_digits(tmp_path):
    scenes.paint(tmp_path / "pictures", COUNTS)
    dataset = open_dataset(f"images:{tmp_path / 'pictures'}?split=train&size={scenes.SIZE}")
    assert dataset.class_names == tuple("0123456789")
    ids = np.arange(dataset.num_samples)
    counted = np.bincount(dataset.labels(ids), minlength=10)
    assert counted.tolist() == np.bincount(scenes._digits()["train"][1][:30], minlength=10).tolist()
    images = dataset.read(ids).fields["image"]
    assert images.shape == (30, 3, scenes.SIZE, scenes.SIZE)
    assert images.astype(float).std(axis=(1, 2, 3)).min() > 10


def test_all_of_a_digit_is_in_its_picture_wherever_it_lies():
    whole = np.ones((8, 8), np.float32)
    for draws in np.random.default_rng(0).random((200, 6)):
        draws[0] = 1  # as large as can be
        draws[1:3] = 0.5  # upright
        ink = scenes._placed(whole, draws)
        assert ink.sum() == pytest.approx(scenes.HEIGHTS[1] ** 2, rel=0.2)


def test_the_student_is_over_ten_times_smaller_and_its_maps_lie_where_the_teachers_do():
    teacher, student = networks.Teacher(10).eval(), networks.depthwise((3, scenes.SIZE, scenes.SIZE), 10).eval()
    sizes = [sum(each.numel() for each in model.parameters()) for model in (teacher, student)]
    assert 10 * sizes[1] < sizes[0]
    images = torch.rand(2, 3, scenes.SIZE, scenes.SIZE)
    logits, maps, pooled = teacher(images)
    assert logits.shape == student(images).shape == (2, 10)
    assert student.maps(images).shape[2:] == maps.shape[2:]
    torch.testing.assert_close(pooled, maps.mean(dim=(2, 3)))


@pytest.mark.parametrize("recipe", vision.RECIPES)
def test_the_recipes_differ_in_their_losses_alone(recipe):
    uris = dict.fromkeys(COUNTS, "digits?split=train")
    document = vision.document(recipe, 5, 7, 100, uris, "validation")
    run = run_settings(document)
    taught = recipe != "labels alone"
    assert (run.source, run.data.labelled) == (("stream", 0) if taught else ("dataset", 100))
    assert run.train.seed == 5
    assert run.train.steps == 7
    other = vision.document("logits", 5, 7, 100, uris, "validation")
    same = {"optimizer", "schedule", "train", "evaluation", "checkpoint"}
    assert {key: document[key] for key in same} == {key: other[key] for key in same}
    assert document["student"]["name"] == other["student"]["name"]
    assert [each.name for each in run.losses][:1] == (["forward_kl"] if taught else ["cross_entropy"])


FIGURES = {
    "pictures": {"counts": COUNTS, "digits": COUNTS},
    "looked_at": "test",
    "labelled": 7,
    "teacher": {"accuracy": 0.9, "nll": 0.3, "parameters": 1000},
    "students": {
        "labels alone": [{"accuracy": a, "nll": 1.0, "parameters": 100} for a in (0.5, 0.6)],
        "logits": [{"accuracy": a, "nll": 0.5, "parameters": 100} for a in (0.7, 0.8)],
    },
    "files": {
        "teacher": {"file_bytes": 5000, "p50_ms": 1.5},
        "student": {"file_bytes": 600, "p50_ms": 0.25},
        "int8": {"file_bytes": 300, "p50_ms": 0.125, "accuracy": 0.63, "nll": 0.7},
    },
    "seconds": 12.3,
}


def test_the_table_has_means_spreads_and_shares_of_the_teachers_accuracy():
    lines = shown.table(FIGURES)
    assert "| teacher | 90.0% | 100.0% | 0.300 | 1,000 | 5,000 | 1.500 |" in lines
    assert "| student: logits | 75.0% ± 7.1 | 83.3% | 0.500 ± 0.000 | 100 | 600 | 0.250 |" in lines
    assert "| seed 0 of logits, in int8 | 63.0% | 70.0% | 0.700 |  | 300 | 0.125 |" in lines
    assert "12 s" in lines[-1]


def test_the_picture_is_whole_svg_with_a_dot_for_each_seed():
    tree = ElementTree.fromstring(shown.picture(FIGURES))
    inside = {"circle": [], "text": []}
    for each in tree.iter():
        inside.setdefault(each.tag.rpartition("}")[2], []).append(each)
    assert len(inside["circle"]) == 4
    places = [float(each.get("cx", "nan")) for each in inside["circle"]]
    assert places == sorted(places)
    assert all(shown.LEFT <= place <= shown.WIDTH - shown.RIGHT for place in places)
    texts = [each.text for each in inside["text"]]
    assert {"labels alone", "logits", "teacher", "50%", "90%"} <= set(texts)


def test_a_folder_that_the_example_did_not_make_is_refused_and_a_second_call_in_one_too(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not made by this example"):
        vision.take(tmp_path, vision.MARKER)
    with vision.take(tmp_path / "own", vision.MARKER), pytest.raises(RunLocked, match="runs in it already"):
        vision.take(tmp_path / "own", vision.MARKER)


def test_what_is_slow_inside_of_it_adds_no_lines_to_its_own(tmp_path, monkeypatch, capsys):
    def tell(*arguments):
        with Progress(title="reading") as shown:
            shown.update(samples=1)
        raise ConfigError("this is how it ended")

    monkeypatch.setattr(vision, "tell", tell)
    monkeypatch.setattr(vision.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(sys, "argv", ["vision.py", "--folder", str(tmp_path)])
    assert vision.main() == 1
    assert capsys.readouterr().err == "error: this is how it ended\n"


@pytest.mark.faults
@pytest.mark.short
@pytest.mark.timeout(900)
def test_one_command_ends_in_a_table_of_a_teacher_and_students_by_every_recipe(tmp_path):
    environment = {name: text for name, text in os.environ.items() if name != "KAFKA_BOOTSTRAP_SERVERS"}
    command = [sys.executable, SCRIPT, "--small", "--folder", tmp_path / "vision"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    figures = json.loads((tmp_path / "vision" / "report.json").read_text())
    sizes = {each["parameters"] for found in figures["students"].values() for each in found}
    assert all(10 * size < figures["teacher"]["parameters"] for size in sizes)
    assert figures["files"]["int8"]["file_bytes"] < figures["files"]["student"]["file_bytes"]
    rows = ["| teacher |", *(f"| student: {recipe} |" for recipe in vision.RECIPES), "| seed 0 of logits, in int8 |"]
    for row in rows:
        assert sum(line.startswith(row) for line in done.stdout.splitlines()) == 1
    assert "</svg>" in (tmp_path / "vision" / "vision.svg").read_text()
    assert not list((tmp_path / "vision" / "broker").glob("*.pid"))
