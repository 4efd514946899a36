"""Pictures in files: which part of one is decoded and shown, and what is no picture."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from pipeline.datasets import open_dataset
from pipeline.datasets.pictures import GAP, MAX_PIXELS, cut_out, draft_scale, stored_part
from pipeline.views import view_spec
from pipeline.views.crop_flip import drawn
from pipeline.views.fetch import Fetcher
from schemas.errors import ConfigError

WHOLE = (0.0, 0.0, 1.0, 1.0)
CROPS = {"min_area": 0.3, "ratio": 0.3, "flip": 0.5}


def waves(width: int, height: int) -> Image.Image:
    """A smooth picture without any symmetry, in three colours."""
    y, x = np.mgrid[0:height, 0:width]
    u, v = x / width, y / height
    planes = [np.sin(9 * u + 3 * v), np.cos(5 * u * u - 8 * v), np.sin(4 * u * v + 2 * u)]
    return Image.fromarray(np.rint(np.stack(planes, -1) * 127 + 128).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown(raw: bytes, size: tuple[int, int], box=WHOLE, flip: bool = False, channels: int = 3) -> np.ndarray:
    """[channels, h, w] int64"""
    out = np.zeros((channels, *size), np.uint8)
    cut_out(out, raw, box, flip)
    return out.astype(np.int64)


def folder_of(folder: Path, *raws: bytes, suffix: str = "jpg") -> str:
    folder.mkdir(exist_ok=True)
    for number, raw in enumerate(raws):
        (folder / f"{number:03}.{suffix}").write_bytes(raw)
    return f"images:{folder}?size=32"


def fetcher_of(uri: str, view: str = "crop_flip", **params: float) -> Fetcher:
    return Fetcher(open_dataset(uri), view_spec(view, params))


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


def grey_of_16_bits() -> bytes:
    return saved(Image.fromarray((np.arange(64 * 64) * 16).astype(np.uint16).reshape(64, 64)), "PNG")


def colours_of_16_bits() -> bytes:
    """A PNG by hand, since Pillow writes none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">3H", 0x12FF, 0x80FF, 0xFE01) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (8, 8), 3)
    image.putpalette([0, 0, 0, 9, 9, 9, 5, 5, 5, 200, 100, 50])
    return saved(image, "PNG", transparency=b"\xff\xff\xff\x00") if transparent else saved(image, "PNG")


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 100, 50), (0, 0, 255), (255, 255, 0))]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **_lossless(kind))


def _lossless(kind: str) -> dict[str, bool]:
    return {"lossless": True} if kind == "WEBP" else {}


COLOUR = (200, 100, 50)
FLAT = {
    "palette": (palette(False), COLOUR),
    "palette with transparency": (palette(True), COLOUR),
    "alpha": (saved(Image.new("RGBA", (8, 8), (*COLOUR, 0)), "PNG"), COLOUR),
    "grey with alpha": (saved(Image.new("LA", (8, 8), (70, 0)), "PNG"), (70, 70, 70)),
    "one bit": (saved(Image.new("1", (8, 8), 1), "PNG"), (255, 255, 255)),
    "grey": (saved(Image.new("L", (8, 8), 70), "PNG"), (70, 70, 70)),
    "grey of 16 bits": (saved(Image.fromarray(np.full((8, 8), 0x46FF, np.uint16)), "PNG"), (70, 70, 70)),
    "grey of 16 bits, TIFF": (saved(Image.fromarray(np.full((8, 8), 0x46FF, np.uint16)), "TIFF"), (70, 70, 70)),
    "colours of 16 bits": (colours_of_16_bits(), (0x12, 0x80, 0xFE)),
    "CMYK": (saved(Image.new("CMYK", (8, 8), (55, 155, 205, 0)), "JPEG", quality=100), COLOUR),
    "CMYK, TIFF": (saved(Image.new("CMYK", (8, 8), (55, 155, 205, 0)), "TIFF"), COLOUR),
    "animated GIF": (animated("GIF"), COLOUR),
    "animated PNG": (animated("PNG"), COLOUR),
    "animated WebP": (animated("WEBP"), COLOUR),
    "several pages": (animated("TIFF"), COLOUR),
    "several pictures (MPO)": (animated("MPO"), COLOUR),
    "one pixel": (saved(Image.new("RGB", (1, 1), COLOUR), "PNG"), COLOUR),
    "one pixel, JPEG": (saved(Image.new("RGB", (1, 1), COLOUR), "JPEG", quality=100), COLOUR),
    "a thread": (saved(Image.new("RGB", (1, 3000), COLOUR), "JPEG", quality=100), COLOUR),
}


