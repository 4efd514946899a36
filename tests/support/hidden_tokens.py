"""Tiny texts as a user writes them, some of whose tokens are hidden, and a student that says which they were.

`support.hidden_tokens:masked?count=60`: fields `tokens` [L] int64 with 0 where one is hidden, `masked` [L] int8, 1
there, and `wanted` [L] int32: what was hidden, -1 elsewhere. Every seventh text has nothing hidden. Letters: B texts, V
tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LENGTH, VOCABULARY, TOPICS = 6, 9, 4


class Texts:
    """`__len__` and `__getitem__`; without classes or labels of a text, unless it has topics."""

    thread_safe = True

    def __init__(self, count: int, label: int, topics: bool) -> None:
        if topics:
            self.num_classes, self.labels = TOPICS, np.arange(count) % TOPICS
        self._count, self._label = count, label

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        chance = np.random.default_rng(sample_id)
        tokens = (chance.integers(1, VOCABULARY) + np.arange(LENGTH)) % (VOCABULARY - 1) + 1
        masked = (chance.random(LENGTH) < 0.4) & (sample_id % 7 != 3)
        wanted = np.where(masked, tokens, -1).astype(np.int32)
        if sample_id == 5 and self._label:
            wanted[2] = self._label
        return {"tokens": np.where(masked, 0, tokens), "masked": masked.astype(np.int8), "wanted": wanted}


def masked(count: str = "60", label: str = "0", topics: str = "0") -> Texts:
    """`label` stands in sample 5, as one that may be none; with `topics=1` each text has a label of 4."""
    return Texts(int(count), int(label), topics == "1")


class Reader(nn.Module):
    """[B, L] tokens -> `logits` [B, L, V], `hidden` [B, L, width], `whole` [B, V] and `topic` [B, 4]."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.mix = nn.Conv1d(width, width, 3, padding=1)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, num_classes)
        self.topic = nn.Linear(width, TOPICS)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """[B, L] int64"""
        hidden = torch.tanh(self.mix(self.tokens(tokens).transpose(1, 2))).transpose(1, 2)
        logits = self.head(self.drop(hidden))
        topic = self.topic(hidden.mean(dim=1))
        return {"logits": logits, "hidden": hidden, "whole": logits.mean(dim=1), "topic": topic}


def reader(input_shape: tuple[int, ...], num_classes: int, width: int = 16) -> nn.Module:
    """What a run file names."""
    return Reader(num_classes, width)
