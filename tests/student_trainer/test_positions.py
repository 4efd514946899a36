"""Targets of positions: a batch of them costs what a plain loop over its positions says, however it was cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.datasets.base import ArrayDataset
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from pipeline.views.positions import what_is_chosen
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError, ManifestMismatch
from schemas.records import Output
from student_trainer.batches import WHOLE, Batch, Share, cut
from student_trainer.learning import mean_losses
from student_trainer.learning.losses import LOSSES, Loss, find_loss
from student_trainer.learning.losses.loss import whole
from student_trainer.learning.positions import LabelTarget, PositionTarget, labels_name
from student_trainer.learning.targets import DenseTarget, FeatureTarget, Target, TargetSpec, target_of
from student_trainer.learning.terms import Term
from student_trainer.learning.total import total_loss
from student_trainer.loading import Loader
from student_trainer.placing import Placing
from student_trainer.sources.base import Cursor, LabelledOrder

C, T = 5, 2.0
SOFT = [
    name
    for name, loss in LOSSES.items()
    if loss.holds and not {"labels", "draws"} & loss.needs and not loss.batchwise and loss.compared is whole
]
"""Losses that a position has by itself; of features, of one number after the other."""
CODECS = ("float32", "float16", "topk:k=3,temperatures=1|2")
PAIRS = [
    (name, codec)
    for name in SOFT
    for codec in CODECS
    if "k" not in codec or LOSSES[name].needs <= {"teacher", "classes"}
]


class Data:
    """N samples whose field `chosen` picks places, and a teacher that has a row for each of them."""

    def __init__(self, name: str, codec: str, mask: NDArray[np.int8], seed: int = 0) -> None:
        self.mask, self.codec, self.loss = mask, CodecSpec.parse(codec), LOSSES[name]
        self.classes = "classes" in self.loss.needs
        places = mask.shape[1:]
        chance = np.random.default_rng(seed)
        self.values = chance.normal(0, 2, (int(np.count_nonzero(mask)), C)).astype(np.float32)
        self.students = torch.tensor(chance.normal(0, 2, (*mask.shape, C)).astype(np.float32))
        self.counts = np.count_nonzero(mask.reshape(len(mask), -1), axis=1)
        kind = "logits" if self.classes else "features"
        self.spec = TargetSpec(kind, (C,), C * self.classes, self.codec, True, "chosen", places)
        self.fetcher = Fetcher(
            ArrayDataset("texts", {"chosen": mask}, np.zeros(len(mask), np.int64)), view_spec("none", {})
        )

    def order(self, sequence: int, ids: NDArray[np.int64]) -> LabelledOrder:
        ends = np.cumsum(self.counts)
        rows = [self.values[ends[one] - self.counts[one] : ends[one]] for one in ids]
        values = np.concatenate([*rows, self.values[:0]])
        output = Output.of(
            "logits", values, self.codec, classes=self.classes, chosen=what_is_chosen(self.mask[ids] != 0)
        )
        return LabelledOrder(0, sequence, 0, ids, ids % 3, {"t.logits": output.values()}, address=f"log@{sequence}")

    def orders(self, sizes: list[int]) -> Iterator[LabelledOrder]:
        at = 0
        for sequence, size in enumerate(sizes):
            yield self.order(sequence, np.arange(at, at + size) % len(self.mask))
            at += size

    def batches(self, sizes: list[int], batch_size: int, together: int = 1, share: Share = WHOLE) -> list[Batch]:
        loader = Loader(self.fetcher, (), np.arange(1), placing=Placing({"t.logits": self.spec}, {}))
        groups = cut(self.orders(sizes), batch_size, Cursor.start(), 10**6, together, share=share)
        return [batch for batch, _ in loader.batches(groups)]

    def cost(self, ids: list[int], weights: list[float] | None = None) -> Tensor:
        """What the positions of these samples cost together, one by one, divided by how many they are."""
        ends, total, number = np.cumsum(self.counts), torch.zeros(()), 0
        for place, one in enumerate(ids):
            first = ends[one] - self.counts[one]
            for index, at in enumerate(np.argwhere(self.mask[one])):
                row = self.values[first + index][None]
                rows = Output.of("logits", row, self.codec, classes=self.classes).values()
                target = target_of(rows, {key: torch.tensor(column) for key, column in rows.columns.items()}).widened()
                student = self.students[one][tuple(at)][None]
                total = (
                    total
                    + self.loss.function(student, target, torch.tensor([-1]), T)[0]
                    * (weights or [1.0] * len(ids))[place]
                )
                number += 1
        return total / max(number, 1)

    def total(self, batch: Batch, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The total that a run computes, and its rows."""
        term = Term("one", self.loss, 1.0, T, {}, "", {"t.logits": 1.0}, {"t.logits": self.spec})
        student = self.students[batch.sample_ids]
        value, rows = total_loss([term], 1.0)({"logits": student}, batch.targets, batch.labels, weights)
        return value, rows["one"]


