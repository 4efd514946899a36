"""One record of each kind, fixed for ever, and strategies that draw others."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from schemas.codecs import CodecSpec
from schemas.head import HeadChunk
from schemas.manifest import Manifest, Origin, Probe, ViewSpec
from schemas.positions import Chosen
from schemas.records import DeadLetter, Generation, Output, Publisher, SoftTargets, WorkOrder
from schemas.teacher import Teacher, TeacherInput, TeacherOutput

RECORDS = (WorkOrder, SoftTargets, DeadLetter, Teacher, Manifest, HeadChunk, Publisher, Generation)
STREAM_ID = "0123456789abcdef"
SHA256 = "a5" * 32
SPECS = (
    "float32",
    "float16",
    "int8",
    "int4",
    "topk:k=2,temperatures=1|2",
    "topk:k=2,bits=8,temperatures=1|2",
    "sampled:n=5",
)


def seeds(spec: CodecSpec, num_rows: int) -> Any:
    """What a codec needs that draws; None for the others."""
    return np.arange(num_rows, dtype=np.uint64) if spec.draws else None


def ids(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def logits(num_rows: int, num_classes: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(0, 4, (num_rows, num_classes)).astype(np.float32)


def soft_targets(spec: str = "float32", kept_rows: Any = None, values: Any = None) -> SoftTargets:
    num_kept = 3 if kept_rows is None else len(kept_rows)
    exact = np.arange(num_kept * 4, dtype=np.float32).reshape(num_kept, 4) if values is None else values
    output = Output.of("logits", exact, CodecSpec.parse(spec))
    return SoftTargets(STREAM_ID, 7, 2, ids(5, 300, 0), 2**63 - 1, kept_rows, "vit", SHA256, (output,))


def soft_targets_of_outputs() -> SoftTargets:
    """Of outputs of several shapes, the last of one number a row."""
    values = np.arange(24, dtype=np.float32)
    outputs = (
        Output.of("logits", values[:12].reshape(3, 4), CodecSpec("float16")),
        Output.of("hidden", values.reshape(3, 2, 4) / 4, CodecSpec("float16"), classes=False),
        Output.of("mask", np.zeros((3, 2, 2), np.float32), CodecSpec("topk", 1, (1.0, 2.0))),
        Output.of("age", values[:3], CodecSpec("float32"), classes=False),
    )
    return replace(soft_targets(), outputs=outputs)


def soft_targets_of_positions() -> SoftTargets:
    """Of outputs per position, the last by topk; the second sample has none."""
    chosen, values = Chosen(ids(2, 0, 1), ids(7, 0, 2**32 - 1)), np.arange(12, dtype=np.float32)
    outputs = (
        Output.of("logits", values.reshape(3, 4), CodecSpec("float16"), chosen=chosen),
        Output.of("hidden", values.reshape(3, 4) / 4, CodecSpec("float16"), classes=False, chosen=chosen),
        Output.of("words", np.zeros((3, 2), np.float32), CodecSpec("topk", 1, (1.0, 2.0)), chosen=chosen),
    )
    return replace(soft_targets(), outputs=outputs)


def soft_targets_in_steps() -> SoftTargets:
    """Of outputs by int8 and int4, of classes and without, of even and odd numbers of them."""
    values = np.arange(30, dtype=np.float32)
    outputs = (
        Output.of("logits", values[:12].reshape(3, 4), CodecSpec("int8")),
        Output.of("odd", values[:15].reshape(3, 5), CodecSpec("int4")),
        Output.of("hidden", values[:24].reshape(3, 2, 4) / 4, CodecSpec("int4"), classes=False),
        Output.of("wide", values.reshape(3, 2, 5), CodecSpec("int8"), classes=False),
        Output.of("age", values[:3], CodecSpec("int4"), classes=False),
    )
    return replace(soft_targets(), outputs=outputs)


def soft_targets_of_few_bits() -> SoftTargets:
    """Of outputs by topk in 8 bits and by sampled, at one place and at several."""
    of_sampled = CodecSpec("sampled", 5)
    outputs = (
        Output.of("logits", np.zeros((3, 2), np.float32), CodecSpec.parse("topk:k=1,bits=8,temperatures=1|2")),
        Output.of("all", np.zeros((3, 2, 5), np.float32), CodecSpec.parse("topk:k=5,bits=8")),
        Output.of("drawn", np.zeros((3, 2, 300), np.float32), of_sampled, seeds=seeds(of_sampled, 3)),
    )
    return replace(soft_targets(), outputs=outputs)


def soft_targets_by_head() -> SoftTargets:
    """Of hidden rows of 4 numbers, of a layer of 9 classes."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4) / 4
    return replace(soft_targets(), outputs=(Output.of("logits", values, CodecSpec("head", 4), num_classes=9),))


