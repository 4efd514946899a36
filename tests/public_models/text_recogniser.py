"""The recogniser of PP-OCRv4 as RapidOCR ships it, and pictures of words that it reads.

[N, 3, 48, W] in [-1, 1] to probabilities [N, W / 8, 6,625] of characters, 0 being none.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from public_models.english import words
from public_models.sentence_encoder import encoder
from torch import Tensor, nn

from pipeline.onnx_runtime import open_session

HEIGHT, WIDTH, PLACES = 48, 160, 20


def model() -> Path:
    """The ONNX file."""
    wheel = "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf"
    folder = encoder.unpacked("rapidocr-onnxruntime==1.4.4", wheel)
    return folder / "rapidocr_onnxruntime" / "models" / "ch_PP-OCRv4_rec_infer.onnx"


@cache
def characters() -> list[str]:
    """Its classes."""
    inside = open_session(model()).get_modelmeta().custom_metadata_map["character"]
    return ["", *inside.splitlines(), " "]


def read(classes: NDArray[np.int64]) -> str:
    """Return the text of [T] likeliest classes: repetitions are one, and class 0 is between characters."""
    known, before, text = characters(), 0, ""
    for each in classes.tolist():
        if each and each != before:
            text += known[each]
        before = each
    return text


class Words:
    """Pictures of words, and which eighths of their width hold some of them."""

    thread_safe = True

    def __init__(self, first: int, count: int) -> None:
        self.words = words(first + count)[first:]

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, sample_id: int) -> dict[str, NDArray[Any]]:
        picture = Image.new("L", (WIDTH, HEIGHT), 255)
        draw = ImageDraw.Draw(picture)
        draw.text((6, 6), self.words[sample_id], font=ImageFont.load_default(28), fill=0)
        grey = np.asarray(picture)
        inside = (grey < 128).any(axis=0).reshape(PLACES, -1).any(axis=1)
        return {"image": np.repeat(grey[None], 3, axis=0), "inside": inside.astype(np.uint8)}


def pictures(first: str = "0", count: str = "300") -> Words:
    """What a dataset URI names."""
    return Words(int(first), int(count))


class Reader(nn.Module):
    """Three convolutions, then one vector for each eighth of the width: [B, 3, 48, W] -> [B, W / 8, C]."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width * (HEIGHT // 8), num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.features(image).permute(0, 3, 1, 2).flatten(2))  # type: ignore[no-any-return]


def student(input_shape: tuple[int, ...], num_classes: int, width: int = 8) -> nn.Module:
    """What a run file names."""
    return Reader(num_classes, width)
