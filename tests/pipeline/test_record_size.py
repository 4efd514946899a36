"""How large an order of a causal language model may be: the refusal says it, and what it says fits."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.record_size import record_bytes, refuse_large_records, teacher_record_bytes
from pipeline.topic_settings import DEFAULT_MAX_MESSAGE
from pipeline.views import view_spec
from schemas.avro import REGISTRY
from schemas.codecs import CodecSpec
from schemas.errors import RecordTooLarge
from schemas.positions import Chosen
from schemas.records import Manifest, Output, Probe, SoftTargets, Teacher, TeacherInput, TeacherOutput
from schemas.topk import Kept, kept_classes

TOKENS, LENGTH = 50_000, 1_024


def stream_of(order_size: int) -> Manifest:
    none = np.empty(0, np.int64)
    probe = Probe(none, none, "0" * 64, np.empty((0, 1), np.int64), np.empty((0, 1), np.float32))
    return Manifest(
        stream="s",
        stream_id="0123456789abcdef",
        dataset="none",
        dataset_fingerprint="0" * 64,
        num_samples=10_000,
        num_classes=0,
        class_names=(),
        view=view_spec("next_token", {}),
        view_probe=probe,
        order_size=order_size,
        epochs=1,
        seed=0,
        partitions=1,
        codec=CodecSpec("float16"),
        max_record_bytes=record_bytes(order_size, []),
        schema_fingerprints=REGISTRY.fingerprints(),
    )


def teacher_by(codec: str) -> Teacher:
    inputs = (TeacherInput("input_ids", "input_ids", "int64", "", 1.0, ()),)
    output = TeacherOutput("logits", "logits", "logits", (LENGTH, TOKENS), 1, TOKENS, CodecSpec.parse(codec))
    output = replace(output, per="position", positions="predicts")
    return Teacher("0123456789abcdef", "t", "0" * 64, "m.onnx", inputs, (output,), 1)


@pytest.mark.parametrize("codec", ["topk:k=32,temperatures=1|2", "topk:k=32,bits=8,temperatures=1|2"])
def test_an_order_of_the_size_that_a_refusal_names_fits_and_of_one_more_does_not(codec: str) -> None:
    teacher = teacher_by(codec)
    with pytest.raises(RecordTooLarge, match=r"1024 positions x 50000 as topk.*--order-size \d+ or less") as caught:
        refuse_large_records(stream_of(256), teacher, {})
    (fitting,) = map(int, re.findall(r"--order-size (\d+) or less", str(caught.value)))
    refuse_large_records(stream_of(fitting), teacher, {})
    with pytest.raises(RecordTooLarge):
        refuse_large_records(stream_of(fitting + 1), teacher, {})

    # What is said of it is no guess: a record of that many windows, each position of them labelled, is as small.
    rows = fitting * (LENGTH - 1)
    spec, few = CodecSpec.parse(codec), np.random.default_rng(0).normal(0, 4, (8, TOKENS)).astype(np.float32)
    kept = kept_classes(few, spec.k, spec.temperatures)
    again = np.arange(rows) % 8
    tails = {temperature: tail[again] for temperature, tail in kept.log_tails.items()}
    kept = Kept(kept.classes[again], kept.log_probs[again], tails, TOKENS)
    counts = np.full(fitting, LENGTH - 1)
    chosen = Chosen(counts, np.full(fitting, 2**32 - 1))
    stored = Output.of_kept("logits", kept, spec, chosen)
    record = SoftTargets("0" * 16, 0, 0, np.arange(fitting), 0, None, "t", "0" * 64, (stored,)).encode()
    assert 0.9 * DEFAULT_MAX_MESSAGE * fitting / (fitting + 1) < len(record)
    assert len(record) <= teacher_record_bytes(stream_of(fitting), teacher) <= DEFAULT_MAX_MESSAGE


def test_where_not_one_window_fits_the_refusal_names_a_smaller_codec() -> None:
    with pytest.raises(RecordTooLarge, match=r"topics take \d+: add it with --codec logits=topk:k=10"):
        refuse_large_records(stream_of(1), teacher_by("float16"), {})
