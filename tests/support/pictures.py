"""Pictures as files hold them, for tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.datasets import open_dataset
from pipeline.datasets.pictures import cut_out
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher

WHOLE = (0.0, 0.0, 1.0, 1.0)


def waves(width: int, height: int) -> Image.Image:
    """A smooth picture without any symmetry, in three colours."""
    y, x = np.mgrid[0:height, 0:width]
    u, v = x / width, y / height
    planes = [np.sin(9 * u + 3 * v), np.cos(5 * u * u - 8 * v), np.sin(4 * u * v + 2 * u)]
    return Image.fromarray(np.rint(np.stack(planes, -1) * 127 + 128).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """A file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown(raw: bytes, size: tuple[int, int], box=WHOLE, flip: bool = False, channels: int = 3) -> np.ndarray:
    """[channels, h, w] int64"""
    out = np.zeros((channels, *size), np.uint8)
    cut_out(out, raw, box, flip)
    return out.astype(np.int64)


def folder_of(folder: Path, *raws: bytes, suffix: str = "jpg") -> str:
    """The URI of a folder of such files."""
    folder.mkdir(exist_ok=True)
    for number, raw in enumerate(raws):
        (folder / f"{number:03}.{suffix}").write_bytes(raw)
    return f"images:{folder}?size=32"


def fetcher_of(uri: str, view: str = "crop_flip", **params: float) -> Fetcher:
    return Fetcher(open_dataset(uri), view_spec(view, params))
