"""A student from a log against the same training loop from memory, in samples/s.

Ours: `source = "stream"`, over a log that was filled beforehand. Bare: `source = "dataset"`. The rest is equal: order,
views, background thread, batch, network, loss (the true labels; the soft targets are read, decoded and handed over,
and no loss looks at them), one thread of PyTorch. Timed from the first line of metrics to the last, so reading begins
before. For a tiny student such a ratio would say nothing but how fast views are made. There it is the training
thread's overhead that counts: its CPU time for an order in the whole loop over a stream, views cached, less that of the
bare steps over batches that lie in memory. The same difference by the clock, which also holds its waits for labels and
for Python's interpreter lock, stands beside it.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import write_cnn
from benchmarks.pairs import Pairs, Spread, interleave
from benchmarks.streams import ORDER_SIZE, ORDERS_PER_EPOCH, VIEW, Bench
from benchmarks.worker import label
from pipeline.kafka.cluster import KafkaCluster
from pipeline.views.fetch import Fetched, Fetcher
from student_trainer.batches import cut
from student_trainer.learning.terms import resolve
from student_trainer.learning.trainee import Trainee
from student_trainer.loading import Loader
from student_trainer.preparation import first_ids, inspect_network, plan, set_threads
from student_trainer.reporter import RunReporter
from student_trainer.run.folder import RunFolder
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.sources.base import Cursor
from student_trainer.sources.dataset import DatasetSource
from student_trainer.sources.stream import StreamSource
from student_trainer.sources.stream_settings import StreamSettings
from student_trainer.train import TrainResult, train
from teacher_service.models.describe import describe_model

NUM_ORDERS = 1_500
"""In the log; a tiny student trains on all."""
NUM_STEPS = 110
LARGE = {"name": "cnn", "channels": [48, 64, 64], "hidden": 128}
"""A step of some 30 ms on one core."""
TINY = {"name": "mlp", "hidden": [64, 64]}
STREAM = "student"


class CachedFetcher:
    """A `Fetcher` that keeps every request's views: they cost nothing the second time."""

    def __init__(self, fetcher: Fetcher) -> None:
        self.dataset = fetcher.dataset
        self.view = fetcher.view
        self._fetcher = fetcher
        self._kept: dict[tuple[int, int, int], Fetched] = {}
        self.busy = 0.0

    def close(self) -> None:
        """Do nothing: it outlasts the runs that use it."""

    def fetch(self, sample_ids: NDArray[np.int64], view_seed: int, size: tuple[int, ...] | None = None) -> Fetched:
        """As `Fetcher.fetch`."""
        key = (view_seed, int(sample_ids[0]), len(sample_ids))  # an epoch has each sample once
        if key not in self._kept:
            self._kept[key] = self._fetcher.fetch(sample_ids, view_seed, size)
        return self._kept[key]


@dataclass(frozen=True, slots=True)
class Seconds:
    """What a step took: a batch is an order of 256."""

    clock: float
    cpu: float
    """Of the training thread."""


class Runs:
    """Makes runs that differ in their source and student alone."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._numbers = itertools.count()

    def settings(
        self, source: str, student: dict[str, Any], losses: list[dict[str, Any]], steps: int, log_every: int = 50
    ) -> RunSettings:
        """Return a run's settings, under a name of its own."""
        document: dict[str, Any] = {
            "name": f"bench-{next(self._numbers)}",
            "source": source,
            "data": {"stream": STREAM},
            "teachers": [{"name": "cheap"}],
            "student": student,
            "losses": losses,
            "train": {"batch_size": ORDER_SIZE, "steps": steps, "threads": 1, "device": "cpu", "log_every": log_every},
            "checkpoint": {"every": 0},
        }
        if source == "dataset":
            del document["teachers"]
            view = {"name": "affine", **VIEW}
            document["data"] = {"dataset": self._bench.dataset, "view": view, "order_size": ORDER_SIZE}
            document["data"]["epochs"] = NUM_ORDERS // ORDERS_PER_EPOCH
        return run_settings(document)

    def train(self, settings: RunSettings, cache: CachedFetcher | None = None) -> tuple[Seconds, TrainResult]:
        """Train as `distillog runs start` does; seconds of a step between the first line of metrics and the last."""
        lines: list[tuple[int, float, float]] = []

        def take(line: dict[str, Any]) -> None:
            lines.append((line["step"], time.perf_counter(), time.thread_time()))

        kafka = self._bench.kafka
        with RunFolder.create(self._bench.folder / "runs" / settings.name, settings) as folder:
            if settings.source == "dataset":
                result = train(settings, folder, DatasetSource(settings), None, take)
            else:
                source = StreamSource(kafka, StreamSettings.of(settings))
                if cache is not None:
                    source.fetcher = cache  # type: ignore[assignment]
                with RunReporter(KafkaCluster(kafka), source.stream, settings.name, ["cheap"]) as reporter:
                    result = train(settings, folder, source, reporter, take)
        steps, clock, cpu = (last - first for first, last in zip(lines[0], lines[-1], strict=True))
        return Seconds(clock / steps, cpu / steps), result


