"""Stored labels against those made again: what counts as a change, and which rows are looked at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.streams import teacher_record

from pipeline.hashing import hash64
from pipeline.limits import SAME_LABEL
from schemas.codecs import CODECS, CodecSpec, Sampled
from schemas.positions import Chosen
from schemas.records import Output, TeacherOutput
from teacher_service.fleet.supervisor import FleetOptions, _teach
from teacher_service.proof.compare import Change, Ranges, compare
from teacher_service.proof.rows import Choice

_OF_K = {"topk": (4, (1.0, 2.0)), "topk8": (4, (1.0, 2.0)), "sampled": (50,)}
SPECS = {name: CodecSpec(name, *_OF_K.get(name, ())) for name in CODECS if name != "head"}
M, C = 24, 10


def logits(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(0, 4, shape).astype(np.float32)


def output(values: Any, spec: CodecSpec, classes: bool = True, chosen: Chosen | None = None) -> Output:
    seeds = hash64(np.arange(len(values), dtype=np.uint64)) if spec.draws else None
    return Output.of("o", values, spec, classes=classes, chosen=chosen, seeds=seeds)


def changes(stored: Any, exact: Any, spec: CodecSpec, classes: bool = True, chosen: Chosen | None = None) -> Change:
    def of(values: Any) -> Output:
        return output(values, spec, classes, chosen)

    made = of(exact)
    return compare(of(stored).values(), made, exact, np.array(spread(exact, spec, classes)))


@pytest.mark.parametrize("codec", SPECS)
@given(st.integers(0, 1 << 32), st.floats(0, 1e-2))
def test_what_a_codec_rounds_is_no_change_and_a_machine_that_is_off_by_little_changes_little(
    codec: str, seed: int, off: float
) -> None:
    exact = logits(seed, M, C)
    noise = np.random.default_rng(seed + 1).uniform(-off, off, exact.shape).astype(np.float32)
    alike = changes(exact.copy(), exact, SPECS[codec])
    assert alike.same.all()
    assert (alike.share == 0).all()
    found = changes(exact + noise, exact, SPECS[codec])
    if SPECS[codec].draws:  # one of the draws may fall elsewhere, whatever the noise
        return
    # Of the noise, of what centring or normalising adds of it, and of the digits of float32. A step of topk8 is as long
    # as a number in half precision says.
    steps = 0.03 if codec == "topk8" else 0.0
    assert found.share.max() * spread(exact, SPECS[codec]) <= 5 * off + 1e-5 + steps


def spread(exact: Any, spec: CodecSpec, classes: bool = True) -> float:
    shape = exact.shape[1:]
    declared = (
        TeacherOutput("o", "y", "logits", shape, len(shape) - 1, shape[-1], spec)
        if classes
        else TeacherOutput("o", "y", "features", shape, None, 0, spec)
    )
    ranges = Ranges(teacher_record(outputs=(declared,)), spec)
    ranges.see({"o": exact})
    return float(ranges.of("o"))


@pytest.mark.parametrize(("codec", "column"), [("float16", "values"), ("topk", "log_probs")])
def test_a_rounding_that_turns_over_is_told_as_what_turned_it(codec: str, column: str) -> None:
    exact = logits(0, M, C)
    off = exact + np.float32(1e-4) * np.random.default_rng(1).choice([-1, 1], exact.shape).astype(np.float32)
    stored, made = (Output.of("o", values, SPECS[codec]).columns[column] for values in (off, exact))
    plain = float(np.abs(stored.astype(np.float64) - made).max())
    told = changes(off, exact, SPECS[codec]).share.max() * spread(exact, SPECS[codec])
    assert plain > 1e-3
    assert told <= 5e-4


@pytest.mark.parametrize("codec", SPECS)
@pytest.mark.parametrize("shape", [(M, C), (M, 3, C)])
def test_the_labels_of_other_samples_are_far_beyond_the_limit(codec: str, shape: tuple[int, ...]) -> None:
    exact = logits(3, *shape)
    found = changes(np.roll(exact, 1, axis=0), exact, SPECS[codec])
    assert found.share.shape == (M,)
    assert found.share.min() > 50 * SAME_LABEL
    assert not found.same.any()


def test_two_classes_at_the_edge_of_the_k_that_are_nearly_as_likely_may_change_places() -> None:
    exact = np.array([[5.0, 4.0, 1.0 + 1e-6, 1.0, 0.0]], np.float32)
    stored = exact[:, [0, 1, 3, 2, 4]]
    found = changes(stored, exact, CodecSpec("topk", 3, (1.0,)))
    assert found.overlap is not None
    assert found.overlap[0] == pytest.approx(2 / 3)
    assert found.share[0] < 1e-6
    far = changes(np.array([[5.0, 4.0, 0.5, 1.0, 0.0]], np.float32), exact, CodecSpec("topk", 3, (1.0,)))
    assert far.share[0] > SAME_LABEL


def test_one_draw_that_falls_into_another_class_is_no_change_and_each_more_is_its_share() -> None:
    exact, spec = logits(0, 1, C), SPECS["sampled"]
    drawn = output(exact, spec).values().columns["draws"][0]
    for moved, share in ((0, 0.0), (1, 0.0), (2, 0.02), (6, 0.1)):
        other = drawn.copy()
        other[:moved] = (other[:moved] + 5) % C
        other.sort()
        kept = 50 - sum((Counter(other.tolist()) & Counter(drawn.tolist())).values())
        found = compare(Sampled(other[None], C), output(exact, spec), exact, 1.0)
        assert found.share[0] == max(0, kept - 1) / 50
        assert kept == moved or moved > 1
        assert found.share[0] <= share


def test_a_class_that_is_stored_twice_cannot_be_compared() -> None:
    exact = logits(0, 1, C)
    stored = Output.of("o", exact, SPECS["topk"])
    stored.columns["indices"][0, 1] = stored.columns["indices"][0, 0]
    made = Output.of("o", exact, SPECS["topk"])
    assert np.isinf(compare(stored.values(), made, exact, 1.0).share[0])


def test_a_number_that_is_added_to_all_classes_is_no_change() -> None:
    exact = logits(0, M, C)
    assert changes(exact + np.float32(8), exact, SPECS["float32"]).share.max() < 1e-6


@pytest.mark.parametrize("codec", ["float32", "float16"])
def test_features_are_compared_as_they_are(codec: str) -> None:
    exact = logits(0, M, 3, 5)
    assert changes(exact.copy(), exact, SPECS[codec], classes=False).same.all()
    assert changes(exact + np.float32(8), exact, SPECS[codec], classes=False).share.min() > SAME_LABEL


@pytest.mark.parametrize("codec", SPECS)
def test_of_positions_a_sample_counts_by_its_worst_and_other_positions_are_no_numbers_in_common(codec: str) -> None:
    counts, marks = np.array([2, 0, 3, 1]), np.array([7, 0, 8, 9])
    exact, chosen = logits(0, 6, C), Chosen(counts, marks)
    stored = exact.copy()
    stored[4] = stored[0]
    found = changes(stored, exact, SPECS[codec], chosen=chosen)
    assert (found.share[[0, 1, 3]] == 0).all()
    assert np.isfinite(found.share[2])
    assert found.share[2] > SAME_LABEL
    assert found.same.tolist() == [True, True, False, True]
    made = output(exact, SPECS[codec], chosen=chosen)
    other = output(exact, SPECS[codec], chosen=Chosen(counts, np.array([7, 0, 1, 9])))
    moved = compare(other.values(), made, exact, 1.0)
    assert np.isinf(moved.share).tolist() == [False, False, True, False]


@given(st.integers(0, 300), st.integers(1, 40), st.floats(0, 1), st.integers(0, 1 << 40), st.integers(0, 1 << 30))
def test_the_rows_are_a_pure_function_of_stream_order_and_seed(
    num_rows: int, rows: int, fraction: float, sequence: int, seed: int
) -> None:
    choice = Choice(rows, fraction, seed)
    found = choice.of_order("id", sequence, num_rows, None)
    assert np.array_equal(found, choice.of_order("id", sequence, num_rows, None))
    assert len(found) == min(num_rows, max(rows, int(np.ceil(fraction * num_rows))))
    assert (np.diff(found) > 0).all()


def test_orders_seeds_and_streams_differ_in_their_rows_and_each_row_has_its_turn() -> None:
    first = [int(Choice().of_order("id", sequence, 32, None)[0]) for sequence in range(2000)]
    counts = np.bincount(first, minlength=32)
    assert counts.min() > 30
    assert counts.max() < 100
    for other in (Choice(seed=1), Choice()):
        stream_id = "id" if other.seed else "another"
        assert sum(other.of_order(stream_id, s, 32, None)[0] == row for s, row in enumerate(first)) < 120


def test_a_row_without_a_label_is_passed_over_for_the_next_of_the_permutation() -> None:
    whole = Choice(rows=32).of_order("id", 5, 32, None)
    assert whole.tolist() == list(range(32))
    first = int(Choice().of_order("id", 5, 32, None)[0])
    kept = np.delete(np.arange(32), first)
    place = int(Choice().of_order("id", 5, 32, kept)[0])
    both = Choice(rows=2).of_order("id", 5, 32, None).tolist()
    assert {first, int(kept[place])} == set(both)


def test_a_fleet_hands_its_limit_of_agreement_on_to_its_workers() -> None:
    words = _teach("s", Path("m.onnx"), teacher_record(), FleetOptions(agreement=0.02))
    assert "--agreement=0.02" in words


def test_hidden_rows_of_a_last_layer_are_compared_as_they_are() -> None:
    exact, spec = logits(0, 20, 6), CodecSpec("head", 6)

    def hidden(values: Any) -> Output:
        return Output.of("o", values, spec, num_classes=9)

    assert compare(hidden(exact.copy()).values(), hidden(exact), exact, np.array(1.0)).same.all()
    found = compare(hidden(exact + np.float32(0.5)).values(), hidden(exact), exact, np.array(1.0))
    assert found.share.min() > 0.4  # no softmax is taken of them: what is added to all is a change


def hidden_ranges(values: Any, parts: int = 1) -> Any:
    spec = CodecSpec("head", values.shape[-1])
    declared = TeacherOutput("o", "y", "logits", (9,), 0, 9, spec)
    ranges = Ranges(teacher_record(outputs=(declared,)), spec)
    for part in np.array_split(values, parts):
        ranges.see({"o": part})
    return ranges.of("o")


@given(st.integers(0, 1 << 32), st.sampled_from([(20, 6), (8, 5, 6)]), st.integers(0, 4), st.floats(2e-3, 0.1))
def test_an_outlier_among_hidden_numbers_hides_no_change_of_the_others(
    seed: int, shape: tuple[int, ...], which: int, change: float
) -> None:
    exact = logits(seed, *shape)
    exact[..., 5] = exact[..., 5] * 50 + 900
    exact[..., 0] = 1e-9 * exact[..., 0]  # as of a unit that is dead
    ranges = hidden_ranges(exact)
    assert np.array_equal(ranges, hidden_ranges(exact, 3))
    assert ranges.shape == (6,)

    def stored(values: Any) -> Output:
        return Output.of("o", values, CodecSpec("head", 6), num_classes=9)

    other = exact.copy()
    other[..., which] += np.float32(change * np.ptp(exact[..., 1:5]))
    found = compare(stored(other).values(), stored(exact), exact, ranges)
    assert (found.share > SAME_LABEL * change / 1e-2).all()
    # What machines are off by is a share of a number's own size: the outlier's is none that others are blamed for.
    noisy = exact * (1 + np.float32(2e-5) * np.random.default_rng(seed).choice([-1, 1], exact.shape)).astype(np.float32)
    assert compare(stored(noisy).values(), stored(exact), exact, ranges).share.max() < 1e-4
    assert np.array_equal(hidden_ranges(np.zeros((4, 6), np.float32)), np.ones(6))
