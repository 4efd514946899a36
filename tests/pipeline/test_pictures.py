"""Pictures in files: which part of one is decoded, and what a view shows of it."""

from __future__ import annotations

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.pictures import fetcher_of, folder_of, saved, shown, waves

from pipeline.datasets import open_dataset
from pipeline.datasets.pictures import GAP, draft_scale, stored_part
from pipeline.views import view_spec
from pipeline.views.crop_flip import drawn
from pipeline.views.fetch import Fetcher

CROPS = {"min_area": 0.3, "ratio": 0.3, "flip": 0.5}


@pytest.fixture
def photos(tmp_path) -> str:
    sizes = [(500, 375), (375, 500), (64, 64), (900, 301), (33, 200)]
    return folder_of(tmp_path / "photos", *(saved(waves(*size), "JPEG", quality=90) for size in sizes))


boxes = st.tuples(*[st.floats(0, 1)] * 2, *[st.floats(0.001, 1)] * 2).map(
    lambda box: (box[0] * (1 - box[2]), box[1] * (1 - box[3]), box[2], box[3])
)


@settings(max_examples=300)
@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 8), boxes)
def test_every_part_lies_inside_its_picture(width, height, orientation, box):
    left, top, right, bottom = stored_part((width, height), orientation, box)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    side = min(width, height)
    tall, wide = (box[3], box[2]) if orientation > 4 else (box[2], box[3])
    assert right - left == pytest.approx(wide * side, abs=1e-6)
    assert bottom - top == pytest.approx(tall * side, abs=1e-6)


@settings(max_examples=300)
@given(st.integers(1, 20_000), st.integers(1, 20_000), boxes, st.integers(1, 600), st.integers(1, 600))
def test_a_jpeg_is_decoded_smaller_only_where_enough_is_left(width, height, box, tall, wide):
    part = stored_part((width, height), 1, box)
    scale = draft_scale(part, (wide, tall))
    least = min((part[2] - part[0]) / wide, (part[3] - part[1]) / tall)
    assert scale == 1 or least / scale >= GAP
    assert scale == 8 or least / (2 * scale) < GAP
    assert scale <= min(width, height)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_a_jpeg_is_decoded_at_just_the_chosen_scale(scale, flip):
    raw = saved(waves(1003, 777), "JPEG", quality=95)
    box, side = (0.1, 0.2, 0.7, 0.6), 777
    size = (int(0.7 * side / scale / GAP), int(0.6 * side / scale / GAP))
    left, top = (1003 - side) / 2 + 0.2 * side, 0.1 * side
    with Image.open(io.BytesIO(raw)) as image:
        image.draft(None, (1003 // scale, 777 // scale))
        assert image.size == (-(-1003 // scale), -(-777 // scale))
        part = [edge / scale for edge in (left, top, left + 0.6 * side, top + 0.7 * side)]
        plain = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR, part))
    wanted = (plain[:, ::-1] if flip else plain).transpose(2, 0, 1)
    assert (shown(raw, size, box, flip) == wanted).all()
    with Image.open(io.BytesIO(raw)) as image:
        part = [edge * scale for edge in part]
        whole = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR, part)).astype(np.int64)
    assert abs(plain - whole).mean() < 0.5
    assert abs(plain - whole).max() <= 6


def test_a_part_is_what_a_plain_loop_over_pillow_shows(photos):
    fetcher = fetcher_of(photos, **CROPS)
    ids = np.repeat(np.arange(5), 4)
    views = fetcher.fetch(ids, 3, (60, 60)).inputs["image"]
    again = fetcher_of(photos, **CROPS).fetch(ids, 3, (60, 60)).inputs["image"]
    assert views.dtype == np.uint8
    assert views.tobytes() == again.tobytes()
    parts = drawn(ids, 3, CROPS)
    for view, sample_id, (top, left, tall, wide), flip in zip(views, ids, parts.box.T, parts.flip, strict=True):
        picture = Image.open(Path(fetcher.dataset.folder) / fetcher.dataset.files[sample_id])
        side = min(picture.size)
        x, y = (picture.width - side) / 2 + left * side, (picture.height - side) / 2 + top * side
        box = (x, y, min(x + wide * side, picture.width), min(y + tall * side, picture.height))
        plain = picture.resize((60, 60), Image.Resampling.BILINEAR, box)
        plain = np.asarray(ImageOps.mirror(plain) if flip else plain).transpose(2, 0, 1)
        assert abs(view.astype(int) - plain).mean() < 0.7


