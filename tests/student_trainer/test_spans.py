"""Teachers that count in some orders alone: which rows of a batch have their targets, and what these rows cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from train_runs import digits_run

from schemas.codecs import CODECS, CodecSpec, encode_values
from schemas.errors import ConfigError
from student_trainer.batches import Batch, Share, cut, cut_for_all
from student_trainer.learning.in_parts import refuse_parted_in_parts
from student_trainer.learning.losses import LOSSES
from student_trainer.learning.part_target import PartTarget
from student_trainer.learning.targets import DenseTarget, FeatureTarget, Target, TargetSpec, target_of
from student_trainer.learning.terms import resolve
from student_trainer.learning.total import total_loss
from student_trainer.processes.frames import pack, unpack
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.run.spans import Span, refuse_uncovered, uncovered
from student_trainer.sources.base import Cursor, LabelledOrder

C = 5
SPANS = st.builds(
    lambda first, length: Span(first, None if length is None else first + length),
    st.integers(0, 12),
    st.one_of(st.none(), st.integers(1, 12)),
)


@given(st.lists(SPANS, max_size=4), st.integers(1, 15))
def test_the_first_order_that_no_span_holds_is_found(spans: list[Span], num_orders: int) -> None:
    expected = next((s for s in range(num_orders) if not any(span.holds(s) for span in spans)), None)
    assert uncovered({str(number): span for number, span in enumerate(spans)}, num_orders) == expected


def test_orders_without_a_teacher_and_a_teacher_without_orders_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"order 10: no teacher .* counts there \(a until 10, b from 20\)"):
        refuse_uncovered({"a": Span(0, 10), "b": Span(20)}, 30)
    with pytest.raises(ConfigError, match=r"b: counts from order 30 on, and the stream has 30"):
        refuse_uncovered({"a": Span(), "b": Span(30)}, 30)


def rows_of(logits: np.ndarray, spec: CodecSpec = CodecSpec()) -> Any:  # noqa: B008
    return CODECS[spec.name].decode(encode_values(logits.astype(np.float32), spec, C), C)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["a", "b", "ab"])), min_size=1, max_size=12),
    st.integers(2, 7),
    st.integers(1, 2),
)
def test_each_row_of_a_batch_has_the_targets_of_the_teachers_of_its_order(
    made: list[tuple[int, str]], batch_size: int, processes: int
) -> None:
    count, orders, expected = 0, [], []
    for sequence, (num_rows, names) in enumerate(made):
        ids = np.arange(count, count := count + num_rows)
        targets = {name: rows_of(np.repeat(100.0 * ord(name) + ids[:, None], C, 1)) for name in names}
        orders.append(LabelledOrder(0, sequence, 0, ids, ids, targets))
        expected += [names] * num_rows
    shares = [Share(rank, processes) for rank in range(processes)]
    of_all = [
        batch for group in cut_for_all(orders, batch_size, Cursor.start(), len(orders), shares) for batch in group
    ]
    assert len(of_all) == count // batch_size
    for parts, _ in of_all:
        for rows in parts:
            check(unpack(pack(rows)).targets, rows.sample_ids, expected)
            batch = Batch(rows.sample_ids, {}, rows.labels, rows.targets)
            for part in batch.parts(2):
                check(part.targets, part.sample_ids, expected)


def check(targets: dict[str, Target], ids: Tensor, names: list[str]) -> None:
    for name in "ab":
        there = torch.tensor([name in names[each] for each in ids.tolist()])
        if name not in targets:
            assert not there.any()
            continue
        target = targets[name]
        at = target.at if isinstance(target, PartTarget) else torch.arange(len(ids))
        assert at.tolist() == there.nonzero().flatten().tolist()
        assert target.shape == (len(ids), C)
        assert target.logits[:, 0].tolist() == [100.0 * ord(name) + each for each in ids[at].tolist()]


def settings_of(spans: dict[str, dict[str, int]], **loss: Any) -> RunSettings:
    document = digits_run().as_dict() | {"source": "stream", "data": {"stream": "s"}, "evaluation": {}}
    weighed = [] if loss.get("choose") else [("a", 1.0), ("b", 3.0), ("c", 0.5)]
    document["teachers"] = [{"name": name, "weight": dict(weighed).get(name, 1.0)} | of for name, of in spans.items()]
    return run_settings(document | {"losses": [{"name": "forward_kl", **loss}], "student": {"name": "linear"}})


SOME: dict[str, dict[str, int]] = {"a": {"until": 20}, "b": {"from": 10}, "c": {}}
TOP = CodecSpec("topk", 2, (1.0, 2.0))
WAYS: dict[str, tuple[dict[str, Any], CodecSpec]] = {
    "losses": ({"temperature": 2.0}, CodecSpec()),
    "losses of topk": ({"temperature": 2.0}, TOP),
    "probabilities": ({"mean": "probabilities", "temperature": 2.0}, CodecSpec()),
    "logits": ({"mean": "logits"}, CodecSpec("float16")),
    "by confidence": ({"choose": "confidence"}, TOP),
    "by label": ({"choose": "label"}, CodecSpec()),
    "with labels": ({"name": "dkd"}, CodecSpec()),
}


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 20), st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=7))
def test_a_row_costs_what_it_does_in_a_batch_whose_teachers_all_count(way: str, seed: int, names: list[str]) -> None:
    loss, codec = WAYS[way]
    chance, count = np.random.default_rng(seed), len(names)
    spec = TargetSpec("logits", (C,), C, codec, default=True)
    logits = {name: chance.normal(0, 3, (count, C)) for name in "abc"}
    labels = torch.tensor(chance.integers(-1, C, count))
    given_ = torch.tensor(chance.normal(0, 1, (count, C)).astype(np.float32), requires_grad=True)
    there = {name: [row for row in range(count) if name in names[row] + "c"] for name in "abc"}

    def cost(teachers: str, rows: list[int], parted: bool) -> Tensor:
        (term,) = resolve(
            settings_of({name: SOME[name] if parted else {} for name in teachers}, **loss),
            {f"{name}.logits": spec for name in teachers},
        )
        targets: dict[str, Target] = {}
        for name in teachers:
            own = [row for row in rows if row in there[name]]
            if not own:
                continue
            stored = rows_of(logits[name][own], codec)
            target = target_of(stored, {key: torch.tensor(np.asarray(each)) for key, each in stored.columns.items()})
            at = torch.tensor([rows.index(row) for row in own])
            targets[f"{name}.logits"] = target if len(own) == len(rows) else PartTarget(target, at, len(rows))
        total = total_loss([term], 1.0)
        scalar, found = total({"logits": given_[rows]}, targets, labels[rows])
        scalar.backward()  # type: ignore[no-untyped-call]
        return found[term.key]

    whole = cost("abc", list(range(count)), True)
    assert given_.grad is not None
    assert torch.isfinite(given_.grad).all()
    for present in set(names):
        rows = [row for row in range(count) if names[row] == present]
        torch.testing.assert_close(whole[rows], cost("".join(sorted(present + "c")), rows, False), rtol=1e-4, atol=1e-5)


def test_a_row_without_a_teacher_of_a_loss_costs_nothing_of_it() -> None:
    spec = TargetSpec("logits", (C,), C, CodecSpec(), default=True)
    specs = {f"{name}.logits": spec for name in "ab"}
    for loss in ({}, {"mean": "logits"}, {"mean": "probabilities"}, {"choose": "confidence"}):
        (term,) = resolve(settings_of({"a": {"until": 3}, "b": {"until": 2}}, **loss), specs)
        part = PartTarget(DenseTarget(torch.randn(2, C)), torch.tensor([0, 2]), 3)
        student = torch.randn(3, C, requires_grad=True)
        total = total_loss([term], 1.0)
        scalar, rows = total({"logits": student}, {"a.logits": part}, torch.zeros(3, dtype=torch.int64))
        assert rows["forward_kl"][1] == 0
        assert (rows["forward_kl"][[0, 2]] > 0).all()
        scalar.backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        assert (student.grad[1] == 0).all()
        _, rows = total({"logits": student}, {}, torch.zeros(3, dtype=torch.int64))
        assert rows["forward_kl"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", sorted(name for name, loss in LOSSES.items() if loss.batchwise))
@pytest.mark.parametrize("count", [1, 3])
def test_a_loss_that_compares_rows_compares_those_that_have_the_teacher(name: str, count: int) -> None:
    loss, at = LOSSES[name], torch.tensor([1, 2, 4])[:count]
    student, teacher = torch.randn(5, C), torch.randn(count, C)
    target: Target = DenseTarget(teacher)
    if "features" in loss.needs:
        target = FeatureTarget(teacher)
    labels = torch.zeros(5, dtype=torch.int64)
    part = PartTarget(target, at, 5)
    found = loss.rows(part.picked(student), part, labels, 1.0, torch.ones(5))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[at], loss.rows(student[at], target, labels[at], 1.0))


def test_what_spans_cannot_go_with_is_refused_by_name() -> None:
    masked = TargetSpec("logits", (C,), C, CodecSpec(), default=True, positions="mask", places=(3,))
    with pytest.raises(ConfigError, match=r"a.logits has a row for each of a sample's positions, and its teacher"):
        resolve(settings_of({"a": {"until": 20}}), {"a.logits": masked})
    spec = TargetSpec("features", (C,), 0, CodecSpec(), default=True)
    terms = resolve(settings_of({"a": {"until": 20}}, name="similarity", against="a.logits"), {"a.logits": spec})
    with pytest.raises(ConfigError, match=r"compares the rows of a whole batch .* train in one process"):
        refuse_parted_in_parts(terms)
    for wrong, says in (
        ({"from": -1}, "from must not be negative"),
        ({"from": 4, "until": 4}, "until 4 must be above"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            settings_of({"a": wrong})
        assert "\n" not in str(caught.value)
    read = settings_of({"a": {"from": 4, "until": 9}, "b": {}})
    assert read.as_dict()["teachers"] == [
        {"name": "a", "weight": 1.0, "from": 4, "until": 9},
        {"name": "b", "weight": 3.0},
    ]


def test_a_batch_may_lie_across_the_order_where_one_leaves_and_another_comes() -> None:
    ids = np.arange(3)
    orders = [
        LabelledOrder(0, 0, 0, ids, ids, {"a": rows_of(np.zeros((3, C)))}),
        LabelledOrder(0, 1, 0, ids, ids, {"b": rows_of(np.ones((3, C)))}),
    ]
    (((_, first),), ((rows, cursor),), *_) = cut(orders, 2, Cursor.start(), 2)
    assert (first.sequence, first.row) == (0, 2)
    assert (cursor.sequence, cursor.row) == (1, 1)
    assert {name: target.at.tolist() for name, target in rows.targets.items()} == {"a": [0], "b": [1]}  # type: ignore[attr-defined]