def examples() -> dict[str, Any]:
    """A record of each kind whose bytes do not depend on the machine's floating point."""
    probe = Probe(
        ids(1, 2), ids(2**62, 0), SHA256, np.arange(6).reshape(2, 3), np.arange(6, dtype=np.float32).reshape(2, 3) / 4
    )
    made: dict[str, Any] = {
        "work_order": WorkOrder(STREAM_ID, 7, 2, ids(5, 300, 0), 2**63 - 1),
        "soft_targets float32": soft_targets(),
        "soft_targets float16": soft_targets("float16", kept_rows=ids(0, 2)),
        "soft_targets topk": soft_targets("topk:k=1,temperatures=1|2", values=np.zeros((3, 2), np.float32)),
        "soft_targets steps": soft_targets_in_steps(),
        "soft_targets few bits": soft_targets_of_few_bits(),
        "soft_targets head": soft_targets_by_head(),
        "soft_targets outputs": soft_targets_of_outputs(),
        "soft_targets positions": soft_targets_of_positions(),
        "soft_targets generation": replace(soft_targets(), generation=300),
        "publisher": Publisher(STREAM_ID, "vit", "online", "00ff00ff00ff00ff", 640),
        "generation": Generation(
            STREAM_ID, "vit", 3, SHA256, "b6" * 32, "s3://modelle/vit/3-größe.onnx", "00ff00ff00ff00ff", 4_801, 1_920
        ),
        "dead_letter": DeadLetter(STREAM_ID, "vit", "digits.work-orders", 3, 12, 7, 1, 300, "cannot decode", None),
        "dead_letter of no order": DeadLetter(STREAM_ID, "vit", "t", 3, 12, None, None, None, "no Avro", b"\x00junk"),
        "teacher": Teacher(
            STREAM_ID,
            "vit",
            SHA256,
            "model.onnx",
            (
                TeacherInput("x", "image", "int32", "nhwc", 255.0, (32, 32)),
                TeacherInput("m", "mask", "uint8", "", 1.0, ()),
            ),
            (TeacherOutput.of_classes("probs", "probabilities", 10),),
            64,
        ),
        "teacher normalised": Teacher(
            STREAM_ID,
            "vit",
            SHA256,
            "model.onnx",
            (TeacherInput("x", "image", "float32", "nchw", 1 / 255, (), (0.5, 0.25, 0.125), (0.25,), "bgr"),),
            (TeacherOutput.of_classes("scores", "logits", 10),),
            64,
        ),
        "teacher outputs": Teacher(
            STREAM_ID,
            "bert",
            SHA256,
            "model.onnx",
            (TeacherInput("input_ids", "tokens", "int64", "", 1.0, ()),),
            (
                TeacherOutput.of_classes("scores", "logits", 10),
                TeacherOutput("hidden", "last", "features", (4, 8), None, 0, CodecSpec("float16")),
                TeacherOutput("mask", "mask", "probabilities", (3, 2, 2), 0, 3, CodecSpec("topk", 2, (1.0, 2.0))),
                TeacherOutput("age", "age", "values", (), None, 0, CodecSpec("float32")),
            ),
            8,
        ),
        "teacher positions": Teacher(
            STREAM_ID,
            "bert",
            SHA256,
            "model.onnx",
            (TeacherInput("input_ids", "tokens", "int64", "", 1.0, ()),),
            (
                TeacherOutput("logits", "scores", "logits", (8, 50), 1, 50, None, "position", "masked"),
                TeacherOutput(
                    "hidden", "last", "features", (8, 4), None, 0, CodecSpec("float16"), "position", "masked"
                ),
            ),
            8,
        ),
        "teacher maps": Teacher(
            STREAM_ID,
            "some",
            SHA256,
            "model.onnx",
            (TeacherInput("x", "image", "float32", "", 1.0, ()),),
            (
                replace(TeacherOutput.of_classes("scores", "logits", 4), class_map=(7, -1, 300, 2)),
                TeacherOutput("tags", "tags", "multilabel", (3,), 0, 3, CodecSpec("float16")),
                TeacherOutput("pooled", "last", "features", (4, 8), None, 0, CodecSpec("float32"), reduction="mean@1"),
            ),
            8,
        ),
        "teacher head": Teacher(
            STREAM_ID,
            "some",
            SHA256,
            "model.onnx",
            (TeacherInput("x", "image", "float32", "", 1.0, ()),),
            (replace(TeacherOutput.of_classes("y", "logits", 4), codec=CodecSpec("head", 4), head_sha256="c3" * 32),),
            8,
        ),
        "head_chunk": HeadChunk(STREAM_ID, "vit", SHA256, 1, 3, b"\x00part\xff"),
        "manifest": Manifest(
            stream="digits",
            stream_id=STREAM_ID,
            dataset="digits?split=train",
            dataset_fingerprint=SHA256,
            num_samples=1297,
            num_classes=2,
            class_names=("zero", "öne"),
            view=ViewSpec("affine", {"rotation": 15.0, "antialias": True, "mode": "zéro", "count": 3}, 1),
            view_probe=probe,
            order_size=256,
            epochs=40,
            seed=1,
            partitions=64,
            codec=CodecSpec("topk", 2, (1.0, 2.5)),
            max_record_bytes=1 << 20,
            schema_fingerprints={"work_order": "00" * 8, "soft_targets": "11" * 8},
        ),
    }
    origins = (Origin("digits", "fedcba9876543210", SHA256), Origin("first", "0f" * 8, "b6" * 32))
    return {**made, "manifest replay": replace(made["manifest"], stream="again", replay_of=origins)}