PLACES = st.sampled_from([(4,), (2, 3), (1,)])
SIZES = st.lists(st.integers(0, 5), min_size=1, max_size=5)


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.int8]:
    shape = (6, *draw(PLACES))
    often = draw(st.sampled_from([0.0, 0.2, 0.6, 1.0]))
    chance = np.random.default_rng(draw(st.integers(0, 99)))
    return ((chance.random(shape) < often) * chance.integers(1, 3, shape)).astype(np.int8)


@pytest.mark.parametrize(("name", "codec"), PAIRS)
@settings(max_examples=8)
@given(masks(), SIZES, st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
def test_a_batch_costs_what_a_loop_over_its_positions_says_whatever_is_cut_and_shared(
    name: str, codec: str, mask: NDArray[np.int8], sizes: list[int], rows_each: int, world: int, together: int
) -> None:
    data = Data(name, codec, mask)
    batch_size = rows_each * world
    ids = np.arange(sum(sizes)) % len(mask)
    of_rank = [data.batches(sizes, batch_size, together, Share(rank, world)) for rank in range(world)]
    assert [len(each) for each in of_rank] == [sum(sizes) // batch_size] * world
    for number, parts in enumerate(zip(*of_rank, strict=True)):
        seen = ids[number * batch_size : (number + 1) * batch_size].tolist()
        assert [one for part in parts for one in part.sample_ids.tolist()] == seen
        data.students.requires_grad_().grad = None
        expected = data.cost(seen)
        expected.sum().backward() if expected.requires_grad else None
        gradient = torch.zeros_like(data.students) if data.students.grad is None else data.students.grad
        data.students.grad = None
        costs = [data.total(part) for part in parts]
        mean = torch.stack([cost for cost, _ in costs]).mean()  # as processes average
        mean.backward()
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(data.students.grad, gradient, rtol=1e-4, atol=1e-6)
        for part, (cost, rows) in zip(parts, costs, strict=True):
            assert rows.shape == (rows_each,)
            torch.testing.assert_close(rows.mean(), cost)
            none = data.counts[part.sample_ids.numpy()] == 0
            assert (rows[torch.from_numpy(none)] == 0).all()


MASK = np.array([[1, 0, 0, 2], [0, 0, 0, 0], [1, 1, 1, 1], [0, 3, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]], np.int8)


def test_samples_without_a_position_cost_nothing_and_a_batch_of_them_neither() -> None:
    data = Data("forward_kl", "float32", MASK * 0)
    data.students.requires_grad_()
    (batch,) = data.batches([6], 6)
    cost, rows = data.total(batch)
    cost.backward()
    assert cost.item() == 0.0
    assert rows.tolist() == [0.0] * 6
    assert data.students.grad is not None
    assert (data.students.grad == 0).all()


def test_a_row_of_weight_0_costs_nothing_and_the_mean_is_still_over_all_positions() -> None:
    data = Data("forward_kl", "float32", MASK)
    (batch,) = data.batches([6], 6)
    weights = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    cost, rows = data.total(batch, torch.tensor(weights))
    torch.testing.assert_close(cost, data.cost(list(range(6)), weights))
    assert rows[2] == 0


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float32])
def test_targets_know_where_their_rows_lie_whatever_the_field_holds(dtype: type) -> None:
    data = Data("forward_kl", "topk:k=3,temperatures=1|2", MASK.astype(dtype))
    first, second = data.batches([3, 3], 3)
    target = first.targets["t.logits"]
    assert isinstance(target, PositionTarget)
    assert target.at.tolist() == [0, 3, 8, 9, 10, 11]
    assert target.counts.tolist() == [2, 0, 4]
    assert (target.field, target.shape, target.density) == ("chosen", (3, 4, C), 2.0)
    assert torch.equal(target.to(torch.device("cpu")).at, target.at)
    assert second.targets["t.logits"].picked(torch.arange(12.0).view(3, 4, 1)).flatten().tolist() == [1, 9, 10]


