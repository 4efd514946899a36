"""A folder of images: one subfolder a class, sorted by name; images directly in the folder are unlabelled.

S: the side in pixels of an image where no other size is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipeline.datasets.base import Dataset, Field, Ints, Parts, Samples, image_size
from pipeline.datasets.folder import files_by_class, open_folder
from pipeline.datasets.params import Params
from pipeline.datasets.pictures import cut_out, need_pillow
from pipeline.user_code import said
from schemas.errors import ConfigError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, slots=True, eq=False)
class ImageFolder:
    """Images decoded as they are read: an image is the middle square of its picture."""

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
        """The whole square of each image, at its S."""
        return self.read_parts(sample_ids, Parts.whole(len(sample_ids)), None)

    def read_parts(self, sample_ids: Ints, parts: Parts, size: tuple[int, ...] | None) -> Samples:
        """Reads, then decodes from memory: so a broken mount (OSError) is never taken for a broken image (a fault)."""
        need_pillow("dataset images")
        images = np.empty((len(sample_ids), self.channels, *image_size(size or (self.size, self.size))), np.uint8)
        rows: list[int] = []
        faults: list[tuple[int, str]] = []
        asked = zip(sample_ids.tolist(), parts.box.T.tolist(), parts.flip.tolist(), strict=True)
        for row, (sample_id, box, flip) in enumerate(asked):
            raw = self.raw(sample_id)
            try:
                cut_out(images[len(rows)], raw, box, flip)
                rows.append(row)
            except MemoryError:
                raise  # the machine's fault, not the image's
            except Exception as error:  # decoders raise whatever they like on broken bytes
                faults.append((row, f"{self.files[sample_id]}: {said(error)}"))
        return Samples({"image": images[: len(rows)]}, np.array(rows, np.int64), tuple(faults))

    def labels(self, sample_ids: Ints) -> Ints:
        """[N] int64"""
        return self.label_array[sample_ids]


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
