"""How models are measured: what they are called on, what is timed, and what follows from the figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models import classifier

from pipeline.bench.figures import Configuration, Measured, Model, Spread, as_dicts, cost_of_a_million
from pipeline.bench.inputs import MAX_ROWS, Declared, Inputs, declared_inputs, random_inputs, sizes_of
from pipeline.bench.rounds import configurations, measure
from pipeline.bench.times import CALLS_FOR_P99, MIN_CALLS, time_calls
from pipeline.onnx_runtime import ONNX_DTYPES, open_session
from schemas.errors import ConfigError

PATH = Path("m.onnx")
SAMPLES = np.random.default_rng(0).random((5, 1, 8, 8), np.float32)


def model_of(path: Path, name: str = "", rows: int = 4) -> Model:
    inputs = random_inputs(path, declared_inputs(path, "cpu"), {}, rows)
    return Model(name or path.name, path, path.stat().st_size, inputs, "random values")


def test_the_percentiles_of_calls_are_in_order_and_too_few_calls_have_no_99th(tmp_path: Path) -> None:
    session = open_session(classifier(tmp_path / "m.onnx"), threads=1)
    times = time_calls(session, {"x": SAMPLES}, 5, 0.1)
    assert times.num_calls >= CALLS_FOR_P99
    assert times.p99_ms is not None
    assert 0 < times.p50_ms <= times.p95_ms <= times.p99_ms
    assert times.samples_per_s > 0
    few = time_calls(session, {"x": SAMPLES}, 5, 0.0)
    assert (few.num_calls, few.p99_ms) == (MIN_CALLS, None)


class Clocked:
    """A session whose every tenth call takes 5 ms, all others 1 ms, by a clock that nothing else moves."""

    now = 0.0
    calls = 0

    def run(self, names: None, inputs: Any, /) -> None:
        self.calls += 1
        self.now += 0.001 if self.calls % 10 else 0.005


def test_percentiles_are_of_the_calls_behind_the_warm_up_and_throughput_of_all_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Clocked()
    monkeypatch.setattr("pipeline.bench.times.time.perf_counter", lambda: session.now)
    times = time_calls(session, {}, 8, 1.4)
    assert times.num_calls == pytest.approx(1000, abs=3)
    assert session.calls == pytest.approx(1200, abs=5)
    assert (times.p50_ms, times.p95_ms, times.p99_ms) == (pytest.approx(1), pytest.approx(5), pytest.approx(5))
    assert times.samples_per_s == pytest.approx(8 / 0.0014, rel=0.01)


NAMES = st.sampled_from(["tokens", "height", None])
SHAPES = st.lists(st.integers(1, 4) | NAMES, max_size=3)


@given(
    st.lists(st.tuples(st.sampled_from(sorted(ONNX_DTYPES)), st.sampled_from(["N", None, 3]), SHAPES), min_size=1),
    st.integers(1, 5),
    st.integers(1, 9),
)
def test_random_inputs_have_the_declared_types_and_shapes(
    drawn: list[tuple[str, Any, list[Any]]], rows: int, batch: int
) -> None:
    declared = [Declared(f"in{i}", kind, (first, *rest)) for i, (kind, first, rest) in enumerate(drawn)]
    free = {name for each in declared for axis, name in each.free() if axis}
    sizes = {name: number + 2 for number, name in enumerate(sorted(free))}
    inputs = random_inputs(PATH, declared, sizes, rows)
    assert inputs.only == (None if any(each.shape[0] != 3 for each in declared) else 3)
    taken = inputs.batch(batch)
    again = random_inputs(PATH, declared, sizes, rows).batch(batch)
    for each in declared:
        named = dict(each.free())
        wanted = [sizes[named[axis]] if axis in named else size for axis, size in enumerate(each.shape) if axis]
        assert taken[each.name].shape == (batch if 0 in named else 3, *wanted)
        assert str(taken[each.name].dtype) == ONNX_DTYPES[each.type]
        assert np.array_equal(taken[each.name], again[each.name])


def test_a_batch_larger_than_the_samples_has_them_again_and_fixed_inputs_once() -> None:
    inputs = Inputs({"x": SAMPLES, "anchors": np.arange(3)}, frozenset({"x"})).batch(7)
    assert np.array_equal(inputs["x"], np.concatenate([SAMPLES, SAMPLES[:2]]))
    assert inputs["anchors"].tolist() == [0, 1, 2]
    assert len(random_inputs(PATH, [Declared("x", "tensor(float)", ("N", 2))], {}, 10**9).arrays["x"]) == MAX_ROWS


REFUSED = {
    "a size that is not given": ([("x", "tensor(float)", ("N", "tokens"))], {}, r"\[N, tokens\]: .* --size tokens=N"),
    "a size without a name": ([("x", "tensor(float)", ("N", 3, None))], {}, r"\[N, 3, \?\]: .* --size x\.2=N"),
    "the batch as a size": ([("x", "tensor(float)", ("N",))], {"N": 3}, "'N', .* is the batch: use --batch-size"),
    "a batch elsewhere": ([("x", "tensor(float)", ("N", "N"))], {}, "'N' is the batch of input 'x' and dimension 1"),
    "a type without values": ([("x", "tensor(string)", ("N",))], {}, r"'x' is a tensor\(string\)"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_random_values_can_be_made_of_is_refused_in_one_line(what: str) -> None:
    shapes, sizes, says = REFUSED[what]
    with pytest.raises(ConfigError, match=rf"m\.onnx: .*{says}") as told:
        random_inputs(PATH, [Declared(*each) for each in shapes], sizes, 4)
    assert "\n" not in str(told.value)


def test_sizes_are_read_and_bad_ones_refused() -> None:
    assert sizes_of(["a=1", "b=c=20", "a=1"]) == {"a": 1, "b=c": 20}
    for texts in (["a"], ["=3"], ["a=0"], ["a=1.5"], ["a=1", "a=2"]):
        with pytest.raises(ConfigError, match="--size"):
            sizes_of(texts)


def test_a_million_samples_cost_the_seconds_that_they_take() -> None:
    assert cost_of_a_million(1e6, 3600.0) == pytest.approx(1.0)
    assert cost_of_a_million(500.0, 0.9) == pytest.approx(0.5)


def test_ratios_are_of_the_same_round_and_figures_medians() -> None:
    def model(name: str, file_bytes: int) -> Model:
        return Model(name, PATH, file_bytes, Inputs({}, frozenset()), "")

    def rounds(*p50: float, p99: float | None) -> tuple[dict[str, Any], ...]:
        return tuple(
            {
                "num_calls": 10,
                "p50_ms": each,
                "p95_ms": each,
                "p99_ms": p99 if each > 1 else None,
                "samples_per_s": 1000 / each,
                "peak_bytes": 8,
                "providers": ["CPUExecutionProvider"],
            }
            for each in p50
        )

    how = Configuration(1, 1, "cpu")
    slow = Measured(model("teacher", 300), how, rounds(2.0, 8.0, 4.0, p99=9.0))
    fast = Measured(model("student", 100), how, rounds(1.0, 2.0, 2.0, p99=9.0))
    first, second = as_dicts([slow, fast], 3.6)
    assert first["p50_ms"] == {"median": 4.0, "least": 2.0, "most": 8.0}
    assert first["p99_ms"] == {"median": 9.0, "least": 9.0, "most": 9.0}
    assert first["cost_of_a_million"] == pytest.approx(4.0)
    assert "ratios" not in first
    assert second["p99_ms"] is None  # one round has none
    assert second["ratios"] == {
        "to": "teacher",
        "p50_ms": {"median": 0.5, "least": 0.25, "most": 0.5},
        "samples_per_s": {"median": 2.0, "least": 2.0, "most": 4.0},
        "peak_bytes": {"median": 1.0, "least": 1.0, "most": 1.0},
        "file_bytes": pytest.approx(1 / 3),
    }


def test_models_take_turns_in_each_round_and_have_all_figures(tmp_path: Path) -> None:
    small = model_of(classifier(tmp_path / "small.onnx"))
    large = model_of(classifier(tmp_path / "large.onnx", shape=(3, 256, 256)))  # 25 MB of weights
    turns: list[tuple[int, str]] = []
    asked = configurations([small, large], [2, 2], [1], ["cpu"])
    found = measure([small, large], asked, 2, 0.02, lambda number, model, how: turns.append((number, model.name)))
    assert turns == [(1, "small.onnx"), (1, "large.onnx"), (2, "large.onnx"), (2, "small.onnx")]
    assert [each.model for each in found] == [small, large]
    for each in found:
        assert each.configuration == Configuration(2, 1, "cpu")
        for name in ("p50_ms", "p95_ms", "samples_per_s"):
            spread = each.spread(name)
            assert spread is not None
            assert 0 < spread.least <= spread.median <= spread.most
    if sys.platform == "linux":
        little, much = (each.spread("peak_bytes") for each in found)
        assert isinstance(little, Spread)
        assert isinstance(much, Spread)
        assert 0 < little.most < much.least
        assert much.least > large.file_bytes


def test_a_model_of_one_batch_size_is_refused_for_another(tmp_path: Path) -> None:
    model = model_of(classifier(tmp_path / "m.onnx", batch=8))
    assert configurations([model], [8], [1], ["cpu"]) == [Configuration(8, 1, "cpu")]
    with pytest.raises(ConfigError, match=r"m\.onnx: takes batches of 8 alone, not of 2: give --batch-size 8"):
        configurations([model], [8, 2], [1], ["cpu"])


def test_a_model_that_cannot_run_or_ends_its_process_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = classifier(tmp_path / "m.onnx")
    wrong = Model("m", path, 1, Inputs({"x": SAMPLES[:, :, :3]}, frozenset({"x"})), "")
    asked = [Configuration(1, 1, "cpu")]
    with pytest.raises(ConfigError, match=r"m\.onnx: ONNX Runtime cannot run it on these inputs: .*Got: 3"):
        measure([wrong], asked, 1, 0.01, lambda *_: None)
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(ConfigError, match=r"with a batch of 1 was ended by SIGKILL: .* try a smaller batch"):
        measure([wrong], asked, 1, 0.01, lambda *_: None)
