"""Files of every kind and state as pictures: which colours they show, and what is a fault of its row."""

from __future__ import annotations

import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from support.pictures import WHOLE, fetcher_of, folder_of, saved, shown, waves

from pipeline.datasets import open_dataset
from pipeline.datasets.pictures import MAX_PIXELS
from schemas.errors import ConfigError


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
    "L*a*b*, TIFF": (saved(Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF"), (255, 255, 255)),
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


def test_pillow_that_would_make_pictures_of_files_cut_off_is_refused(tmp_path, monkeypatch):
    photos = folder_of(tmp_path, KINDS["jpg"])
    fetcher = fetcher_of(photos)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for failing in (lambda: fetcher.fetch(np.array([0]), 1), lambda: open_dataset(photos)):
        with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES"):
            failing()
