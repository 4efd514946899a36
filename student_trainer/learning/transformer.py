"""The student "transformer": an encoder, or a causal decoder, of token IDs.

B: rows; L: tokens of each; H: width; V: tokens that there are; C: classes; E: numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schemas.errors import ConfigError

_HIDDEN = -1e4
"""Added to a score that does not count: exp of it is 0 in float32 and fp16, and a row of such alone is no NaN."""
_STD = 0.02


class Layer(nn.Module):
    """Attention and a feed-forward part, each behind a layer norm (Xiong et al. 2020, pre-LN)."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention = nn.Linear(width, width)
        self.before_inner = nn.LayerNorm(width)
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, scores: Tensor) -> Tensor:
        """[B, L, H], and what is added to the scores of attention, [B, 1, 1 or L, L] -> [B, L, H]."""
        parts = self.query_key_value(self.before_attention(hidden)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=scores.to(query.dtype))
        hidden = hidden + self.drop(self.attention(mixed.transpose(1, 2).flatten(2)))
        added: Tensor = self.drop(self.outer(F.gelu(self.inner(self.before_inner(hidden)))))
        return hidden + added


class Transformer(nn.Module):
    """`input_ids` and `attention_mask` [B, L] -> `hidden` [B, L, H], `pooled` [B, H], and `logits` where there are C.

    `hidden` is what the last layer gives, behind the last norm; `pooled` its mean over the tokens that are no padding,
    or of a causal one the last of these. `logits` are [B, C], or of each position [B, L, C]. Where it is asked for,
    `embedding` [B, E] of length 1 is a linear layer of `pooled`.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        num_classes: int,
        layers: int,
        width: int,
        heads: int,
        inner: int,
        dropout: float,
        causal: bool,
        positions: bool,
        tied: bool,
        embedding: int,
    ) -> None:
        super().__init__()
        self.causal, self.positions = causal, positions
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, inner, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else None
        self.embed = nn.Linear(width, embedding) if embedding else None
        after = torch.full((length, length), _HIDDEN).triu(1)
        self.register_buffer("after", after if causal else torch.zeros(1, 1), persistent=False)
        for name, values in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(values)
            elif values.ndim > 1:
                # What is added to a sum of 2 * layers parts is smaller by its root (Radford et al. 2019).
                ends = name.endswith(("attention.weight", "outer.weight"))
                nn.init.normal_(values, std=_STD / (2 * layers) ** 0.5 if ends else _STD)
        if tied and self.head is not None:
            self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """[B, L] whole numbers each; 0 in the mask is padding, behind the text."""
        hidden = self.drop(self.tokens(input_ids) + self.places.weight)
        counts = (attention_mask != 0).to(hidden.dtype)
        scores = ((1.0 - counts) * _HIDDEN)[:, None, None, :] + self.get_buffer("after")
        for layer in self.layers:
            hidden = layer(hidden, scores)
        hidden = self.norm(hidden)
        if self.causal:
            # One where the next token is padding or nothing, and this one is not.
            counts = counts - F.pad(counts[:, 1:], (0, 1))
        pooled = (hidden * counts[:, :, None]).sum(dim=1) / counts.sum(dim=1, keepdim=True).clamp(min=1.0)
        outputs = {"hidden": hidden, "pooled": pooled}
        if self.embed is not None:
            outputs["embedding"] = F.normalize(self.embed(pooled).float(), dim=1)
        return outputs if self.head is None else {"logits": self.head(hidden if self.positions else pooled), **outputs}


def transformer(
    input_shape: Mapping[str, tuple[int, ...]],
    num_classes: int,
    vocabulary: int = 0,
    layers: int = 2,
    width: int = 128,
    heads: int = 2,
    inner: int = 0,
    dropout: float = 0.1,
    causal: bool = False,
    positions: bool = False,
    tied: bool = False,
    embedding: int = 0,
) -> nn.Module:
    """Pre-LN transformer (Vaswani et al. 2017) with learned places, for the inputs `input_ids` and `attention_mask`.

    `positions`: logits of each token instead of one row a text; `tied`: the head's weights are the tokens' (Press and
    Wolf 2017), which takes as many classes as tokens; `inner`: of the feed-forward part, 4 * width where it is 0;
    `embedding`: numbers of the output of that name, which there is not where it is 0.
    """
    shape = input_shape.get("input_ids", ()) if isinstance(input_shape, Mapping) else ()
    if len(shape) != 1 or dict(input_shape) != {"input_ids": shape, "attention_mask": shape}:
        raise ConfigError(
            '[student] transformer takes inputs = ["input_ids", "attention_mask"] of one length, not '
            f"{dict(input_shape) if isinstance(input_shape, Mapping) else input_shape}"
        )
    if vocabulary < 1:
        raise ConfigError("[student] transformer: the dataset does not say how many tokens there are: set vocabulary")
    if min(layers, width, heads) < 1 or min(inner, embedding) < 0 or width % heads:
        raise ConfigError(
            f"[student] transformer: layers {layers}, heads {heads} and width {width} must be at least 1, the width a "
            f"multiple of the heads, inner {inner} and embedding {embedding} at least 0"
        )
    if tied and not (positions and num_classes == vocabulary):
        raise ConfigError(
            f"[student] transformer: tied needs positions = true and as many classes as tokens, not {num_classes} of "
            f"{vocabulary}"
        )
    sizes = layers, width, heads, inner or 4 * width
    return Transformer(vocabulary, shape[0], num_classes, *sizes, dropout, causal, positions, tied, embedding)