@pytest.mark.parametrize("kind", FLAT)
def test_pictures_of_every_kind_show_their_colours(kind):
    raw, colour = FLAT[kind]
    for size, box in (((5, 7), WHOLE), ((3, 2), (0.2, 0.1, 0.01, 0.02)), ((40, 30), (0.5, 0.5, 0.5, 0.5))):
        seen = shown(raw, size, box)
        assert abs(seen - np.array(colour)[:, None, None]).max() <= 2
    luma = np.array(colour) @ (0.299, 0.587, 0.114)
    assert abs(shown(raw, (4, 4), channels=1) - luma).max() <= 2


def test_a_grey_ramp_of_16_bits_keeps_its_upper_8():
    ramp = shown(grey_of_16_bits(), (64, 64))
    assert (ramp == (np.arange(64 * 64) * 16 >> 8).reshape(1, 64, 64)).all()


def header_only(width: int, height: int) -> bytes:
    """A PNG that says that it has so many pixels."""
    raw = saved(Image.new("L", (1, 1)), "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + raw[24:29]
    return raw[:12] + header + struct.pack(">I", zlib.crc32(header)) + raw[33:]


LARGE = waves(300, 200)
KINDS = {
    "jpg": saved(LARGE, "JPEG"),
    "progressive.jpg": saved(LARGE, "JPEG", progressive=True),
    "png": saved(LARGE, "PNG"),
    "gif": saved(LARGE, "GIF"),
    "webp": saved(LARGE, "WEBP"),
    "bmp": saved(LARGE, "BMP"),
    "tif": saved(LARGE, "TIFF"),
    "packed.tif": saved(LARGE, "TIFF", compression="tiff_lzw"),
}
FAULTS = {
    "empty.jpg": (b"", "the file is empty"),
    "text.jpg": (b"this is no picture\n" * 40, r"no picture that can be read \(BMP, GIF, JPEG, PNG, TIFF, WEBP\)"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture that can be read"),
    "huge.png": (header_only(20_000, 20_000), f"more than {MAX_PIXELS:,} pixels"),
    "too large.png": (header_only(9_500, 9_500), f"more than {MAX_PIXELS:,} pixels"),
    "floats.tif": (saved(Image.new("F", (8, 8), 0.5), "TIFF"), r"32 bits \(F\), which say no range"),
    "numbers.tif": (saved(Image.new("I", (8, 8), 70_000), "TIFF"), r"32 bits \(I\), which say no range"),
    **{f"cut.{kind}": (raw[: len(raw) * 2 // 3], "") for kind, raw in KINDS.items()},
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("warned", ["error", "ignore"])
def test_what_is_no_whole_picture_is_a_fault_of_its_row_whatever_becomes_of_warnings(tmp_path, name, warned):
    raw, reason = FAULTS[name]
    for file, content in (("a.png", KINDS["png"]), (f"b {name}", raw), ("c.jpg", KINDS["jpg"])):
        (tmp_path / file).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter(warned)  # type: ignore[arg-type]
        fetched = fetcher_of(f"images:{tmp_path}?size=16").fetch(np.array([0, 1, 2, 1]), 5, (20, 20))
    assert fetched.kept_rows.tolist() == [0, 2]
    assert [row for row, _ in fetched.faults] == [1, 3]
    assert len({reason for _, reason in fetched.faults}) == 1
    assert fetched.faults[0][1].startswith(f"b {name}: ")
    assert "0x" not in fetched.faults[0][1]  # an address of memory, another in each process
    assert re.search(reason, fetched.faults[0][1])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(kept=st.floats(0, 1))
def test_a_file_that_is_cut_off_anywhere_is_a_fault_or_the_whole_picture(kind, kept):
    raw = KINDS[kind]
    try:
        seen = shown(raw[: int(kept * len(raw))], (20, 20))
    except Exception:  # decoders raise whatever they like
        return
    assert (seen == shown(raw, (20, 20))).all()


def test_a_picture_as_large_as_cameras_make_is_decoded_small():
    raw = saved(Image.new("RGB", (9_000, 6_000), COLOUR), "JPEG")
    assert abs(shown(raw, (16, 16)) - np.array(COLOUR)[:, None, None]).max() <= 2


def test_pillow_that_would_make_pictures_of_files_cut_off_is_refused(photos, monkeypatch):
    fetcher = fetcher_of(photos)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for failing in (lambda: fetcher.fetch(np.array([0]), 1), lambda: open_dataset(photos)):
        with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES"):
            failing()


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
    folder_of(folder, whole, turned, whole[: len(whole) // 2], saved(waves(31, 20), "JPEG"), FLAT["grey"][0])
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