def test_views_of_pictures_are_golden(tmp_path):
    pixels = [np.arange(3 * w * h) * 7919 // 64 % 256 for w, h in ((90, 70), (41, 80))]
    pictures = [Image.fromarray(pixels[0].reshape(70, 90, 3).astype(np.uint8))]
    pictures += [Image.fromarray(pixels[1].reshape(80, 41, 3).astype(np.uint8))]
    fetcher = fetcher_of(folder_of(tmp_path, *(saved(each, "PNG") for each in pictures), suffix="png"), **CROPS)
    digest = hashlib.sha256()
    for size in (None, (24, 20), (50, 50)):
        digest.update(fetcher.fetch(np.arange(40) % 2, 11, size).inputs["image"].tobytes())
    assert digest.hexdigest()[:16] == "0013f173bc7461ac"


@pytest.mark.parametrize("view", ["none", "crop_flip"])
def test_views_are_equal_in_any_batch_thread_and_run(photos, view):
    params = CROPS if view == "crop_flip" else {}
    ids = np.arange(40) % 5
    together = fetcher_of(photos, view, **params).fetch(ids, 9, (48, 40)).inputs["image"]
    fetcher = fetcher_of(photos, view, **params)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda at: fetcher.fetch(ids[at : at + 3], 9, (48, 40)).inputs["image"], range(0, 40, 3)))
    assert np.concatenate(parts).tobytes() == together.tobytes()


def test_the_view_none_shows_the_middle_square_at_any_size(tmp_path):
    picture = waves(90, 60)
    uri = folder_of(tmp_path, saved(picture, "PNG"), suffix="png")
    fetcher = fetcher_of(uri, "none")
    for size, asked in (((32, 32), None), ((60, 60), (60, 60)), ((20, 48), (20, 48))):
        plain = picture.resize(size[::-1], Image.Resampling.BILINEAR, (15, 0, 75, 60))
        view = fetcher.fetch(np.array([0]), 1, asked).inputs["image"]
        assert (view[0] == np.asarray(plain).transpose(2, 0, 1)).all()
    assert fetcher.dataset.fields["image"].shape == (3, 32, 32)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_one_of_the_picture_as_exif_turns_it(orientation, flip):
    stored = waves(90, 61)
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = saved(stored, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(raw)))
    assert (upright.size == stored.size) is (orientation < 5)
    box = (0.1, 0.3, 0.5, 0.6)
    turned, plain = shown(raw, (30, 25), box, flip), shown(saved(upright, "PNG"), (30, 25), box, flip)
    assert abs(turned - plain).max() <= 1  # rounded after rows and after columns, which are swapped


def test_an_orientation_without_sense_turns_nothing():
    exif = Image.Exif()
    exif[0x0112] = 77
    assert (shown(saved(waves(40, 30), "PNG", exif=exif), (9, 9)) == shown(saved(waves(40, 30), "PNG"), (9, 9))).all()


USERS_PICTURES = """
import io, pathlib
from PIL import Image

class Pictures:
    def __init__(self, folder):
        self.files = sorted(pathlib.Path(folder).iterdir())
    def __len__(self):
        return len(self.files)
    def __getitem__(self, index):
        return {"image": Image.open(io.BytesIO(self.files[index].read_bytes()))}, index % 2

def pictures(folder):
    return Pictures(folder)
"""


def test_a_users_items_may_be_pillow_images(tmp_path, monkeypatch):
    folder, code = tmp_path / "data", tmp_path / "code"
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, whole = saved(waves(20, 30), "JPEG", exif=exif), saved(waves(30, 20), "JPEG")
    folder_of(
        folder,
        whole,
        turned,
        whole[: len(whole) // 2],
        saved(waves(31, 20), "JPEG"),
        saved(Image.new("L", (8, 8), 70), "PNG"),
    )
    code.mkdir()
    (code / "users_pictures.py").write_text(USERS_PICTURES)
    monkeypatch.syspath_prepend(str(code))
    dataset = open_dataset(f"users_pictures:pictures?folder={folder}")
    assert (dataset.fields["image"].shape, dataset.fields["image"].dtype) == ((3, 20, 30), "uint8")
    samples = dataset.read(np.arange(5))
    assert samples.kept_rows.tolist() == [0, 1]
    assert (samples.fields["image"][0] == np.asarray(Image.open(io.BytesIO(whole))).transpose(2, 0, 1)).all()
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(turned)))
    assert (samples.fields["image"][1] == np.asarray(upright).transpose(2, 0, 1)).all()
    reasons = [reason for _, reason in samples.faults]
    assert "truncated" in reasons[0].lower()
    assert "uint8 [3, 20, 31]" in reasons[1]
    assert "uint8 [1, 8, 8]" in reasons[2]
    fetched = Fetcher(dataset, view_spec("crop_flip", CROPS)).fetch(np.arange(5), 1, (16, 16))
    assert fetched.inputs["image"].shape == (2, 3, 16, 16)
    assert fetched.labels.tolist() == [0, 1]
