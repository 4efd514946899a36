"""Views of JPEG files against a plain loop over Pillow, in images/s.

Ours: `images` under `crop_flip`, as a worker reads it, then the float32 that a teacher takes (`--scale 1/255`). Bare:
each file opened, `resize(box=...)`, flipped, written to a float32 batch [N, C, H, W] as 0 to 255; the boxes and flips
are ours, computed beforehand. Both read the same files, photographs of 500x375 in the page cache, in the same batches.
With two loaders a fetcher shares each order's samples out over two threads, and two processes, each a bare loop of its
own, are what it is held against, by what they make together. There ours ends with the bytes that loaders hand over,
since floats are made by whoever infers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.pairs import Spread, interleave
from benchmarks.streams import Bench
from pipeline.datasets import open_dataset
from pipeline.datasets.pictures import stored_part
from pipeline.views import view_spec
from pipeline.views.crop_flip import drawn
from pipeline.views.fetch import Fetcher
from schemas.records import TeacherInput
from teacher_service.models.session import prepare_input

WIDTH, HEIGHT = 500, 375
NUM_FILES = 512
BATCH = 32
ORDER = 256
"""Samples in a request that loaders share."""
VIEW = {"min_area": 0.3, "ratio": 0.3, "flip": 0.5}
SEED = 7
SIZES = (160, 224)
LOADERS = 2


@dataclass(frozen=True, slots=True)
class Part:
    """One picture of a bare loop."""

    path: str
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels."""
    flip: bool


def write_photographs(folder: Path) -> None:
    """Cut scikit-learn's two photographs into JPEG files of some 50 KB."""
    from sklearn.datasets import load_sample_images

    folder.mkdir()
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    random = np.random.default_rng(0)
    for number in range(NUM_FILES):
        photograph = photographs[number % len(photographs)]
        height = random.uniform(0.7, 1.0) * photograph.height
        width = height * WIDTH / HEIGHT
        left, top = random.random(2) * (photograph.width - width, photograph.height - height)
        cut = photograph.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        cut.save(folder / f"{number:03}.jpg", quality=90)


def parts_of(fetcher: Fetcher) -> list[Part]:
    """Return what the view shows of each picture."""
    files, folder = fetcher.dataset.files, fetcher.dataset.folder  # type: ignore[attr-defined]
    shown = drawn(np.arange(NUM_FILES), SEED, VIEW)
    return [
        Part(str(folder / file), stored_part((WIDTH, HEIGHT), 1, tuple(box)), bool(flip))
        for file, box, flip in zip(files, shown.box.T.tolist(), shown.flip, strict=True)
    ]


def bare_loop(parts: Sequence[Part], size: int) -> NDArray[np.float32]:
    """Return the last batch [N, 3, size, size]."""
    for start in range(0, len(parts), BATCH):
        some = parts[start : start + BATCH]
        batch = np.empty((len(some), 3, size, size), np.float32)
        for row, part in enumerate(some):
            with Image.open(part.path) as picture:
                seen = picture.resize((size, size), Image.Resampling.BILINEAR, part.box)
            if part.flip:
                seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            batch[row] = np.asarray(seen).transpose(2, 0, 1)
    return batch


def our_bytes(fetcher: Fetcher, size: int, start: int, count: int) -> NDArray[np.uint8]:
    """Return N samples [N, 3, size, size] from a place on, as loaders hand them over."""
    return fetcher.fetch(np.arange(start, min(start + count, NUM_FILES)), SEED, (size, size)).inputs["image"]


def our_batch(fetcher: Fetcher, size: int, start: int) -> NDArray[np.float32]:
    """Return a batch [N, 3, size, size] from a place on, as a teacher takes it."""
    fed = TeacherInput("image", "image", "float32", "nchw", 1 / 255, (size, size))
    return prepare_input(our_bytes(fetcher, size, start, BATCH), fed)


def our_loop(fetcher: Fetcher, size: int) -> None:
    """Make all batches in this thread."""
    for start in range(0, NUM_FILES, BATCH):
        our_batch(fetcher, size, start)


def shared_loop(fetcher: Fetcher, size: int) -> None:
    """Make all orders, once for each loader."""
    for start in [*range(0, NUM_FILES, ORDER)] * LOADERS:
        our_bytes(fetcher, size, start, ORDER)


def side_by_side(processes: Executor, parts: Sequence[Part], size: int) -> None:
    """Run a bare loop over all pictures in each process."""
    for loop in [processes.submit(_discarded, parts, size) for _ in range(LOADERS)]:
        loop.result()


def _discarded(parts: Sequence[Part], size: int) -> None:
    bare_loop(parts, size)


def _rate(count: int, loop: Callable[[], object]) -> float:
    began = time.perf_counter()
    loop()
    return count / (time.perf_counter() - began)


def run(bench: Bench) -> dict[str, Any]:
    """Measure one loader at each size, and two at the larger."""
    folder = bench.folder / "photographs"
    write_photographs(folder)
    dataset, view = open_dataset(f"images:{folder}?size={SIZES[-1]}"), view_spec("crop_flip", VIEW)
    fetcher, shared = Fetcher(dataset, view), Fetcher(dataset, view, LOADERS)
    parts = parts_of(fetcher)
    ratios = {}
    for size in SIZES:
        bare, ours = partial(bare_loop, parts, size), partial(our_loop, fetcher, size)
        ratios[f"images_{size}"] = _measured(bench.pairs, NUM_FILES, bare, ours)
    with ProcessPoolExecutor(LOADERS, get_context("spawn")) as processes:
        bare, ours = partial(side_by_side, processes, parts, SIZES[-1]), partial(shared_loop, shared, SIZES[-1])
        ratios["images_two_loaders"] = _measured(bench.pairs, NUM_FILES * LOADERS, bare, ours)
    return {"ratios": ratios}


def _measured(num_pairs: int, count: int, bare: Callable[[], object], ours: Callable[[], object]) -> dict[str, Any]:
    for loop in (bare, ours):
        loop()  # files into the page cache, processes into being
    (pairs,) = interleave(num_pairs, partial(_rate, count, bare), partial(_rate, count, ours))
    speeds = {"samples_per_s": Spread.of(pairs.ours).median, "bare_samples_per_s": Spread.of(pairs.bare).median}
    return pairs.as_dict() | speeds
