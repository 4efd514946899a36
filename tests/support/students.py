"""Students of a user's own: several outputs in one forward pass."""

from __future__ import annotations

from math import prod

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
