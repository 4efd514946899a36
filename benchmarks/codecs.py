"""Codecs on one core: bytes a sample, samples encoded and decoded a second, and what is lost; no Kafka in it.

Whole records of soft targets, as a teacher writes them: 256 samples with IDs of a dataset of some 2^17, Avro, the
checks of a reader, and the values decoded as far as a reader decodes them (widening is the training thread's).
Logits are normal with a deviation of 4. The speed is that of the fastest of many records; the rest is the same each
time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.streams import ORDER_SIZE, Bench
from schemas.codecs import CodecSpec
from schemas.head import Head
from teacher_service.models.codec_table import ByHead, CodecFigures, measure

CASES = {
    "c1000_k10": (1_000, 10, ("float32", "float16", "int8", "int4", "topk:k=10", "topk:k=10,bits=8", "sampled:n=50")),
    "v151936_k128": (151_936, 128, ("float16", "int8", "int4", "topk:k=128", "topk:k=128,bits=8", "sampled:n=50")),
}
"""name -> (classes, k, codecs)"""
HEAD = "head_c30522_h384"
"""A masked language model's vocabulary and width, by the codec head; beside it the whole rows."""
_DEVIATION = 4


def run(bench: Bench) -> dict[str, Any]:
    """Measure all cases; `bytes` are those of topk in 8 bits, and of head."""
    tables: dict[str, dict[str, Any]] = {}
    num_bytes = {}
    for name, (num_classes, k, codecs) in CASES.items():
        values = np.random.default_rng(0).standard_normal((ORDER_SIZE, num_classes), dtype=np.float32) * _DEVIATION
        ids = np.arange(2**17 - ORDER_SIZE, 2**17)
        tables[name] = {text: _figures(measure(values, CodecSpec.parse(text), (1.0,), ids)) for text in codecs}
        num_bytes[name] = tables[name][f"topk:k={k},bits=8"]["bytes_per_sample"]
    tables[HEAD] = _of_head(30_522, 384)
    num_bytes[HEAD] = tables[HEAD]["head"]["bytes_per_sample"]
    return {"codecs": tables, "bytes": num_bytes}


def _of_head(num_classes: int, width: int) -> dict[str, Any]:
    """Measure what a linear layer is given, of normal numbers, and what it gives, of a deviation as above."""
    random = np.random.default_rng(0)
    hidden = random.standard_normal((ORDER_SIZE, width), dtype=np.float32)
    weight = random.standard_normal((num_classes, width), dtype=np.float32) * np.float32(_DEVIATION / width**0.5)
    head = Head.of(weight, random.standard_normal(num_classes, dtype=np.float32))
    values, ids = head.logits(hidden), np.arange(2**17 - ORDER_SIZE, 2**17)
    figures = {}
    for text in ("float16", "topk:k=10,bits=8", "head"):
        found = measure(values, CodecSpec.parse(text), (1.0,), ids, by_head=ByHead(hidden, head))
        figures[text] = _figures(found)
    return figures


def _figures(found: CodecFigures) -> dict[str, Any]:
    speeds = {"encoded_per_s": found.encoded_per_s, "decoded_per_s": found.decoded_per_s}
    lost = {"kl": found.kl[1.0], "top1": found.top1, "tail_error": found.tail_error}
    return {"bytes_per_sample": found.bytes_per_sample} | speeds | lost
