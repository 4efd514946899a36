"""How right a teacher is as declared, and whether another way to feed it is clearly better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.colours import IMAGENET_MEAN, IMAGENET_STD, level_and_tint, nearest_colour
from support.models import classifier
from support.streams import fetcher, manifest

from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec
from schemas.errors import StreamConflict, TeacherRejected
from schemas.records import TeacherInput
from teacher_service.models.alternatives import alternatives
from teacher_service.models.assess import NUM_SAMPLES, Assessment, Way, assess, clearly_better, some_samples
from teacher_service.models.declared import Declared, Scaling
from teacher_service.models.describe import describe_model
from teacher_service.models.session import OnnxTeacher

COLOURS = fetcher("support.colours:colours?count=400")
UNIT, BYTES = Scaling(1 / 255), Scaling(1.0)
NORMALISED = Scaling(1 / 255, IMAGENET_MEAN, IMAGENET_STD)


def assessed(path: Path, source: Fetcher = COLOURS, seconds: float = 20.0, **declared: Any) -> Assessment:
    teacher = describe_model(path, "t", manifest(source), source, Declared(**declared))
    return assess(OnnxTeacher(path, teacher, threads=1), CodecSpec("float16"), source, 0, seconds)


MISTAKES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "bytes for [0, 1]": ({}, {"general": BYTES}, {"scale": 1 / 255}),
    "[0, 1] for bytes": ({"top": 255.0}, {"general": UNIT}, {"scale": 1.0}),
    "[0, 1] for a normalised range": (
        {"normalised": True},
        {"general": UNIT},
        {"scale": 1 / 255, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    ),
    "bytes for a normalised range": (
        {"normalised": True},
        {"general": BYTES},
        {"scale": 1 / 255, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    ),
    "bytes, but normalised": (
        {"normalised": True},
        {"general": Scaling(1.0, IMAGENET_MEAN, IMAGENET_STD)},
        {"scale": 1 / 255, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    ),
    "a normalised range for [0, 1]": ({}, {"general": NORMALISED}, {"scale": 1 / 255, "mean": (), "std": ()}),
    "red for blue": ({"bgr": True}, {"general": UNIT}, {"channel_order": "bgr"}),
    "blue for red": ({}, {"general": UNIT, "channel_order": "bgr"}, {"channel_order": ""}),
    "channels first": (
        {"nhwc": True, "open_shape": True},
        {"general": UNIT, "layout": "nchw"},
        {"layout": "nhwc"},
    ),
    "channels last": ({"open_shape": True}, {"general": UNIT, "layout": "nhwc"}, {"layout": "nchw"}),
}


@pytest.mark.parametrize("batch", [None, 64])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_declaration_is_told_from_the_right_one(tmp_path: Path, name: str, batch: int | None) -> None:
    build, declared, right = MISTAKES[name]
    path = nearest_colour(tmp_path / "m.onnx", batch=batch, **build)
    found = assessed(path, **declared)
    assert found.better is not None
    assert found.better.accuracy == 1.0
    assert found.in_time
    assert found.declared.num_samples == found.better.num_samples == NUM_SAMPLES
    (one,) = found.better.inputs
    assert {field: getattr(one, field) for field in right} == right
    scaling = Scaling(one.scale, one.mean, one.std)
    mended = assessed(path, general=scaling, layout=one.layout, channel_order=one.channel_order)
    assert (mended.declared.accuracy, mended.others, mended.better) == (1.0, (), None)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "int64"])
def test_images_of_any_whole_numbers_are_treated_as_bytes_are(tmp_path: Path, dtype: str) -> None:
    path, source = nearest_colour(tmp_path / "m.onnx"), fetcher(f"support.colours:colours?count=400&dtype={dtype}")
    with pytest.raises(TeacherRejected, match=f"gives {dtype}: declare a factor: --scale 1/255"):
        assessed(path, source)
    found = assessed(path, source, general=BYTES)
    assert found.better is not None
    assert (found.better.accuracy, found.better.inputs[0].scale) == (1.0, 1 / 255)


@pytest.mark.parametrize(("weight", "accuracy"), [(5.0, 1.0), (0.0, 0.5)])
def test_a_field_that_is_no_image_is_left_as_it_is(tmp_path: Path, weight: float, accuracy: float) -> None:
    source, path = fetcher("support.colours:tint_beside"), level_and_tint(tmp_path / "m.onnx", weight)
    found = assessed(path, source, general=UNIT)
    assert found.better is not None
    assert found.better.accuracy == pytest.approx(accuracy, abs=0.1)
    assert [one.scale for one in found.better.inputs] == [1.0, 1.0]


def test_one_of_two_images_is_changed_alone_and_both_together() -> None:
    left, right = (TeacherInput(name, name, "float32", "nchw", 1.0, ()) for name in ("left", "right"))
    pixels = np.full((2, 1, 4, 4), 200, np.uint8)
    ways = alternatives((left, right), {"left": pixels, "right": pixels})
    scales = [tuple(one.scale for one in way) for way in ways]
    assert scales == [(1 / 255, 1 / 255), (1 / 255, 1.0), (1.0, 1 / 255), (1.0, 1.0)]
    assert [one.layout for one in ways[-1]] == ["nhwc", "nhwc"]  # nothing declares it of one


def test_twenty_samples_are_enough_where_the_difference_is_plain(tmp_path: Path) -> None:
    few = fetcher("support.colours:colours?count=24")
    found = assessed(nearest_colour(tmp_path / "m.onnx"), few, general=BYTES)
    assert found.better is not None
    assert found.declared.num_samples == 24


def test_a_wrong_declaration_is_found_though_it_names_the_class_of_nearly_all_samples(tmp_path: Path) -> None:
    rare = fetcher("support.colours:colours?count=2000&only=4&rare=33")
    found = assessed(nearest_colour(tmp_path / "m.onnx"), rare, general=BYTES)  # brighter than all: class 4
    assert found.declared.commonest[1] == 1.0
    assert found.better is not None
    assert (found.better.accuracy, found.better.inputs[0].scale) == (1.0, 1 / 255)
    right = assessed(nearest_colour(tmp_path / "m.onnx"), rare, general=UNIT)
    assert (right.declared.accuracy, right.others, right.declared.at_chance) == (1.0, (), False)


def test_a_class_too_rare_to_prove_anything_still_lets_the_other_ways_be_tried(tmp_path: Path) -> None:
    rare = fetcher("support.colours:colours?count=2000&only=4&rare=300")
    found = assessed(nearest_colour(tmp_path / "m.onnx"), rare, general=BYTES)
    assert found.declared.accuracy == 1 - 7 / NUM_SAMPLES
    assert found.declared.at_chance
    assert found.better is None
    right = [way for way in found.others if way.accuracy == 1.0]
    assert {way.inputs[0].scale for way in right} == {1 / 255}
    assert not any(way.at_chance for way in right)


def test_as_many_samples_are_taken_of_each_class_as_it_has() -> None:
    dataset = fetcher("support.colours:colours?count=2000&only=4&rare=33").dataset
    labels = dataset.labels(some_samples(dataset, NUM_SAMPLES))
    assert np.bincount(labels).tolist() == [61, 0, 0, 0, NUM_SAMPLES - 61]
    labels = COLOURS.dataset.labels(some_samples(COLOURS.dataset, 100))
    assert sorted(np.bincount(labels)) == [16, 16, 17, 17, 17, 17]


def test_an_honest_teacher_that_is_weak_is_not_talked_out_of_its_way(tmp_path: Path) -> None:
    """Random weights: as good as chance, whatever they are fed."""
    for seed in range(5):
        found = assessed(classifier(tmp_path / "m.onnx", seed=seed), fetcher("digits?split=train"))
        assert found.declared.accuracy is not None
        assert found.declared.accuracy < 0.4
        assert found.others
        assert found.better is None


def test_without_labels_nothing_is_refused_and_every_way_is_shown(tmp_path: Path) -> None:
    unlabelled = fetcher("support.colours:colours?labelled=0")
    found = assessed(nearest_colour(tmp_path / "m.onnx"), unlabelled, general=BYTES)
    assert found.better is None
    assert found.declared.accuracy is None
    assert found.declared.num_samples == 120
    used = {way.inputs[0].scale: way.num_classes_used for way in found.others if not way.inputs[0].mean}
    assert found.declared.num_classes_used == 2  # the brightest
    assert used[1 / 255] == 6
    assert not found.degenerate


@pytest.mark.parametrize(("count", "degenerate"), [(60, True), (12, False)])
def test_one_class_for_nearly_all_samples_is_called_degenerate(tmp_path: Path, count: int, degenerate: bool) -> None:
    one_class = fetcher(f"support.colours:colours?count={count}&labelled=0&only=3")
    found = assessed(nearest_colour(tmp_path / "m.onnx"), one_class, general=UNIT)
    assert found.declared.commonest == (3, 1.0)
    assert found.degenerate == degenerate


def test_a_slow_model_is_looked_at_on_fewer_samples(tmp_path: Path) -> None:
    slow = classifier(tmp_path / "m.onnx", slow=4000)
    found = assessed(slow, fetcher("digits?split=train"), seconds=0.05)
    assert not found.in_time
    assert 0 < found.declared.num_samples < NUM_SAMPLES
    assert found.better is None


def test_a_slow_model_of_a_fixed_batch_is_tried_in_no_other_way(tmp_path: Path) -> None:
    slow = classifier(tmp_path / "m.onnx", slow=4000, batch=32)
    found = assessed(slow, fetcher("digits?split=train"), seconds=1e-6)
    assert (found.declared.num_samples, found.others, found.in_time) == (32, (), False)


def test_outputs_that_are_not_finite_are_counted_and_more_than_a_hundredth_are_holes(tmp_path: Path) -> None:
    source = fetcher("digits?split=train")
    ids = some_samples(source.dataset, NUM_SAMPLES)
    means = np.sort(source.fetch(ids, 0, None).inputs["image"].mean(axis=(1, 2, 3)))
    for count, has_holes in ((0, False), (2, False), (3, True)):
        limit = float(means[-count - 1 :].max() if not count else (means[-count] + means[-count - 1]) / 2)
        found = assessed(classifier(tmp_path / "m.onnx", nan_above=limit), source)
        assert (found.declared.num_unfit, found.has_holes) == (count, has_holes)
        assert found.declared.num_samples == NUM_SAMPLES


def test_an_output_that_is_not_finite_counts_as_no_class() -> None:
    some = replace(way(0, 5), guesses=np.array([-1, -1, -1, 3, 4]))
    assert (some.num_classes_used, some.commonest) == (2, (3, 0.2))
    none = replace(some, guesses=np.full(5, -1))
    assert (none.num_classes_used, none.commonest) == (0, (-1, 0.0))


def test_a_label_beyond_the_teachers_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StreamConflict, match=r"has a sample of class 9, .* gives 7 classes"):
        assessed(classifier(tmp_path / "m.onnx", num_classes=7), fetcher("digits?split=train"))


def test_samples_are_the_same_each_time_and_lie_all_over_the_dataset() -> None:
    ids = some_samples(COLOURS.dataset, 100)
    assert np.array_equal(ids, some_samples(COLOURS.dataset, 100))
    assert len(np.unique(ids)) == 100
    assert (np.diff(ids) > 0).all()
    assert len(ids[ids < 200]) in range(30, 70)
    large = fetcher("support.user_data:endless").dataset
    assert some_samples(large, NUM_SAMPLES).max() > 9e8


def way(hits: int, num_samples: int, first: int = 0, num_classes: int = 1) -> Way:
    """One that is right for `hits` samples, from the `first` on."""
    labels = np.arange(num_samples) % num_classes
    guesses = labels + 1
    guesses[(first + np.arange(hits)) % num_samples] -= 1
    nothing = np.zeros(num_samples)
    spec = TeacherInput("x", "image", "float32", "nchw", 1.0, ())
    return Way((spec,), guesses, nothing, nothing, labels)


def test_a_way_that_is_no_better_than_the_commonest_class_is_not_called_better() -> None:
    none, commonest, some = (way(hits, 250, num_classes=10) for hits in (0, 25, 100))
    assert clearly_better(none, commonest)
    assert Assessment(none, (commonest,), True).better is None
    assert Assessment(none, (commonest, some), True).better is some


@pytest.mark.parametrize(
    ("declared", "other", "better"),
    [
        (way(256, 256), way(256, 256), False),
        (way(3, 20), way(20, 20), True),
        (way(8, 20), way(20, 20), False),  # 12 more of 20: by chance in one of 4,096 looks
        (way(0, 5), way(5, 5), False),
        (way(69, 256), way(256, 256), True),
        (way(246, 256), way(256, 256), False),  # less than 5 points
        (way(240, 256), way(256, 256), True),
        (way(100, 256), way(115, 256, 50), False),  # as many lost as chance would have it
        (way(80, 256), way(160, 256, 40), True),
        (way(160, 256), way(80, 256), False),
    ],
)
def test_clearly_better_is_by_much_and_not_by_chance(declared: Way, other: Way, better: bool) -> None:
    assert clearly_better(declared, other) == better