@pytest.mark.parametrize("codec", ["float32", "topk:k=3,temperatures=1|2"])
@pytest.mark.parametrize("rows", [1, 2, 4, 5])
def test_the_parts_of_a_batch_cost_what_the_whole_one_does(rows: int, codec: str) -> None:
    data = Data("forward_kl", codec, MASK)
    (batch,) = data.batches([6], 6)
    cost, of_rows = data.total(batch)
    parts = batch.parts(rows)
    assert max(len(part.labels) for part in parts) <= rows
    assert torch.equal(torch.cat([part.sample_ids for part in parts]), batch.sample_ids)
    costs, found = [], []
    for part in parts:
        some, rows_of_it = data.total(part)
        costs.append(some * len(part.labels) / 6)
        found.append(rows_of_it)
    torch.testing.assert_close(torch.stack(costs).sum(), cost)
    torch.testing.assert_close(torch.cat(found), of_rows)


@pytest.mark.parametrize("loaders", [1, 3])
def test_nothing_of_positions_depends_on_how_views_are_loaded(loaders: int) -> None:
    def costs(data: Data, together: int) -> list[float]:
        return [data.total(batch)[0].item() for batch in data.batches([40, 3, 57], 10, together)]

    data = Data("forward_kl", "float16", np.random.default_rng(3).integers(0, 2, (50, 7)).astype(np.int8))
    expected = costs(data, 1)
    data.fetcher = Fetcher(data.fetcher.dataset, data.fetcher.view, loaders)
    assert costs(data, 4) == expected
    assert len(expected) == 10


def twice(data: Data, **other: Any) -> tuple[Batch, dict[str, TargetSpec]]:
    """A batch with two teachers, whose fields choose positions of one shape."""
    order = data.order(0, np.arange(6))
    second = Data("forward_kl", "float32", other["mask"], seed=1)
    field = other.get("field", "chosen")
    specs = {"t.logits": data.spec, "u.logits": replace(second.spec, positions=field)}
    targets = {**order.targets, "u.logits": second.order(0, np.arange(6)).targets["t.logits"]}
    fields = {"chosen": data.mask, "others": second.mask}
    fetcher = Fetcher(ArrayDataset("texts", fields, np.zeros(6, np.int64)), view_spec("none", {}))
    loader = Loader(fetcher, (), np.arange(1), placing=Placing(specs, {}))
    rows = cut([replace(order, targets=targets)], 6, Cursor.start(), 1)
    ((batch, _),) = loader.batches(rows)
    return batch, specs


OTHERS = np.ascontiguousarray(MASK[::-1])


@pytest.mark.parametrize(("mask", "field"), [(MASK, "chosen"), (OTHERS, "others")], ids=["one field", "two fields"])
def test_each_teacher_of_an_ensemble_has_its_own_positions(mask: NDArray[np.int8], field: str) -> None:
    data = Data("forward_kl", "float32", MASK)
    batch, specs = twice(data, mask=mask, field=field)
    term = Term("both", data.loss, 1.0, T, {}, "", {"t.logits": 0.25, "u.logits": 0.75}, specs)
    value, _ = total_loss([term], 1.0)({"logits": data.students}, batch.targets, batch.labels)
    second = Data("forward_kl", "float32", mask, seed=1)
    second.students = data.students
    ids = list(range(6))
    torch.testing.assert_close(value, 0.25 * data.cost(ids) + 0.75 * second.cost(ids))
    assert specs["u.logits"].whole == (4, C)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.batchwise])
def test_positions_are_compared_with_one_another_but_for_those_of_samples_of_weight_0(name: str) -> None:
    data = Data(name, "float32", MASK)
    (batch,) = data.batches([6], 6)
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    target = batch.targets["t.logits"].widened()
    for each in (None, weights):
        kept = torch.from_numpy(np.flatnonzero(MASK.ravel()))
        alone = torch.ones(len(kept), dtype=torch.bool) if each is None else each.repeat_interleave(4)[kept] > 0
        student, soft = data.students.flatten(0, 1)[kept][alone], torch.tensor(data.values)[alone.numpy()]
        rows = target_of_rows(data.classes, soft)
        labels = torch.full((len(student),), -1)
        expected = data.loss.function(student, rows, labels, T).sum() / len(kept)
        torch.testing.assert_close(data.total(batch, each)[0], expected)
        params = {"temperature": T} if name == "dist" else {}
        own = getattr(mean_losses, name)(data.students, target, weights=each, **params)
        torch.testing.assert_close(own, expected)


