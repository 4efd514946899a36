"""Keeping the likeliest classes in the graph against NumPy, on one core: from a call's outputs to a codec's columns.

Bare is the codec's own way, `Output.of`; ours is `GraphCut` and the same columns of it. Logits are normal with a
deviation of 4, of calls of 64 rows. Both sides make the same classes, and tails within 1e-3, or nothing is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.pairs import interleave
from benchmarks.streams import Bench
from schemas.codecs import CodecSpec
from schemas.records import Output
from schemas.topk import TopK
from teacher_service.models.topk_graph import GraphCut

NUM_CLASSES, ROWS, CALLS = 151_936, 64, 4
CASES = {
    "topk_in_graph": "topk:k=128",
    "topk8_in_graph": "topk:k=128,bits=8",
    "topk_in_graph_three_temperatures": "topk:k=128,temperatures=1|2|4",
}
_MOST_TAIL_ERROR = 1e-3


def run(bench: Bench) -> dict[str, Any]:
    """Measure all cases; the first is the one with a bar."""
    values = np.random.default_rng(0).standard_normal((ROWS, NUM_CLASSES), dtype=np.float32) * 4
    ratios = {}
    for name, text in CASES.items():
        spec = CodecSpec.parse(text)
        cut = GraphCut(spec, NUM_CLASSES, threads=1)

        def numpy(spec: CodecSpec = spec) -> Output:
            return Output.of("logits", values, spec)

        def graph(spec: CodecSpec = spec, cut: GraphCut = cut) -> Output:
            return Output.of_kept("logits", cut(values), spec)

        _refuse_others(numpy(), graph())
        (pairs,) = interleave(bench.pairs, lambda: _rate(numpy), lambda: _rate(graph))
        rates = {"samples_per_s": float(np.median(pairs.ours)), "bare_samples_per_s": float(np.median(pairs.bare))}
        ratios[name] = pairs.as_dict() | rates
    first = next(iter(CASES))
    return {"ratios": {first: ratios.pop(first)}, "more_ratios": ratios}


def _rate(work: Callable[[], Output]) -> float:
    """Rows a second."""
    began = time.perf_counter()
    for _ in range(CALLS):
        work()
    return CALLS * ROWS / (time.perf_counter() - began)


def _refuse_others(numpy: Output, graph: Output) -> None:
    """Raise where the two are not what `--cut` promises."""
    was, is_ = numpy.values(), graph.values()
    assert isinstance(was, TopK)
    assert isinstance(is_, TopK)
    if not np.array_equal(was.indices, is_.indices):
        raise AssertionError("the graph keeps other classes than NumPy")
    for temperature, tail in was.log_tails.items():
        error = np.abs(np.expm1(is_.log_tails[temperature].astype(np.float64) - tail)).max()
        if error > _MOST_TAIL_ERROR:
            raise AssertionError(f"the tail at T = {temperature:g} is off by {error:.1e}")
