"""A language of a few thousand words whose next word follows from the last, and all that masked modelling needs of it.

Each word has one successor, so a model that sees the word before a masked one knows it. Letters: L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

VOCABULARY = 3_000
LENGTH = 24
PAD, MASK, FIRST = 0, 1, 2
"""What is no word, what hides one, and the first word."""
MOST_MASKED = 6

_WIDTH = 48


def successors() -> NDArray[np.int64]:
    """[VOCABULARY] the word that follows each word."""
    words = np.random.default_rng(5).permutation(VOCABULARY - FIRST) + FIRST
    following = np.arange(VOCABULARY)
    following[words] = np.roll(words, -1)
    return following


class Texts:
    """Texts of 12 to L words, padded to L."""

    thread_safe = True

    def __init__(self, count: int) -> None:
        self._count = count
        self._following = successors()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, sample_id: int) -> dict[str, NDArray[Any]]:
        chance = np.random.default_rng(sample_id)
        # Most texts begin with one of few words, or a small student would never see one twice.
        word = FIRST + int(chance.integers(40))
        tokens = np.full(LENGTH, PAD, np.int64)
        for place in range(int(chance.integers(12, LENGTH + 1))):
            tokens[place] = word
            word = int(self._following[word])
        return {"tokens": tokens}


def texts(count: str = "600") -> Texts:
    """What a dataset URI names."""
    return Texts(int(count))


def masked(sample: Mapping[str, NDArray[Any]], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Hide some words: at most MOST_MASKED, never the first."""
    tokens = sample["tokens"]
    words = np.flatnonzero(tokens != PAD)[1:]
    hidden = rng.choice(words, int(rng.integers(0, MOST_MASKED + 1)), replace=False)
    chosen = np.zeros(LENGTH, np.uint8)
    chosen[hidden] = 1
    return {
        "tokens": np.where(chosen, MASK, tokens),
        "attention": (tokens != PAD).astype(np.int64),
        "masked": chosen,
        "labels": np.where(chosen, tokens, -1),
    }


masked.thread_safe = True  # type: ignore[attr-defined]
masked.max_positions = {"masked": MOST_MASKED}  # type: ignore[attr-defined]
masked.evaluation = {}  # type: ignore[attr-defined]


class Teacher(nn.Module):
    """Knows the successor of each word: logits [B, L, V], hidden state [B, L, H]."""

    def __init__(self) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(3)
        words = torch.randn(VOCABULARY, _WIDTH, generator=chance)
        self.register_buffer("words", words)
        self.register_buffer("successor", words[torch.from_numpy(successors())])

    def forward(self, tokens: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L] int64 each."""
        before = torch.cat([torch.full_like(tokens[:, :1], PAD), tokens[:, :-1]], dim=1)
        hidden = self.successor[before] * attention[:, :, None]  # type: ignore[index]
        return hidden @ self.words.T / 6, hidden


def export_teacher(path: Path) -> Path:
    """Write it as ONNX: inputs `tokens` and `attention`, outputs `scores` and `last_hidden_state`."""
    tokens = torch.zeros(2, LENGTH, dtype=torch.int64)
    batch = {0: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        Teacher().eval(),
        (tokens, tokens),
        path,
        dynamo=True,
        input_names=["tokens", "attention"],
        output_names=["scores", "last_hidden_state"],
        dynamic_shapes=(batch, batch),
        external_data=False,
        verbose=False,
    )
    return path


class Student(nn.Module):
    """A convolution over word vectors: a dict of logits [B, L, V] and hidden [B, L, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.mix = nn.Conv1d(width, width, 3, padding=1)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor, attention: Tensor) -> dict[str, Tensor]:
        """[B, L] int64 each."""
        hidden = self.words(tokens) * attention[:, :, None]
        hidden = hidden + torch.relu(self.mix(hidden.transpose(1, 2)).transpose(1, 2))
        return {"logits": self.head(self.drop(hidden)), "hidden": hidden}


def student(input_shape: Any, num_classes: int, width: int = 32) -> nn.Module:
    """What a run file names."""
    return Student(width)
