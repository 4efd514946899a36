"""A causal language model of 50,000 tokens, by top-k with exact tails: what a token costs in the log and in files.

A stream of windows of 128 token IDs on a real Kafka, seen as `next_token`, and a teacher whose logits, of a deviation
of 4, are those of each token by itself. A worker labels it by one of the codecs, and what it wrote has to be the very
bytes that are measured: those of a record of 8 windows over its positions, as a worker makes it, with each codec.
What captured files have beside is counted of that log. Tokens a second are of one core: of whole records, encoded
from logits by NumPy, the same by ONNX Runtime (`--cut graph`), and decoded with the reader's checks. Positions of
each record are held against all classes in float64: what the tail is off by, relatively and at most, and whether
`forward_kl` lies between 0 and the divergence over all classes, and is the one with all other classes taken for one
to 1 %.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.streams import Bench
from benchmarks.worker import label
from pipeline.captured.capturing import CaptureForm
from pipeline.captured.folder import CapturedFolder
from pipeline.create import StreamOptions, create_stream
from pipeline.datasets import open_dataset
from pipeline.feed import feed
from pipeline.kafka.cluster import KafkaCluster
from pipeline.sequence import Sequence
from pipeline.streams import Stream
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec
from schemas.positions import Positions
from schemas.records import Output, SoftTargets
from schemas.softmax import log_softmax
from schemas.topk import TopK
from student_trainer.capture import capture
from teacher_service.models.declared import Declared, DeclaredOutput
from teacher_service.models.describe import describe_model
from teacher_service.models.labels import label as label_views
from teacher_service.models.session import OnnxTeacher
from teacher_service.models.topk_graph import GraphCut

TOKENS, LENGTH, WIDTH, DEVIATION = 50_000, 128, 32, 4
SAMPLES, ORDER_SIZE = 16, 8
KS = (8, 16, 32, 64, 128)
CODECS = [f"topk:k={k}{bits},temperatures=1|2" for bits in ("", ",bits=8") for k in KS]
IN_THE_LOG = "topk:k=32,bits=8,temperatures=1|2"
SPEED_ROWS = 128
"""Positions of a record that the speeds are of."""
COMPARED_ROWS = 128
"""Positions of the record that are held against all classes."""


def write_model(path: Path) -> Path:
    """Write `input_ids` [N, 128] -> `logits` [N, 128, 50,000], of each token by itself."""
    draw = np.random.default_rng(0)
    hidden = draw.standard_normal((TOKENS, WIDTH), dtype=np.float32)
    weight = draw.standard_normal((WIDTH, TOKENS), dtype=np.float32) * np.float32(DEVIATION / WIDTH**0.5)
    nodes = [
        helper.make_node("Gather", ["hidden", "input_ids"], ["given"]),
        helper.make_node("MatMul", ["given", "weight"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", LENGTH])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", LENGTH, TOKENS])]
    weights = [numpy_helper.from_array(hidden, "hidden"), numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph(nodes, "language", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))
    return path


def run(bench: Bench) -> dict[str, Any]:
    """Measure all codecs."""
    ids = np.random.default_rng(1).integers(0, TOKENS, SAMPLES * LENGTH).astype(np.uint16)
    np.save(bench.folder / "ids.npy", ids)
    uri = f"tokens:{bench.folder / 'ids.npy'}?length={LENGTH}"
    fetcher = Fetcher(open_dataset(uri), view_spec("next_token", {}))
    options = StreamOptions(order_size=ORDER_SIZE, partitions=1)
    stream, _ = create_stream(bench.kafka, "vocabulary", fetcher, uri, options)
    feed(KafkaCluster(bench.kafka), stream)
    model = write_model(bench.folder / "language.onnx")
    output = DeclaredOutput("logits", "logits", codec=IN_THE_LOG, positions="predicts")
    teacher = describe_model(model, "t", stream.manifest, fetcher, Declared((output,)))
    stream = bench.add_teacher(stream, teacher)
    label(bench, stream, model, "t", SAMPLES // ORDER_SIZE, 1)
    capture(KafkaCluster(bench.kafka), stream, bench.folder / "labels", ["t"], CaptureForm("null"))
    files = CapturedFolder(bench.folder / "labels").teacher("t")
    found = {}
    for text in CODECS:
        spec = CodecSpec.parse(text)
        own = replace(teacher, outputs=(replace(teacher.outputs[0], codec=spec),))
        record, dense = _labelled(OnnxTeacher(model, own, threads=1), stream, fetcher)
        if text == IN_THE_LOG and record.encode() != files.read(0).value:
            raise AssertionError("the log has another record than is measured")
        found[text] = _of_record(record, dense) | _speeds(dense[:SPEED_ROWS], spec)
    num_bytes = sum(len(files.read(number).value) for number in range(files.num_orders))
    on_disk = sum(each.stat().st_size for each in (bench.folder / "labels").rglob("*") if each.is_file())
    files.close()
    return {"vocabulary": found, "captured_beside_records": on_disk - num_bytes}


def _labelled(model: OnnxTeacher, stream: Stream, fetcher: Fetcher) -> tuple[SoftTargets, NDArray[np.float32]]:
    """Return the record of the first order, as a worker makes it, and the [P, C] logits that it is of."""
    orders = Sequence.of(stream.manifest)
    ids, view_seed = orders.sample_ids(0), orders.view_seed(0)
    fetched = fetcher.fetch(ids, view_seed)
    given: list[NDArray[np.float32]] = []
    labels = label_views(model, fetched, stream.manifest.codec, also=lambda values: given.append(values["logits"]))
    teacher = model.teacher
    header = stream.manifest.stream_id, 0, 0, ids, view_seed, None, teacher.name, teacher.sha256
    return SoftTargets(*header, labels.outputs), np.concatenate(given)


def _of_record(record: SoftTargets, dense: NDArray[np.float32]) -> dict[str, float]:
    """Return the bytes of a position, and what its label is off by."""
    value = record.encode()
    labels = SoftTargets.decode(value, "record").outputs[0].values()
    assert isinstance(labels, Positions)
    assert isinstance(labels.rows, TopK)
    return {"bytes_per_token": len(value) / len(dense), "tail_error": _tail_error(dense, labels.rows)}


def _tail_error(values: NDArray[np.float32], rows: TopK) -> float:
    """Return the largest relative error of a tail; raise where `forward_kl` is not what it is said to be."""
    worst = 0.0
    draw = np.random.default_rng(2)
    for start in range(0, COMPARED_ROWS, 64):
        places = np.arange(start, start + 64)
        part = rows.take(places)
        student = draw.standard_normal((len(places), TOKENS), dtype=np.float32) * 2
        for temperature, tails in part.log_tails.items():
            dense, learned = (log_softmax(each / np.float32(temperature)) for each in (values[places], student))
            kept = np.take_along_axis(dense, part.indices, axis=1), np.take_along_axis(learned, part.indices, axis=1)
            outside = [1 - np.exp(each).sum(axis=1) for each in kept]
            exact = np.exp(dense)
            np.put_along_axis(exact, part.indices, 0.0, axis=1)
            worst = max(worst, float(np.abs(np.exp(tails.astype(np.float64)) / exact.sum(axis=1) - 1).max()))
            as_one = (np.exp(kept[0]) * (kept[0] - kept[1])).sum(axis=1)
            as_one += outside[0] * np.log(outside[0] / outside[1])
            stored = part.log_probs_at(temperature).astype(np.float64)
            cost = (np.exp(stored) * (stored - kept[1])).sum(axis=1)
            cost += np.exp(tails.astype(np.float64)) * (tails - np.log(outside[1]))
            of_all = (np.exp(dense) * (dense - learned)).sum(axis=1)
            if not ((cost > -1e-3) & (cost < of_all * 1.001 + 1e-3) & (np.abs(cost - as_one) < 0.01 * as_one)).all():
                raise AssertionError(f"forward_kl at T = {temperature:g} is not the lower bound that it is said to be")
    return worst


def _speeds(values: NDArray[np.float32], spec: CodecSpec) -> dict[str, float]:
    cut = GraphCut(spec, TOKENS, threads=1)

    def record(output: Output) -> bytes:
        return SoftTargets("0" * 16, 0, 0, np.arange(len(values)), 0, None, "t", "0" * 64, (output,)).encode()

    made = record(Output.of("logits", values, spec))
    works: dict[str, Callable[[], object]] = {
        "encoded_per_s": lambda: record(Output.of("logits", values, spec)),
        "encoded_by_graph_per_s": lambda: record(Output.of_kept("logits", cut(values), spec)),
        "decoded_per_s": lambda: SoftTargets.decode(made, "record").outputs[0].values(),
    }
    return {name: len(values) / _least_seconds(work) for name, work in works.items()}


def _least_seconds(work: Callable[[], object]) -> float:
    """Return the least of three, once its data lie in memory."""
    work()
    found = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)