def target_of_rows(classes: bool, values: Tensor) -> Target:
    return DenseTarget(values) if classes else FeatureTarget(values)


def test_a_projection_is_of_the_positions_alone() -> None:
    data = Data("mse", "float32", MASK)
    (batch,) = data.batches([6], 6)
    seen: list[tuple[int, ...]] = []

    class Layer(nn.Linear):
        def forward(self, values: Tensor) -> Tensor:
            seen.append(tuple(values.shape))
            return super().forward(values)

    layer = Layer(3, C)
    student = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    term = Term("one", data.loss, 1.0, T, {}, "", {"t.logits": 1.0}, {"t.logits": data.spec}, "linear")
    value, _ = total_loss([term], 1.0, {"one": layer})({"hidden": student}, batch.targets, batch.labels)
    assert seen == [(int(data.counts.sum()), 3)]
    data.students = layer(student).detach()
    torch.testing.assert_close(value, data.cost(list(range(6))))


def test_a_loss_of_ones_own_sees_positions_as_rows_with_their_samples_labels() -> None:
    def own(logits: Tensor, target: Target, labels: Tensor, temperature: float) -> Tensor:
        assert logits.shape == (9, C) == tuple(target.logits.shape)
        return labels.float()

    data = Data("forward_kl", "float32", MASK)
    data.loss = Loss(own, frozenset({"teacher", "classes"}))
    (batch,) = data.batches([6], 6)
    value, _ = data.total(batch)
    labels = [0.0, 0, 2, 2, 2, 2, 0, 2, 2]
    torch.testing.assert_close(value, torch.tensor(labels).mean())


# --- what a view chooses otherwise ------------------------------------------------------------------------------------


def with_field(data: Data, **fields: NDArray[Any]) -> Data:
    made = ArrayDataset("texts", fields, np.zeros(6, np.int64))
    data.fetcher = Fetcher(made, data.fetcher.view)
    return data


def test_a_view_that_chooses_other_positions_than_the_teachers_is_refused_with_the_sample() -> None:
    other = MASK.copy()
    other[3, 0] = 1
    says = (
        r"^log@1: sample 3: t\.logits has 1 positions, and field 'chosen' chooses 2: the view here chooses other "
        "positions than the teacher's"
    )
    with pytest.raises(ManifestMismatch, match=says):
        with_field(Data("forward_kl", "float32", MASK), chosen=other).batches([2, 4], 6)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"chosen": np.where(MASK, MASK, -1)}, r"^log@0: sample 0: field 'chosen' holds -1; it chooses the positions"),
        ({"chosen": np.where(MASK == 3, np.nan, MASK)}, "^log@1: sample 3: field 'chosen' holds nan"),
        ({"chosn": MASK}, "the positions that field 'chosen' of the view chooses; here is none: did you mean 'chosn'"),
        ({"chosen": MASK[:, :3]}, r"is of positions of \[4\], but field 'chosen', .* is of \[3\] here"),
    ],
)
def test_a_field_that_chooses_no_positions_is_refused_by_name(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ManifestMismatch, match=says) as caught:
        with_field(Data("forward_kl", "float32", MASK), **fields).batches([2, 4], 6)
    assert "\n" not in str(caught.value)


# --- hard labels ------------------------------------------------------------------------------------------------------

WANTED = np.array([[1, -1, -1, 4], [-1] * 4, [0, 1, 2, 3], [-1, 2, -1, -1], [-1] * 4, [-1, 0, 0, -1]])


def label_batches(wanted: NDArray[Any], batch_size: int, num_classes: int = C, broken: int = -1) -> list[Batch]:
    fetcher = Fetcher(ArrayDataset("texts", {"wanted": wanted}, np.zeros(6, np.int64)), view_spec("none", {}))
    loader = Loader(fetcher, (), np.arange(1), placing=Placing({}, {"wanted": num_classes}))
    ids = np.arange(len(wanted))
    ids[broken] = 99 if broken >= 0 else ids[broken]
    rows = cut([LabelledOrder(0, 0, 0, ids, np.full(len(ids), -1))], batch_size, Cursor.start(), 1)
    return [batch for batch, _ in loader.batches(rows)]


