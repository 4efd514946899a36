"""Handwritten digits over photographs, as a folder of JPEG files: train, validation and test share no digit, no pixel.

What is real of them: the digits (1,797 that people wrote, 8 x 8, of scikit-learn's `load_digits`) and the photographs
(`china.jpg` and `flower.jpg` of scikit-learn, each cut into three strips). Put together they are made, in the manner of
MNIST-M (Ganin et al. 2016: the photograph is inverted where the digit is) and of cluttered MNIST (Mnih et al. 2014:
pieces of other digits lie around it).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.hashing import integers, tag, uniform

SIZE = 48
"""Pixels of a side."""
STRIPS = {"train": (0.0, 0.55), "validation": (0.55, 0.7), "test": (0.7, 1.0)}
"""Which part of a photograph's width is behind the digits of which split."""
SIDES = (40, 90)
"""Pixels of the photograph that a picture shows, from and to."""
HEIGHTS = (30, 42)
"""Pixels of a digit's height, from and to."""
PIECES = 2
"""Of other digits, in each picture."""
PIECE = 10
"""Pixels of a piece's side."""
TURN, SHEAR = 0.25, 0.15
"""Radians that a digit is turned by at most, and columns a row that it leans."""
SHADE = 0.5
"""What is left of the photograph's light."""
CONTENTS = "pictures.json"

Grey = npt.NDArray[np.float32]
"""[SIZE, SIZE] in [0, 1]"""


def paint(folder: Path, counts: dict[str, int]) -> dict[str, object]:
    """Write SPLIT/CLASS/NUMBER.jpg, `counts[SPLIT]` pictures each, unless they lie there whole; return what is there.

    Raises ConfigError without scikit-learn.
    """
    asked = {"counts": counts, "size": SIZE, "scene": _scene_settings()}
    found = _kept(folder, asked)
    if found:
        return found
    if folder.exists():
        shutil.rmtree(folder)
    photos, digits = _photographs(), _digits()
    for split, count in counts.items():
        ids, seed = np.arange(count), tag(f"examples.vision.{split}")
        glyphs, labels = digits[split]
        draws = uniform(seed, ids, "scene", 16 + 4 * PIECES)
        others = integers(seed, ids, "pieces", PIECES, len(glyphs))
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
        for number in range(count):
            # Each digit as often as any other.
            which = number % len(glyphs)
            picture = _scene(glyphs[which], glyphs[others[number]], photos, STRIPS[split], draws[number])
            place = folder / split / str(labels[which]) / f"{number:05}.jpg"
            picture.save(place, "JPEG", quality=90)
    contents = {"digits": {split: len(digits[split][0]) for split in counts}, "sha256": _hash(folder), **asked}
    # Last: what has this file is whole.
    (folder / CONTENTS).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    return contents


def _scene(
    glyph: Grey, others: Grey, photos: list[Image.Image], strip: tuple[float, float], draws: npt.NDArray[np.float64]
) -> Image.Image:
    """One picture: a digit [8, 8], pieces of others [PIECES, 8, 8], over a part of a photograph."""
    ink = _placed(glyph, draws[:6])
    for piece, drawn in zip(others, draws[16:].reshape(PIECES, 4), strict=True):
        # A piece of another digit that stands upright in the middle.
        whole = _placed(piece, np.array([drawn[0], 0.5, 0.5, 0.5, 0.5, 0.5]))
        top, left = ((SIZE - PIECE) * drawn[1:3]).astype(int)
        # Out of the middle of that digit, where there is ink.
        start = (SIZE - PIECE) // 2 + int(8 * (drawn[3] - 0.5))
        cut = whole[start : start + PIECE, start : start + PIECE]
        there = ink[top : top + PIECE, left : left + PIECE]
        np.maximum(there, cut, out=there)
    photo = photos[int(draws[6] * len(photos))]
    low, high = (round(photo.width * share) for share in strip)
    side = SIDES[0] + draws[7] * (SIDES[1] - SIDES[0])
    left, top = low + draws[8] * (high - low - side), draws[9] * (photo.height - side)
    ground = photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    pixels = np.asarray(ground, np.float32) * SHADE
    if draws[10] < 0.5:
        pixels = pixels[:, ::-1]
    # Two photographs have few colours: red, green and blue change places.
    pixels = pixels[:, :, np.argsort(draws[11:14])]
    return Image.fromarray(np.rint(np.abs(pixels - 255 * ink[:, :, None])).astype(np.uint8))


def _placed(glyph: Grey, draws: npt.NDArray[np.float64]) -> Grey:
    """[8, 8] -> ink [SIZE, SIZE]: enlarged, turned, leaning, somewhere in the picture; all of it is in there."""
    height = HEIGHTS[0] + draws[0] * (HEIGHTS[1] - HEIGHTS[0])
    turn, lean = TURN * (2 * draws[1] - 1), SHEAR * (2 * draws[2] - 1)
    room = max(0.0, (SIZE - height) / 2 - 2)
    x, y = SIZE / 2 + room * (2 * draws[3] - 1), SIZE / 2 + room * (2 * draws[4] - 1)
    # From a place in the picture to one in the digit.
    scale = 8 / height
    a, b = scale * np.cos(turn), scale * (np.sin(turn) + lean)
    d, e = -scale * np.sin(turn), scale * np.cos(turn)
    matrix = (a, b, 4 - a * x - b * y, d, e, 4 - d * x - e * y)
    grown = Image.fromarray(glyph).transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    # Strokes with an edge, where enlarged pixels would be a blur.
    return np.clip((np.asarray(grown) - 0.35) * 4, 0, 1)


def _photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(each) for each in load_sample_images().images]


def _digits() -> dict[str, tuple[Grey, npt.NDArray[np.int64]]]:
    """Of each split digits [n, 8, 8] float32 in [0, 1] and classes [n]; a fifth of those of training validates."""
    from pipeline.datasets import open_dataset

    splits = {}
    for name in ("train", "test"):
        digits = open_dataset(f"digits?split={name}")
        ids = np.arange(digits.num_samples)
        splits[name] = (digits.read(ids).fields["image"][:, 0], digits.labels(ids))
    glyphs, labels = splits["train"]
    held = np.arange(len(labels)) % 5 == 0
    splits["train"], splits["validation"] = (glyphs[~held], labels[~held]), (glyphs[held], labels[held])
    return splits


def _scene_settings() -> dict[str, object]:
    """What pictures depend on beside their number, as JSON has it: another setting makes them anew."""
    strips = {split: list(ends) for split, ends in STRIPS.items()}
    pieces, leans = [PIECES, PIECE], [TURN, SHEAR]
    return {"strips": strips, "shown": [*SIDES, SHADE], "heights": list(HEIGHTS), "pieces": pieces, "leans": leans}


def _kept(folder: Path, asked: dict[str, object]) -> dict[str, object]:
    """What lies there, if it is all of what is asked for, else nothing."""
    try:
        contents: dict[str, object] = json.loads((folder / CONTENTS).read_bytes())
        whole = asked.items() <= contents.items() and contents["sha256"] == _hash(folder)
    except (OSError, ValueError, KeyError):
        return {}
    return contents if whole else {}


def _hash(folder: Path) -> str:
    """Hex SHA-256 over names and bytes of all pictures."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.jpg")):
        raw = path.read_bytes()
        digest.update(f"{path.relative_to(folder)}\0{len(raw)}\0".encode() + raw)
    return digest.hexdigest()
