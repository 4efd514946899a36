"""Views: the same sample, seed and size give the same pixels in any batch."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets import open_dataset
from pipeline.datasets.base import ArrayDataset, Samples
from pipeline.datasets.fingerprint import fingerprint
from pipeline.hashing import uniform
from pipeline.views import VIEWS, evaluation_view, find_view, view_spec
from pipeline.views.check import check_data
from pipeline.views.fetch import Fetcher
from pipeline.views.images import cropped
from pipeline.views.probe import check_probe, make_probe
from pipeline.views.trigonometry import sin_cos
from schemas.codecs import CodecSpec
from schemas.errors import BadSamples, ConfigError, ManifestMismatch
from schemas.records import Manifest

DIGITS_AFFINE = {"intensity": 0.2, "scale": 0.15, "shear": 0.2, "rotation": 15, "shift": 0.125, "noise": 0.1}

USER_MODULE = """
import numpy as np

def jitter(sample, rng, amount=0.5):
    return {"image": (sample["image"] + amount * rng.random(sample["image"].shape)).astype(np.float32)}
jitter.version = 3

def whatever(sample, rng, **params):
    return sample

def bottomless(sample, rng, top=1.0, bottom=float("-inf")):
    return sample
"""


@pytest.fixture(autouse=True)
def user_module(tmp_path, monkeypatch):
    (tmp_path / "users_own_view.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


# name -> dataset, parameters, another size
CASES = {
    "none": ("digits", {}, (12, 12)),
    "affine": ("digits", DIGITS_AFFINE, (16, 16)),
    "crop_flip": ("digits", {"min_area": 0.4, "ratio": 0.3, "flip": 0.5}, (16, 12)),
    "log_mel": (
        "mnist1d?n=100",
        {
            "window": 16,
            "hop": 4,
            "mels": 3,
            "rate": 1000,
            "shift": 0.2,
            "noise": 0.1,
            "time_mask": 0.43,
            "mel_mask": 0.34,
        },
        (3, 7),
    ),
    "mixup": ("digits", {"alpha": 0.4}, (12, 16)),
    "cutmix": ("digits", {"alpha": 0.5}, (12, 16)),
    "signal": ("mnist1d?n=100", {"shift": 0.2, "scale": 0.3, "noise": 0.1}, (30,)),
    "users_own_view:jitter": ("digits", {"amount": 0.2}, (5, 5)),
}

# name -> first digits of its pixels' SHA-256, the same on every CPU. Raise the view's version when one changes.
GOLDEN = {
    "none": "59c7fb7e2229d5c1",
    "affine": "96d71cf1de0c0be8",
    "crop_flip": "bdb91260cde0b8b4",
    "log_mel": "2d4c167ed95a20bf",
    "mixup": "c32d3c39018c6e60",
    "cutmix": "f0cf0e64de5f61fe",
    "signal": "8b294e430d430513",
}

OF_TEXTS = {"masked", "next_token"}
"""Tested in test_text_views.py."""


def fetcher_of(name: str) -> Fetcher:
    uri, params, _ = CASES[name]
    return Fetcher(open_dataset(uri), view_spec(name, params))


def only(inputs):
    (array,) = inputs.values()
    return array


def test_every_built_in_view_is_tested():
    assert set(VIEWS) == set(GOLDEN) | OF_TEXTS
    assert set(GOLDEN) <= set(CASES)


@pytest.mark.parametrize("name", GOLDEN)
def test_views_are_golden(name):
    fetcher = fetcher_of(name)
    digest = hashlib.sha256()
    for size in (None, CASES[name][2]):
        digest.update(only(fetcher.fetch(np.arange(90), 11, size).inputs).astype("<f4").tobytes())
    assert digest.hexdigest()[:16] == GOLDEN[name]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sized", [False, True])
@settings(max_examples=15, deadline=None)
@given(ids=st.lists(st.integers(0, 99), min_size=1, max_size=40), seed=st.integers(0, 2**63 - 1), data=st.data())
def test_a_view_does_not_depend_on_its_batch(name, sized, ids, seed, data):
    fetcher = fetcher_of(name)
    size = CASES[name][2] if sized else None
    together = only(fetcher.fetch(np.array(ids), seed, size).inputs)
    cut = data.draw(st.integers(0, len(ids)))
    parts = [fetcher.fetch(np.array(part, np.int64), seed, size) for part in (ids[:cut], ids[cut:]) if part]
    assert together.tobytes() == b"".join(only(part.inputs).tobytes() for part in parts)


@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_are_warped_in_chunks_without_a_seam(channels):
    images = uniform(1, np.arange(5), "x", channels * 600 * 500).reshape(5, channels, 600, 500).astype(np.float32)
    dataset = ArrayDataset("memory", {"image": images}, np.full(5, -1))
    fetcher = Fetcher(dataset, view_spec("affine", DIGITS_AFFINE))
    together = only(fetcher.fetch(np.arange(5), 1).inputs)
    alone = [only(fetcher.fetch(np.array([i]), 1).inputs) for i in range(5)]
    assert together.tobytes() == np.concatenate(alone).tobytes()


@pytest.mark.parametrize("name", [name for name in CASES if name != "none"])
def test_another_seed_and_another_sample_show_another_view(name):
    fetcher = fetcher_of(name)
    ids = np.array([7, 7, 8])
    first = only(fetcher.fetch(ids, 1).inputs)
    assert (first[0] == first[1]).all()
    assert (first[0] != first[2]).any()
    assert (first[0] != only(fetcher.fetch(ids, 2).inputs)[0]).any()


# What a log-mel is of is in no view of it: tests/pipeline/test_log_mel.py.
@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "log_mel"])
def test_a_view_without_parameters_changes_nothing(name):
    dataset = open_dataset(CASES[name][0])
    ids = np.arange(50)
    seen = only(Fetcher(dataset, view_spec(name, {})).fetch(ids, 5).inputs)
    assert seen.tobytes() == only(dataset.read(ids).fields).tobytes()


@pytest.mark.parametrize("name", ["affine", "crop_flip"])
def test_teacher_and_student_sizes_show_the_same_view(name):
    y, x = np.mgrid[0:32, 0:32] / 32
    smooth = np.stack([np.sin(3 * x + i) * np.cos(2 * y - i) for i in range(20)])[:, None].astype(np.float32)
    dataset = ArrayDataset("memory", {"image": smooth}, np.full(20, -1))
    params = {**CASES[name][1], "noise": 0.0} if name == "affine" else CASES[name][1]
    fetcher = Fetcher(dataset, view_spec(name, params))
    ids = np.arange(20)
    small, large = (only(fetcher.fetch(ids, 3, size).inputs) for size in ((16, 16), (32, 32)))
    shrunk = large.reshape(20, 1, 16, 2, 16, 2).mean((3, 5))
    other = only(fetcher.fetch(ids, 4, (16, 16)).inputs)
    assert abs(small - shrunk).mean() < 0.02
    assert abs(small - other).mean() > 0.1


def test_noise_is_the_same_at_every_size():
    fetcher = Fetcher(open_dataset("digits"), view_spec("affine", {"noise": 0.5}))
    plain = only(fetcher.fetch(np.arange(9), 3).inputs)
    n = len(plain)
    box = np.repeat([[0.0], [0.0], [1.0], [1.0]], n, 1)
    wanted = cropped(plain, box, np.zeros(n, bool), (5, 11))
    assert only(fetcher.fetch(np.arange(9), 3, (5, 11)).inputs).tobytes() == wanted.tobytes()


def test_affine_turns_shifts_and_scales_as_said():
    spot = np.zeros((400, 1, 33, 33), np.float32)
    spot[:, :, 16, 26] = 1.0  # 10 pixels right of the middle
    dataset = ArrayDataset("memory", {"image": spot}, np.full(400, -1))
    y, x = np.mgrid[0:33, 0:33] - 16.0

    def centres(**params):
        seen = only(Fetcher(dataset, view_spec("affine", params)).fetch(np.arange(400), 3).inputs)[:, 0]
        mass = seen.sum((1, 2))
        return (seen * x).sum((1, 2)) / mass, (seen * y).sum((1, 2)) / mass

    right, down = centres(rotation=30.0)
    angles = np.degrees(np.arctan2(down, right))
    assert np.hypot(right, down) == pytest.approx(np.full(400, 10.0), abs=0.3)
    assert -31 < angles.min() < -28
    assert 28 < angles.max() < 31
    right, down = centres(shift=0.1)
    assert abs(right - 10).max() == pytest.approx(3.3, abs=0.1)
    assert abs(down).max() == pytest.approx(3.3, abs=0.1)
    right, down = centres(scale=0.2)
    assert right.min() == pytest.approx(8, abs=0.2)
    assert right.max() == pytest.approx(12, abs=0.2)
    assert abs(down).max() < 0.01


def test_affine_brightness_and_noise_have_their_magnitudes():
    grey = np.full((500, 1, 8, 8), 0.5, np.float32)
    dataset = ArrayDataset("memory", {"image": grey}, np.full(500, -1))
    ids = np.arange(500)
    brightness = only(Fetcher(dataset, view_spec("affine", {"intensity": 0.2})).fetch(ids, 3).inputs)[:, 0, 0, 0] / 0.5
    assert brightness.min() == pytest.approx(0.8, abs=0.01)
    assert brightness.max() == pytest.approx(1.2, abs=0.01)
    noise = only(Fetcher(dataset, view_spec("affine", {"noise": 0.1})).fetch(ids, 3).inputs) - 0.5
    assert noise.std() == pytest.approx(0.1, abs=0.002)


def test_crop_flip_mirrors_and_crops():
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8), (300, 3, 64, 64))
    dataset = ArrayDataset("memory", {"image": ramp}, np.full(300, -1))
    ids = np.arange(300)
    plain = only(Fetcher(dataset, view_spec("crop_flip", {})).fetch(ids, 1).inputs)
    assert plain.dtype == np.uint8
    assert (plain == ramp).all()
    mirrored = only(Fetcher(dataset, view_spec("crop_flip", {"flip": 1.0})).fetch(ids, 1).inputs)
    assert (mirrored == plain[:, :, :, ::-1]).all()
    half = only(Fetcher(dataset, view_spec("crop_flip", {"flip": 0.5})).fetch(ids, 1).inputs)
    assert 0.4 < (half[:, 0, 0, 0] > half[:, 0, 0, -1]).mean() < 0.6
    part = only(Fetcher(dataset, view_spec("crop_flip", {"min_area": 0.25})).fetch(ids, 1, (16, 16)).inputs) * 1.0
    widths = (part[:, 0, 0, -1] - part[:, 0, 0, 0]) * 16 / 15
    assert 31 < widths.min() < 36
    assert 60 < widths.max() < 65


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", [None, (9, 14), (40, 40)])
def test_bytes_stay_bytes_and_show_what_floats_do(channels, size):
    images = np.arange(6 * channels * 20 * 24, dtype=np.int64).reshape(6, channels, 20, 24) * 7919 % 251
    views = []
    for dtype in (np.uint8, np.float32):
        dataset = ArrayDataset("memory", {"image": images.astype(dtype)}, np.full(6, -1))
        fetcher = Fetcher(dataset, view_spec("crop_flip", {"min_area": 0.5, "ratio": 0.3, "flip": 0.5}))
        views.append(only(fetcher.fetch(np.arange(6), 4, size).inputs))
    assert [view.dtype for view in views] == [np.uint8, np.float32]
    assert views[0].shape == views[1].shape == (6, channels, *(size or (20, 24)))
    assert abs(views[0] - views[1]).max() < 1.5  # Pillow rounds after each of its two directions


def test_shrinking_averages():
    checks = (np.indices((64, 64)).sum(0) % 2)[None, None].astype(np.float32)
    dataset = ArrayDataset("memory", {"image": checks}, np.array([-1]))
    small = only(Fetcher(dataset, view_spec("none", {})).fetch(np.array([0]), 1, (8, 8)).inputs)
    assert small == pytest.approx(np.full((1, 1, 8, 8), 0.5), abs=0.02)


@pytest.mark.parametrize("degrees", [0.0, 30.0, -45.0, 45.0, 90.0, 135.0, -180.0, 359.0, 1e-9])
def test_sine_and_cosine_are_exact_to_a_few_bits(degrees):
    sin, cos = sin_cos(np.array([degrees]))
    assert sin[0] == pytest.approx(math.sin(math.radians(degrees)), abs=5e-16, rel=1e-14)
    assert cos[0] == pytest.approx(math.cos(math.radians(degrees)), abs=5e-16, rel=1e-14)


WRONG = {
    ("afine", "rotation", 3.0): "did you mean 'affine'",
    ("affine", "rotatoin", 3.0): "did you mean 'rotation'",
    ("affine", "rotation", "3"): "give a number",
    ("affine", "rotation", True): "give a number",
    ("affine", "rotation", (3,)): "give a number",
    ("affine", "scale", 1.0): "0 to 0.95",
    ("affine", "noise", -0.1): "0 to inf",
    ("affine", "noise", float("nan")): "noise is nan: .* no NaN",
    ("affine", "noise", float("inf")): "noise is inf: .* nothing infinite",
    ("affine", "noise", 10**400): "nothing infinite",
    ("crop_flip", "min_area", 0.0): "0.0001 to 1",
    ("crop_flip", "flip", "0.5, inf,1"): "flip is 0.5, inf,1: .* nothing infinite",
    ("crop_flip", "mean", 0.5): "no parameter 'mean'",
    ("users_own_view:jitter", "amount", float("inf")): "nothing infinite",
    ("users_own_view:bottomless", "top", 1.0): "bottom is -inf: .* nothing infinite",
    ("users_own_view:jitter", "amuont", 3.0): "did you mean 'amount'",
    ("users_own_view:jiter", "amount", 3.0): "jiter",
    ("no_such_views:jitter", "amount", 3.0): "no module",
}


@pytest.mark.parametrize(("name", "key", "value"), WRONG)
def test_a_wrong_view_is_refused_in_one_line(name, key, value):
    with pytest.raises(ConfigError, match=WRONG[name, key, value]) as caught:
        view_spec(name, {key: value})
    assert "\n" not in str(caught.value)


def test_a_view_that_does_not_fit_the_data_is_refused():
    for uri, name in (("mnist1d?n=9", "affine"), ("mnist1d?n=9", "crop_flip"), ("digits", "signal")):
        with pytest.raises(ConfigError, match="needs"):
            Fetcher(open_dataset(uri), view_spec(name, {})).fetch(np.arange(3), 1)
    for uri in ("digits", "support.colours:colours"):
        for name in ("none", "crop_flip"):
            with pytest.raises(ConfigError, match=r"size of \(height, width\), got \(3,\)"):
                Fetcher(open_dataset(uri), view_spec(name, {})).fetch(np.arange(3), 1, (3,))


def test_view_specs_name_every_parameter():
    spec = view_spec("affine", {"rotation": 15})
    assert spec.params["rotation"] == 15.0
    assert set(spec.params) == set(VIEWS["affine"].defaults)
    assert view_spec("users_own_view:jitter", {}).params == {"amount": 0.5}
    assert view_spec("users_own_view:jitter", {}).version == 3
    assert view_spec("users_own_view:whatever", {"a": "b", "norm": "inf"}).params == {"a": "b", "norm": "inf"}
    assert view_spec("users_own_view:bottomless", {"bottom": 0.0}).params == {"top": 1.0, "bottom": 0.0}


def test_an_evaluation_augments_nothing():
    assert evaluation_view(view_spec("crop_flip", {"min_area": 0.5, "flip": 0.5})) == view_spec("crop_flip", {})
    assert evaluation_view(view_spec("affine", DIGITS_AFFINE)) == view_spec("affine", {})


class Faulty(ArrayDataset):
    """IDs that 3 divides cannot be decoded."""

    def read(self, sample_ids):
        good = np.flatnonzero(sample_ids % 3)
        bad = np.flatnonzero(sample_ids % 3 == 0)
        fields = {name: array[sample_ids[good]] for name, array in self.arrays.items()}
        return Samples(fields, good, tuple((int(row), "broken") for row in bad))


def faulty(n: int = 10) -> Faulty:
    return Faulty("faulty", {"image": np.arange(n * 4, dtype=np.float32).reshape(n, 1, 2, 2)}, np.arange(n))


def test_faults_and_foreign_ids_leave_their_rows_out():
    fetched = Fetcher(faulty(), view_spec("none", {})).fetch(np.array([10, 3, 4, -1, 5, 6, 2**40]), 1)
    assert fetched.kept_rows.tolist() == [2, 4]
    assert fetched.labels.tolist() == [4, 5]
    assert only(fetched.inputs)[:, 0, 0, 0].tolist() == [16, 20]
    assert [row for row, _ in fetched.faults] == [0, 1, 3, 5, 6]
    assert fetched.faults[0] == (0, "no sample 10 in faulty")
    assert fetched.faults[1] == (1, "broken")


@pytest.mark.parametrize("name", ["none", "affine", "crop_flip", "users_own_view:jitter"])
@pytest.mark.parametrize("size", [None, (4, 4)])
def test_an_order_without_a_readable_row_gives_empty_arrays(name, size):
    fetched = Fetcher(faulty(), view_spec(name, {})).fetch(np.array([0, 3]), 1, size)
    assert len(only(fetched.inputs)) == 0
    assert len(fetched.faults) == 2


@pytest.mark.parametrize("name", CASES)
def test_a_probe_accepts_its_own_view(name):
    fetcher = fetcher_of(name)
    probe = make_probe(fetcher)
    check_probe(fetcher, probe)
    assert probe.positions.shape == probe.pixels.shape == (8, 32)
    check_probe(fetcher, replace(probe, pixels=probe.pixels + np.float32(5e-6)))


@pytest.mark.parametrize("name", [name for name in CASES if name != "none"])
def test_a_probe_detects_a_changed_view(name):
    uri, params, _ = CASES[name]
    dataset = open_dataset(uri)
    probe = make_probe(Fetcher(dataset, view_spec(name, params)))
    for key, value in params.items():
        whole = isinstance(VIEWS[name].defaults[key], int) if name in VIEWS else False
        changed = view_spec(name, {**params, key: value + value // 8 + 1 if whole else float(value) * 0.9})
        with pytest.raises(ManifestMismatch, match="view"):
            check_probe(Fetcher(dataset, changed), probe)


def test_a_probe_detects_changed_draws():
    fetcher = fetcher_of("affine")
    with pytest.raises(ManifestMismatch, match="draws"):
        check_probe(fetcher, replace(make_probe(fetcher), draws="0" * 64))


def test_a_probe_goes_around_broken_samples():
    fetcher = Fetcher(faulty(), view_spec("none", {}))
    probe = make_probe(fetcher)
    assert (probe.sample_ids % 3 > 0).all()
    check_probe(fetcher, probe)
    with pytest.raises(BadSamples, match="broken; of 64 samples that were tried, 0 are fit"):
        make_probe(Fetcher(faulty(1), view_spec("none", {})))


def test_a_view_of_another_version_is_refused():
    with pytest.raises(ManifestMismatch, match="version 9 in the manifest, 1 here"):
        Fetcher(open_dataset("digits"), replace(view_spec("affine", {}), version=9))


@pytest.fixture
def manifest() -> Manifest:
    dataset = open_dataset("digits?split=train")
    view = view_spec("affine", DIGITS_AFFINE)
    return Manifest(
        stream="digits",
        stream_id="abc",
        dataset=dataset.uri,
        dataset_fingerprint=fingerprint(dataset),
        num_samples=dataset.num_samples,
        num_classes=dataset.num_classes,
        class_names=dataset.class_names,
        view=view,
        view_probe=make_probe(Fetcher(dataset, view)),
        order_size=64,
        epochs=2,
        seed=0,
        partitions=4,
        codec=CodecSpec(),
        max_record_bytes=1 << 20,
        schema_fingerprints={},
    )


def test_data_as_in_the_manifest_is_accepted(manifest):
    fetcher = check_data(manifest)
    assert fetcher.view == manifest.view
    assert check_data(manifest, "digits?split=train").dataset.num_samples == 1297


def other_samples(manifest):
    return manifest, "digits?split=test"


def other_classes(manifest):
    return replace(manifest, num_classes=9), None


def other_names(manifest):
    return replace(manifest, class_names=(*"123456789", "0")), None


def other_content(manifest):
    return replace(manifest, dataset_fingerprint="0" * 64), None


def other_version(manifest):
    return replace(manifest, view=replace(manifest.view, version=2)), None


def other_view(manifest):
    return replace(manifest, view=view_spec("affine", {**DIGITS_AFFINE, "rotation": 14})), None


MISMATCHES = {
    other_samples: "num_samples is 500 here, 1297 in the manifest of stream digits",
    other_classes: "num_classes is 10 here, 9 in the manifest",
    other_names: "class_names is",
    other_content: "samples, fields or labels differ: the fingerprint is 8cca9cd79",
    other_version: "version 2 in the manifest, 1 here",
    other_view: "view affine of sample",
}


@pytest.mark.parametrize("change", MISMATCHES)
def test_other_data_than_the_manifests_is_refused_by_name(manifest, change):
    changed, uri = change(manifest)
    with pytest.raises(ManifestMismatch, match=MISMATCHES[change]) as caught:
        check_data(changed, uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("mnist1d?split=train&n=50&seed=4", "seed is 4 here, 3 in the manifest of stream digits: "),
        ("mnist1d?n=50", "seed is the default here, 3 in the manifest of stream digits: "),
    ],
)
def test_a_parameter_that_makes_the_data_differ_is_named_instead_of_two_hashes(manifest, uri, says):
    dataset = open_dataset("mnist1d?n=50&seed=3")
    view = view_spec("none", {})
    other = {"dataset": "mnist1d?n=50&seed=3", "dataset_fingerprint": fingerprint(dataset), "num_samples": 50}
    probe = make_probe(Fetcher(dataset, view))
    changed = replace(manifest, **other, view=view, view_probe=probe)
    check_data(changed)
    with pytest.raises(ManifestMismatch) as caught:
        check_data(changed, uri)
    assert says in str(caught.value)


def test_built_in_views_are_found_by_name():
    assert find_view("affine") is VIEWS["affine"]