OF_LABELS = Term(
    "hard", LOSSES["cross_entropy"], 1.0, 1.0, {}, "", {labels_name("wanted"): 1.0}, labels="wanted", places=(4,)
)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
def test_hard_labels_of_positions_cost_the_mean_over_all_of_a_batch(batch_size: int, dtype: type) -> None:
    student = Data("forward_kl", "float32", MASK).students
    for batch in label_batches(WANTED.astype(dtype), batch_size):
        assert isinstance(batch.targets[labels_name("wanted")].rows, LabelTarget)
        total = total_loss([OF_LABELS], 0.01)  # the label budget is no matter
        value, rows = total({"logits": student[batch.sample_ids]}, batch.targets, batch.labels)
        each = [
            -student[one, place].log_softmax(dim=0)[WANTED[one, place]]
            for one in batch.sample_ids.tolist()
            for place in range(4)
            if WANTED[one, place] >= 0
        ]
        torch.testing.assert_close(value, sum(each, start=torch.zeros(())) / max(len(each), 1))
        assert rows["hard"].shape == (batch_size,)
        logits, labels = student[batch.sample_ids], torch.tensor(WANTED)[batch.sample_ids]
        torch.testing.assert_close(mean_losses.cross_entropy(logits, labels), value)


def test_a_sample_that_cannot_be_decoded_has_labels_of_weight_0() -> None:
    (batch,) = label_batches(WANTED, 6, broken=2)
    assert batch.weights is not None
    assert batch.weights.tolist() == [1, 1, 0, 1, 1, 1]
    student = Data("forward_kl", "float32", MASK).students
    _, rows = total_loss([OF_LABELS], 1.0)({"logits": student}, batch.targets, batch.labels, batch.weights)
    assert rows["hard"][2] == 0
    assert rows["hard"][0] > 0


@pytest.mark.parametrize(("label", "shown"), [(C, "5"), (-2, "-2"), (-100, "-100")])
def test_a_hard_label_that_is_no_class_is_refused_with_its_sample(label: int, shown: str) -> None:
    wanted = WANTED.copy()
    wanted[3, 1] = label
    says = rf"field 'wanted' of sample 3 holds the label {shown}; the student has 5 classes, and -1 says"
    with pytest.raises(ConfigError, match=says):
        label_batches(wanted, 6)


# --- in a loop of one's own -------------------------------------------------------------------------------------------

OWN: Mapping[str, Callable[..., Tensor]] = {
    "forward_kl": mean_losses.forward_kl,
    "reverse_kl": mean_losses.reverse_kl,
    "logit_mse": mean_losses.logit_mse,
    "teacher_argmax": mean_losses.teacher_argmax,
    "mse": mean_losses.mse,
    "cosine": mean_losses.cosine,
    "binary_kl": mean_losses.binary_kl,
    "jsd": mean_losses.jsd,
}


@pytest.mark.parametrize("name", SOFT)
def test_a_loop_of_ones_own_gets_what_a_run_does(name: str) -> None:
    data = Data(name, "float16", MASK)
    (batch,) = data.batches([6], 6)
    params = {"temperature": T} if name in ("forward_kl", "reverse_kl", "binary_kl", "jsd") else {}
    target = batch.targets["t.logits"].widened()
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    for each in (None, weights):
        value = OWN[name](data.students, target, **params, weights=each)
        torch.testing.assert_close(value, data.total(batch, each)[0])
    with pytest.raises(ConfigError, match=r"output is \[6, 3, 5\], the target \[6, 4, 5\]"):
        OWN[name](data.students[:, :3], target)
    assert find_loss(name) is LOSSES[name]


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"output is \[6, 4, 5\], labels \[6, 3\]"):
        mean_losses.cross_entropy(torch.zeros(6, 4, C), torch.zeros(6, 3, dtype=torch.int64))


def test_a_target_of_labels_alone_has_no_teacher() -> None:
    target = LabelTarget(torch.zeros(3, dtype=torch.int64))
    for ask in (lambda: target.logits, lambda: target.features, target.flat, target.likeliest):
        with pytest.raises(ConfigError, match=r"of .*labels"):
            ask()
    assert (target.shape, target.widened()) == ((3,), target)
