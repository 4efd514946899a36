"""A folder of images: one subfolder a class, sorted by name; images directly in the folder are unlabelled.

S: the side in pixels of an image where no other size is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.datasets.base import Dataset, Field, Ints, Parts, Samples, image_size
from pipeline.datasets.folder import FilesByClass, files_by_class, open_folder
from pipeline.datasets.params import Params
from pipeline.datasets.pictures import cut_out, need_pillow
from schemas.errors import ConfigError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, slots=True, eq=False)
class ImageFolder(FilesByClass):
    """Images decoded as they are read: an image is the middle square of its picture."""

    size: int
    channels: int

    @property
    def fields(self) -> dict[str, Field]:
        """One: "image" [channels, S, S] uint8."""
        return {"image": Field((self.channels, self.size, self.size), "uint8")}

    def read(self, sample_ids: Ints) -> Samples:
        """The whole square of each image, at its S."""
        return self.read_parts(sample_ids, Parts.whole(len(sample_ids)), None)

    def read_parts(self, sample_ids: Ints, parts: Parts, size: tuple[int, ...] | None) -> Samples:
        """A part of each image, at the size asked for."""
        need_pillow("dataset images")
        images = np.empty((len(sample_ids), self.channels, *image_size(size or (self.size, self.size))), np.uint8)
        boxes, flips = parts.box.T.tolist(), parts.flip.tolist()

        def put(row: int, place: int, raw: bytes) -> None:
            cut_out(images[place], raw, boxes[row], flips[row])

        rows, faults = self.decoded(sample_ids, put)
        return Samples({"image": images[: len(rows)]}, rows, faults)


def image_folder(path: str, params: dict[str, str]) -> Dataset:
    """`images:/data/birds?split=train&size=256&channels=3`, from `/data/birds/train/<class>/<file>`.

    Raises ConfigError for a missing or empty folder, a link that leads out of it, and as `need_pillow`.
    """
    taken = Params("images", params)
    split = taken.text("split", "")
    size = taken.number("size", 256, 1, 4096)
    channels = int(taken.text("channels", "3", ("1", "3")))
    taken.done()
    need_pillow("dataset images")
    root, folder = open_folder("images", path, split)
    files, labels, names = files_by_class(root, folder, SUFFIXES)
    if not files:
        raise ConfigError(f"no images in {folder} or its subfolders (known: {' '.join(SUFFIXES)})")
    uri = f"images:{path}?" + (f"split={split}&" if split else "") + f"size={size}&channels={channels}"
    return ImageFolder(uri, folder, files, labels, names, size, channels)