def fill(bench: Bench) -> None:
    """Make the stream and let the cheap teacher label it."""
    model = write_cnn(bench.folder / "filler.onnx", channels=(8,), hidden=16)
    stream = bench.stream(STREAM, NUM_ORDERS)
    stream = bench.add_teacher(stream, describe_model(model, "cheap", stream.manifest, bench.fetcher))
    label(bench, stream, model, "cheap", NUM_ORDERS, threads=1)


def measure_large(bench: Bench, runs: Runs) -> tuple[Pairs, float]:
    """Samples/s of the stream against those of the dataset, and the views/s of the background thread."""
    views: list[float] = []

    def samples_per_s(source: str) -> float:
        settings = runs.settings(source, LARGE, [{"name": "cross_entropy"}], NUM_STEPS, log_every=10)
        seconds, result = runs.train(settings)
        if source == "stream":
            views.append(result.views_per_s)
        return ORDER_SIZE / seconds.clock

    samples_per_s("dataset")
    samples_per_s("stream")
    (pairs,) = interleave(bench.pairs, lambda: samples_per_s("dataset"), lambda: samples_per_s("stream"))
    return pairs, Spread.of(views).median


def measure_tiny(bench: Bench, runs: Runs) -> tuple[Pairs, Pairs]:
    """Seconds of an order, of the training thread's CPU and by the clock: the loop over a stream, and bare steps."""
    losses = [{"name": "forward_kl"}]
    cache = CachedFetcher(bench.fetcher)

    # An interleaved series holds one figure of each loop; the CPU's are kept aside, in the same order.
    loop_cpu: list[float] = []
    steps_cpu: list[float] = []

    def loop() -> float:
        seconds, _ = runs.train(runs.settings("stream", TINY, losses, NUM_ORDERS), cache)
        loop_cpu.append(seconds.cpu)
        return seconds.clock

    loop()  # fills the cache, too
    settings = runs.settings("stream", TINY, losses, NUM_ORDERS)
    source = StreamSource(bench.kafka, StreamSettings.of(settings))
    source.fetcher = cache  # type: ignore[assignment]
    set_threads(1)
    start = Cursor.start()
    rows = cut(source.orders(start), ORDER_SIZE, start, source.sequence.num_orders)
    loader = Loader(source.fetcher, (), first_ids(source))
    ready = [batch for batch, _ in loader.batches(rows)]
    source.close()
    total_steps, _ = plan(settings, source)
    network = inspect_network(settings, source)

    def steps() -> float:
        import torch

        terms = resolve(settings, source.targets)
        trainee = Trainee(settings, network, total_steps, source.labelled_fraction, torch.device("cpu"), terms)
        began, began_cpu = time.perf_counter(), time.thread_time()
        for step, batch in enumerate(ready):
            trainee.take_step(batch, step)
        steps_cpu.append((time.thread_time() - began_cpu) / len(ready))
        return (time.perf_counter() - began) / len(ready)

    steps()
    loop_cpu.clear()
    steps_cpu.clear()
    (clock,) = interleave(bench.pairs, steps, loop)
    return Pairs(tuple(loop_cpu), tuple(steps_cpu)), clock


def run(bench: Bench) -> dict[str, Any]:
    """Measure the large and the tiny student."""
    fill(bench)
    runs = Runs(bench)
    large, views_per_s = measure_large(bench, runs)
    cpu, clock = measure_tiny(bench, runs)
    overhead = Spread.of([1e6 * seconds for seconds in cpu.differences])
    noise = Spread.of([1e6 * (after - before) for before, after in itertools.pairwise(cpu.bare)])
    bare = Spread.of(large.bare).median
    return {
        "ratios": {
            "student": large.as_dict()
            | {
                "samples_per_s": Spread.of(large.ours).median,
                "bare_samples_per_s": bare,
                "bare_ms_per_step": 1000 * ORDER_SIZE / bare,
            }
        },
        "tiny_student": {
            "overhead_us_per_order": overhead.median,
            "spread": overhead.width,
            "quartiles": [overhead.low, overhead.high],
            "self_spread": noise.width,
            "bare_step_us": 1e6 * Spread.of(cpu.bare).median,
            "wall_overhead_us_per_order": 1e6 * Spread.of(clock.differences).median,
            "pairs": len(cpu.ours),
        },
        "views_per_s": views_per_s,
    }
