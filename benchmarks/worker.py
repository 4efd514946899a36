"""A teacher worker against a bare ONNX Runtime loop, in samples/s.

Ours: the work loop of `distillog teach`, over a stream that was fed beforehand, from the first soft target that it
publishes to the last, by the records' timestamps. Starting, joining the group and the wait for more orders at the end
are not in it; fetching views, encoding, publishing and committing are.

Bare: `session.run` over the same orders, of the same batch, with the same session options and threads. Its inputs lie
ready: views are not in it. Beside it the same loop that fetches each order's views first, in the same thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.models import write_cnn
from benchmarks.pairs import Pairs, Spread, interleave
from benchmarks.streams import ORDER_SIZE, Bench, soft_target_times
from pipeline.onnx_runtime import open_session
from pipeline.sequence import Sequence
from pipeline.streams import Stream
from pipeline.wait import Deadline
from schemas.records import Teacher
from teacher_service.models.describe import describe_model
from teacher_service.models.session import prepare_input
from teacher_service.serve import TeachOptions, prepare_worker

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TEACHERS: dict[str, tuple[dict[str, Any], int]] = {
    "cheap": ({"channels": (32, 32, 64), "hidden": 128}, 400),
    "heavy": ({"channels": (64, 64, 96), "hidden": 128, "enlarge": 4}, 20),
}
"""name -> (its CNN, orders of a run); the cheap one is that of the digits example, 62,250 parameters"""


def label(bench: Bench, stream: Stream, model: Path, name: str, num_orders: int, threads: int) -> list[float]:
    """Label a stream with a worker in this process; when each soft target was published, in seconds."""
    worker = prepare_worker(bench.kafka, stream.manifest.stream, model, TeachOptions(name, None, "cpu", threads))
    ended = threading.Event()

    def stop_when_done() -> None:
        deadline = Deadline(300.0)
        while worker.report.orders < num_orders and not deadline.over and not ended.wait(0.05):
            pass
        worker.stop()

    watcher = threading.Thread(target=stop_when_done, name="bench", daemon=True)
    watcher.start()
    try:
        worker.run()
    finally:
        ended.set()
        watcher.join()
    return soft_target_times(bench.kafka, stream, name, num_orders)


def bare_loops(
    bench: Bench, stream: Stream, model: Path, teacher: Teacher, num_orders: int, session: InferenceSession
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Samples/s of inference alone on inputs that lie ready, and of fetching and inference one after the other."""
    sequence = Sequence.of(stream.manifest)
    fetcher = bench.fetcher
    (spec,) = teacher.inputs

    def fetched(number: int) -> Any:
        view_seed = sequence.view_seed(sequence.epoch_of(number))
        return prepare_input(fetcher.fetch(sequence.sample_ids(number), view_seed).inputs[spec.field], spec)

    ready = [fetched(number) for number in range(num_orders)]

    def alone() -> float:
        began = time.perf_counter()
        for values in ready:
            session.run([teacher.outputs[0].output], {spec.input: values})
        return num_orders * ORDER_SIZE / (time.perf_counter() - began)

    def with_fetch() -> float:
        began = time.perf_counter()
        for number in range(num_orders):
            session.run([teacher.outputs[0].output], {spec.input: fetched(number)})
        return num_orders * ORDER_SIZE / (time.perf_counter() - began)

    return alone, with_fetch


def measure(bench: Bench, weight: str, threads: int) -> dict[str, Pairs]:
    """Measure a teacher of TEACHERS: the worker, and the bare loop that fetches, both against inference alone."""
    architecture, num_orders = TEACHERS[weight]
    model = write_cnn(bench.folder / f"{weight}.onnx", **architecture)
    name = f"worker-{weight}-{threads}"
    stream = bench.stream(name, num_orders)
    teachers = [
        describe_model(model, f"t{number}", stream.manifest, bench.fetcher) for number in range(bench.pairs + 1)
    ]
    for teacher in teachers:
        stream = bench.add_teacher(stream, teacher)
    # Another teacher's name is another group and another log: each run labels the same orders from the first on.
    names = iter(teachers)

    def worker() -> float:
        times = label(bench, stream, model, next(names).name, num_orders, threads)
        return (num_orders - 1) * ORDER_SIZE / (times[-1] - times[0])

    session = open_session(model, "cpu", threads)
    alone, with_fetch = bare_loops(bench, stream, model, teachers[0], num_orders, session)
    for warm_up in (alone, worker, with_fetch):
        warm_up()
    ours, fetching = interleave(bench.pairs, alone, worker, with_fetch)
    return {"worker": ours, "fetching": fetching}


def run(bench: Bench) -> dict[str, Any]:
    """Measure the cheap and the heavy teacher on one thread, and the heavy one on all cores."""
    ratios: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for row, weight, threads in (
        ("worker_cheap", "cheap", 1),
        ("worker_heavy", "heavy", 1),
        ("worker_heavy_all_cores", "heavy", 0),
    ):
        # All cores is beside the point on a machine that also runs the broker, so it gets fewer pairs.
        measured = measure(replace(bench, pairs=bench.pairs if threads else -(-bench.pairs // 2)), weight, threads)
        ours, fetching = measured["worker"], measured["fetching"]
        against_fetching = [own / sequential for own, sequential in zip(ours.ours, fetching.ours, strict=True)]
        figures = {
            "samples_per_s": Spread.of(ours.ours).median,
            "bare_samples_per_s": Spread.of(ours.bare).median,
            "bare_ms_per_order": 1000 * ORDER_SIZE / Spread.of(ours.bare).median,
            "against_fetch_and_inference": Spread.of(against_fetching).median,
            "threads": threads,
        }
        (extra if threads == 0 else ratios)[row] = ours.as_dict() | figures
    return {"ratios": ratios, "more_ratios": extra}
