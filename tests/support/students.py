"""Students of a user's own: several outputs in one forward pass, several fields that go into it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from torch import Tensor, nn


class Encoder(nn.Module):
    """Samples -> a dict of `logits` [B, C] and `tokens` [B, 4, width], the hidden layer between them."""

    def __init__(self, num_inputs: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(num_inputs, 4 * width), nn.ReLU())
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        """[B, ...] float32"""
        hidden = self.drop(self.inner(samples))
        return {"logits": self.head(hidden), "tokens": hidden.unflatten(1, (4, -1))}


def encoder(input_shape: tuple[int, ...], num_classes: int, width: int = 6) -> nn.Module:
    """What a run file names."""
    return Encoder(prod(input_shape), num_classes, width)


@dataclass
class Read:
    """What `Reader` gives: named fields, as the outputs of transformers are."""

    logits: Tensor
    last_hidden_state: Tensor
    past: None = None


class Reader(nn.Module):
    """Tokens [B, L] and what counts of them [B, L] -> `Read`, of a stack of numbered layers."""

    def __init__(self, num_classes: int, num_tokens: int, width: int, depth: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(num_tokens, width)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)) for _ in range(depth)
        )
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, attention_mask: Tensor, input_ids: Tensor, labels: Tensor | None = None) -> Read:
        hidden = self.embeddings(input_ids)
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            hidden = hidden + layer(hidden)
        counts = attention_mask.to(hidden.dtype).unsqueeze(-1)
        return Read(self.classifier((hidden * counts).sum(1) / counts.sum(1).clamp(min=1)), hidden)


def reader(
    input_shape: dict[str, tuple[int, ...]], num_classes: int, num_tokens: int = 50, width: int = 8, depth: int = 2
) -> nn.Module:
    """What a run file names: a student that takes `input_ids` and `attention_mask`."""
    assert input_shape["input_ids"] == input_shape["attention_mask"]
    return Reader(num_classes, num_tokens, width, depth)


def token_files(folder: Path, num_samples: int = 200, length: int = 6) -> str:
    """Write `input_ids`, `attention_mask` and labels, that can be learned, as npy files; return the dataset's URI."""
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 50, (num_samples, length))
    mask = (np.arange(length) < draw.integers(1, length + 1, num_samples)[:, None]).astype(np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "input_ids.npy", ids)
    np.save(folder / "attention_mask.npy", mask)
    np.save(folder / "labels.npy", (ids * mask).sum(1) // mask.sum(1) // 17)
    return f"npy:{folder}"


class Heads(nn.Module):
    """Samples -> outputs of these shapes."""

    def __init__(self, num_inputs: int, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = shapes
        self.layers = nn.ModuleDict({name: nn.Linear(num_inputs, prod(shape)) for name, shape in shapes.items()})

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        """[B, ...] float32"""
        flat = samples.flatten(1)
        return {name: self.layers[name](flat).unflatten(1, shape) for name, shape in self.shapes.items()}


def two_heads(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Two outputs, none of which is called `logits`."""
    return Heads(prod(input_shape), {"first": (4, 2), "second": (num_classes,)})


def scorer(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Classes, and one number beside them."""
    return Heads(prod(input_shape), {"logits": (num_classes,), "score": (1,)})