def plain(value: Any) -> Any:
    """A record as nested tuples that compare by value, bit by bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(one) for one in value)
    if hasattr(value, "__slots__"):
        return type(value).__name__, {name: plain(getattr(value, name)) for name in value.__slots__}
    return type(value).__name__, value


text = st.text(st.characters(codec="utf-8"), max_size=20)
names = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}", fullmatch=True)
longs = st.integers(0, 2**63 - 1)
positive = st.integers(1, 2**63 - 1)
sha256 = st.binary(max_size=8).map(lambda data: hashlib.sha256(data).hexdigest())
finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def id_arrays(draw: st.DrawFn, min_size: int = 0, max_size: int = 40) -> Any:
    width = draw(st.sampled_from((8, 16, 32, 63)))
    return np.array(draw(st.lists(st.integers(0, 2**width - 1), min_size=min_size, max_size=max_size)), np.int64)


def float_arrays(num_rows: int, num_classes: int, limit: float = 60_000.0) -> Any:
    return hnp.arrays(np.float32, (num_rows, num_classes), elements=st.floats(-limit, limit, width=32))


work_orders = st.builds(WorkOrder, text, longs, longs, id_arrays(), longs)


@st.composite
def soft_target_records(draw: st.DrawFn) -> SoftTargets:
    sample_ids = draw(id_arrays(max_size=8))
    kept = None
    if draw(st.booleans()):
        kept = np.flatnonzero(draw(hnp.arrays(np.bool_, len(sample_ids))))
    num_kept = len(sample_ids) if kept is None else len(kept)
    outputs = []
    for name in draw(st.lists(text, unique=True, max_size=3)):
        num_classes = draw(st.integers(2, 5))
        # Log-probabilities of topk travel in float16 too: keep the logits of a row within its reach.
        values = draw(float_arrays(num_kept, num_classes, 30_000.0))
        spec = CodecSpec.parse(draw(st.sampled_from(SPECS)))
        shape = (num_kept, *draw(st.sampled_from(((), (1,), (2,), (1, 3)))), num_classes)
        # Each row's numbers once more for each place before the classes.
        values = np.broadcast_to(values.reshape(num_kept, *[1] * (len(shape) - 2), num_classes), shape).copy()
        classes = bool(spec.k) or draw(st.booleans())
        outputs.append(Output.of(name, values, spec, classes=classes, seeds=seeds(spec, num_kept)))
    return SoftTargets(
        draw(text),
        draw(longs),
        draw(longs),
        sample_ids,
        draw(longs),
        kept,
        draw(text),
        draw(sha256),
        tuple(outputs),
        draw(longs),
    )


dead_letters = st.builds(
    DeadLetter,
    text,
    text,
    text,
    longs,
    longs,
    st.none() | longs,
    st.none() | longs,
    st.none() | longs,
    text,
    st.none() | st.binary(max_size=20),
)
teacher_inputs = st.builds(
    TeacherInput,
    text,
    text,
    text,
    st.sampled_from(("", "nchw", "nhwc")),
    finite,
    st.lists(positive, max_size=3).map(tuple),
    st.lists(finite, max_size=3).map(tuple),
    st.lists(finite.map(abs).filter(bool), max_size=3).map(tuple),
    st.sampled_from(("", "bgr")),
)
head_chunks = st.builds(
    lambda stream_id, teacher, sha256, index, more, data: HeadChunk(
        stream_id, teacher, sha256, index, index + more, data
    ),
    text,
    text,
    sha256,
    st.integers(0, 2**40),
    st.integers(1, 2**40),
    st.binary(min_size=1, max_size=20),
)
class_outputs = st.builds(
    TeacherOutput.of_classes, text, st.sampled_from(("logits", "probabilities", "log_probabilities")), positive
)
feature_outputs = st.builds(
    lambda output, kind, shape, codec: TeacherOutput("hidden", output, kind, shape, None, 0, CodecSpec(codec)),
    text,
    st.sampled_from(("features", "values")),
    st.lists(positive, max_size=3).map(tuple),
    st.sampled_from(("float16", "float32")),
)
teacher_outputs = st.tuples(class_outputs) | st.tuples(feature_outputs) | st.tuples(class_outputs, feature_outputs)
teachers = st.builds(
    Teacher,
    text,
    names,
    sha256,
    st.from_regex(r"[a-z]{1,9}\.onnx", fullmatch=True),
    st.lists(teacher_inputs, min_size=1, max_size=3).map(tuple),
    teacher_outputs,
    positive,
)

printed = st.characters(codec="utf-8", exclude_categories=("C", "Z"))
run_ids = st.text(printed, min_size=1, max_size=20)
publishers = st.builds(Publisher, text, names, names, run_ids, positive)
generations = st.builds(
    Generation,
    text,
    names,
    positive,
    sha256,
    sha256,
    run_ids,
    run_ids,
    longs,
    positive,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    num_probes, num_positions = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    probe = Probe(
        draw(id_arrays(num_probes, num_probes)),
        draw(id_arrays(num_probes, num_probes)),
        draw(text),
        draw(hnp.arrays(np.int64, (num_probes, num_positions))),
        draw(hnp.arrays(np.float32, (num_probes, num_positions))),
    )
    class_names = tuple(draw(st.lists(text, max_size=3)))
    codec = st.sampled_from((*SPECS, "topk:k=1", "topk:k=999,temperatures=0.25|1|2|4")).map(CodecSpec.parse)
    return Manifest(
        draw(names),
        draw(text),
        draw(text),
        draw(text),
        draw(positive),
        len(class_names) or draw(longs),
        class_names,
        ViewSpec(draw(text), draw(st.dictionaries(text, finite | st.integers() | text | st.booleans())), draw(longs)),
        probe,
        draw(positive),
        draw(positive),
        draw(longs),
        draw(positive),
        draw(codec),
        draw(positive),
        draw(st.dictionaries(text, text, max_size=3)),
        tuple(draw(st.lists(st.builds(Origin, text, text, text), max_size=2))),
    )


STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "work_order": work_orders,
    "soft_targets": soft_target_records(),
    "dead_letter": dead_letters,
    "teacher": teachers,
    "manifest": manifests(),
    "head_chunk": head_chunks,
    "publisher": publishers,
    "generation": generations,
}
