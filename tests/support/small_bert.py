"""A tiny BERT of the package transformers, made from a configuration, as a user's own student."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def bert(
    input_shape: Mapping[str, tuple[int, ...]], num_classes: int, vocabulary: int, width: int = 16, layers: int = 2
) -> nn.Module:
    """What a run file names: logits of each position, and its hidden states."""
    from transformers import BertConfig, BertForMaskedLM

    length = input_shape["input_ids"][0]
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=length,
    )
    return BertForMaskedLM(config)
