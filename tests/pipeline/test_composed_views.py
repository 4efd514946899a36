"""Views one after the other show what they show one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.datasets import open_dataset
from pipeline.datasets.base import ArrayDataset
from pipeline.views import evaluation_view, find_view, view_spec
from pipeline.views.fetch import Fetcher
from pipeline.views.probe import check_probe, make_probe
from schemas.errors import ConfigError, ManifestMismatch
from student_trainer.run.settings import run_settings

USER_MODULE = """
import numpy as np

def jitter(sample, rng, amount=0.5):
    if sample["image"].mean() > 0.36:
        raise ValueError("too bright")
    return {"image": (sample["image"] + amount * rng.random(sample["image"].shape)).astype(np.float32)}
jitter.version = 3
jitter.evaluation = {"amount": 0.0}

def unrolled(sample, rng):
    if sample["image"].sum() > 20:
        raise ValueError("too bright")
    return {"picture": sample["image"].reshape(1, 8, 8)}
unrolled.thread_safe = True

def speckled(sample, rng, amount=0.5):
    return {"image": (sample["image"] + amount * rng.random(sample["image"].shape)).astype(np.float32)}
speckled.version = 1000
"""
CROP = {"crop_flip.min_area": 0.4, "crop_flip.flip": 0.5}
WARP = {"affine.rotation": 20.0, "affine.noise": 0.1}


@pytest.fixture(autouse=True)
def user_module(tmp_path, monkeypatch):
    (tmp_path / "users_row_of_views.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def photos(tmp_path) -> str:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        pixels = (np.arange(50 * 70 * 3) * (number + 3) // 40 % 256).reshape(50, 70, 3).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return f"images:{folder}?size=32"


def fetcher_of(uri: str, name: str, **params: float) -> Fetcher:
    return Fetcher(open_dataset(uri), view_spec(name, params))


@pytest.mark.parametrize("size", [None, (20, 24)])
@pytest.mark.parametrize("uri", ["digits", "photos"])
def test_a_row_of_views_is_one_after_the_other(uri, size, photos):
    uri, ids = photos if uri == "photos" else uri, np.arange(6)
    together = fetcher_of(uri, "crop_flip+affine", **CROP, **WARP).fetch(ids, 7, size)
    first = fetcher_of(uri, "crop_flip", min_area=0.4, flip=0.5).fetch(ids, 7).inputs
    between = Fetcher(
        ArrayDataset("memory", first, np.zeros(6, int)), view_spec("affine", {"rotation": 20, "noise": 0.1})
    )
    assert together.inputs["image"].tobytes() == between.fetch(ids, 7, size).inputs["image"].tobytes()
    assert together.inputs["image"].shape[2:] == (size or first["image"].shape[2:])


@settings(max_examples=10, deadline=None)
@given(ids=st.lists(st.integers(0, 99), min_size=1, max_size=20), seed=st.integers(0, 2**63 - 1))
def test_a_row_of_views_does_not_depend_on_its_batch(ids, seed):
    fetcher = fetcher_of("digits", "affine+users_row_of_views:jitter+none", **WARP)
    together = fetcher.fetch(np.array(ids), seed, (9, 9))
    alone = [fetcher.fetch(np.array([each]), seed, (9, 9)) for each in ids]
    kept = [row for row, one in enumerate(alone) if len(one.kept_rows)]
    assert together.kept_rows.tolist() == kept
    assert together.inputs["image"].tobytes() == b"".join(alone[row].inputs["image"].tobytes() for row in kept)


def test_a_row_that_a_view_refuses_is_left_out_with_its_reason():
    fetcher = fetcher_of("digits", "none+users_row_of_views:jitter+crop_flip")
    fetched = fetcher.fetch(np.arange(40), 3)
    assert 0 < len(fetched.kept_rows) < 40
    assert len(fetched.faults) == 40 - len(fetched.kept_rows)
    assert all("too bright" in reason for _, reason in fetched.faults)
    assert len(fetched.labels) == len(fetched.kept_rows) == len(fetched.inputs["image"])


@pytest.mark.parametrize("loaders", [1, 2, 10])
def test_rows_that_are_all_refused_come_to_no_view_behind_whatever_its_fields(loaders):
    digits = open_dataset("digits").read(np.arange(40)).fields["image"].reshape(40, 64)
    flat = ArrayDataset("memory", {"image": digits}, np.zeros(40, int))
    fetcher = Fetcher(flat, view_spec("users_row_of_views:unrolled+crop_flip", {}), loaders)
    whole = fetcher.fetch(np.arange(40), 3)
    assert 0 < len(whole.kept_rows) < 40
    again = fetcher.fetch(np.arange(40), 3)
    assert again.inputs["picture"].tobytes() == whole.inputs["picture"].tobytes()
    assert again.faults == whole.faults
    assert not len(fetcher.fetch(np.array([whole.faults[0][0]]), 3).kept_rows)


def test_a_spec_names_each_parameter_with_its_view_and_pins_each_version():
    spec = view_spec("crop_flip+users_row_of_views:jitter", CROP | {"jitter.amount": 0.25})
    assert spec.params == {**CROP, "crop_flip.ratio": 0.0, "jitter.amount": 0.25}
    assert spec.version == find_view("crop_flip").version * 1000 + 3
    assert evaluation_view(spec).params == {
        "crop_flip.min_area": 1.0,
        "crop_flip.ratio": 0.0,
        "crop_flip.flip": 0.0,
        "jitter.amount": 0.0,
    }


def test_a_run_file_has_a_table_for_each_view():
    document = {
        "name": "r",
        "source": "dataset",
        "data": {"dataset": "digits", "view": {"name": "crop_flip+affine", "crop_flip": {"flip": 0.5}}},
        "student": {"name": "linear"},
        "losses": [{"name": "cross_entropy"}],
        "train": {"batch_size": 5, "steps": 1},
    }
    view = run_settings(document).data.view
    assert view_spec(view.name, view.params) == view_spec("crop_flip+affine", {"crop_flip.flip": 0.5})


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("crop_flip+affin", {}, "did you mean 'affine'"),
        ("affine+affine", {}, "two of one name"),
        ("+", {}, r"view \+: a name is missing beside a \+"),
        ("crop_flip+", {}, r"view crop_flip\+: a name is missing beside a \+"),
        ("crop_flip+affine", {"flip": 0.5}, r"no parameter 'flip': say whose it is \(crop_flip.flip, affine.flip\)"),
        ("crop_flip+affine", {"crop_flip.flop": 0.5}, "did you mean 'flip'"),
        ("crop_flip+affine", {"crop_flip.flip": 2.0}, "give a number from 0 to 1"),
        ("crop_flip+affine", {"crop_flip": {"flip": float("nan")}}, "no NaN"),
        ("none+users_row_of_views:speckled", {}, "speckled has version 1000; .* up to 999"),
    ],
)
def test_a_wrong_row_is_refused_in_one_line(name, params, says):
    with pytest.raises(ConfigError, match=says) as caught:
        view_spec(name, params)
    assert "\n" not in str(caught.value)


def test_a_probe_detects_another_order_of_views():
    dataset = open_dataset("digits")
    one, other = (view_spec(name, CROP | WARP) for name in ("crop_flip+affine", "affine+crop_flip"))
    probe = make_probe(Fetcher(dataset, one))
    check_probe(Fetcher(dataset, one), probe)
    with pytest.raises(ManifestMismatch):
        check_probe(Fetcher(dataset, other), probe)
