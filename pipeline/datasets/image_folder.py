"""A folder of images: one subfolder a class, sorted by name; images directly in the folder are unlabelled.

S: the side in pixels that every image is brought to.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Dataset, Field, Ints, Samples
from pipeline.datasets.folder import open_folder, refuse_outside
from pipeline.datasets.params import Params
from schemas.errors import ConfigError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, slots=True, eq=False)
class ImageFolder:
    """Images decoded as they are read: the shorter side is resized to S, the middle square kept."""

    uri: str
    folder: Path
    files: tuple[str, ...]
    """Relative to the folder; a file's place is its sample ID."""
    label_array: Ints
    """[n] int64"""
    class_names: tuple[str, ...]
    size: int
    channels: int
    thread_safe: ClassVar[bool] = True

    @property
    def num_samples(self) -> int:
        """The number of image files."""
        return len(self.files)

    @property
    def num_classes(self) -> int:
        """The number of subfolders with images; 0 when all are unlabelled."""
        return len(self.class_names)

    @property
    def fields(self) -> dict[str, Field]:
        """One: "image" [channels, S, S] uint8."""
        return {"image": Field((self.channels, self.size, self.size), "uint8")}

    def raw(self, sample_id: int) -> bytes:
        """A file's bytes. Raises OSError."""
        return (self.folder / self.files[sample_id]).read_bytes()

    def read(self, sample_ids: Ints) -> Samples:
        """Reads, then decodes from memory: so a broken mount (OSError) is never taken for a broken image (a fault)."""
        images: list[npt.NDArray[np.uint8]] = []
        rows: list[int] = []
        faults: list[tuple[int, str]] = []
        for row, sample_id in enumerate(sample_ids.tolist()):
            raw = self.raw(sample_id)
            try:
                images.append(_decoded(raw, self.size, self.channels))
                rows.append(row)
            except MemoryError:
                raise  # the machine's fault, not the image's
            except Exception as error:  # decoders raise whatever they like on broken bytes
                faults.append((row, f"{self.files[sample_id]}: {type(error).__name__}: {error}"))
        shape = (0, self.channels, self.size, self.size)
        stacked = np.stack(images) if images else np.empty(shape, np.uint8)
        return Samples({"image": stacked}, np.array(rows, np.int64), tuple(faults))

    def labels(self, sample_ids: Ints) -> Ints:
        """[N] int64"""
        return self.label_array[sample_ids]


def _decoded(raw: bytes, size: int, channels: int) -> npt.NDArray[np.uint8]:
    """[channels, size, size] uint8"""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(raw)) as opened:
        if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or 1 << 27):
            raise ValueError(f"{opened.width}x{opened.height} pixels are too many")
        # Lets the JPEG decoder skip resolution that the resize would throw away.
        opened.draft(None, (2 * size, 2 * size))
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.convert("RGB" if channels == 3 else "L")
        square = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        pixels: npt.NDArray[Any] = np.asarray(square, np.uint8)
    return np.ascontiguousarray(pixels.reshape(size, size, channels).transpose(2, 0, 1))


def image_folder(path: str, params: dict[str, str]) -> Dataset:
    """`images:/data/birds?split=train&size=256&channels=3`, from `/data/birds/train/<class>/<file>`.

    Raises ConfigError for a missing or empty folder, a link that leads out of it, and without Pillow.
    """
    taken = Params("images", params)
    split = taken.text("split", "")
    size = taken.number("size", 256, 1, 4096)
    channels = int(taken.text("channels", "3", ("1", "3")))
    taken.done()
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ConfigError("dataset images needs Pillow: pip install 'distillog[data]'") from error
    root, folder = open_folder("images", path, split)
    files, subfolders = _listed(root, folder)
    labels = [-1] * len(files)
    names: list[str] = []
    for subfolder in subfolders:
        inside, _ = _listed(root, folder / subfolder)
        files += [f"{subfolder}/{file}" for file in inside]
        labels += [len(names)] * len(inside)
        names += [subfolder] if inside else []
    if not files:
        raise ConfigError(f"no images in {folder} or its subfolders (known: {' '.join(SUFFIXES)})")
    uri = f"images:{path}?" + (f"split={split}&" if split else "") + f"size={size}&channels={channels}"
    return ImageFolder(uri, folder, tuple(files), np.array(labels, np.int64), tuple(names), size, channels)


def _listed(root: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of (images, subfolders). Only links are resolved: a million files are listed in a second."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            is_image = entry.name.lower().endswith(SUFFIXES)
            if entry.is_symlink() and (is_image or entry.is_dir()):
                refuse_outside(root, Path(entry.path))
            if entry.is_dir():
                folders.append(entry.name)
            elif is_image:
                files.append(entry.name)
    return sorted(files), sorted(folders)
