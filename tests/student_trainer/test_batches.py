from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas.codecs import CodecSpec, Dense
from schemas.errors import ConfigError
from schemas.records import Output
from student_trainer.batches import WHOLE, RowBatch, Share, cut
from student_trainer.learning.targets import DenseTarget, TopKTarget
from student_trainer.sources.base import Cursor, LabelledOrder

C = 5


def value(pass_number: int, sequence: int, row: int) -> int:
    return pass_number * 10_000 + sequence * 100 + row


def order(pass_number: int, sequence: int, num_rows: int) -> LabelledOrder:
    values = np.array([value(pass_number, sequence, row) for row in range(num_rows)], np.int64)
    logits = np.outer(values, np.arange(C)).astype(np.float32) / 1000
    logits.flags.writeable = False  # as views of a record's bytes are
    top = Output.of("logits", logits, CodecSpec("topk", 2, (1.0, 2.0))).values()
    return LabelledOrder(
        pass_number,
        sequence,
        sequence // 2,
        values + 1_000_000,
        values,
        {"cnn.logits": Dense(logits), "vit.logits": top},
        place=f"behind {pass_number}/{sequence}",
        address=f"log@{sequence}",
    )


def orders(sizes: list[int], passes: int, start: Cursor) -> Iterator[LabelledOrder]:
    for pass_number in range(start.pass_number, passes):
        for sequence in range(start.sequence if pass_number == start.pass_number else 0, len(sizes)):
            yield order(pass_number, sequence, sizes[sequence])


def batches(
    sizes: list[int], passes: int, batch_size: int, start: Cursor, together: int = 1
) -> list[tuple[RowBatch, Cursor]]:
    groups = list(cut(orders(sizes, passes, start), batch_size, start, len(sizes), together))
    assert all(1 <= len(group) <= together for group in groups)
    return [each for group in groups for each in group]


SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=8)


@given(SIZES, st.integers(1, 3), st.integers(1, 12), st.integers(1, 4))
def test_rows_come_whole_in_order_and_only_the_last_few_are_dropped(
    sizes: list[int], passes: int, batch_size: int, together: int
) -> None:
    rows = [value(p, s, r) for p in range(passes) for s, size in enumerate(sizes) for r in range(size)]
    made = batches(sizes, passes, batch_size, Cursor.start(), together)
    got = [int(label) for batch, _ in made for label in batch.labels]
    assert got == rows[: len(rows) - len(rows) % batch_size]
    for batch, _ in made:
        dense, top = batch.targets["cnn.logits"], batch.targets["vit.logits"]
        assert isinstance(dense, DenseTarget)
        assert isinstance(top, TopKTarget)
        assert torch.equal(batch.sample_ids - 1_000_000, batch.labels)
        assert torch.equal(dense.logits[:, 1], (batch.labels.float() / 1000))
        assert set(top.log_tails) == {1.0, 2.0}
        cuts = [
            value(each.pass_number, each.sequence, each.row + row)
            for each in batch.cuts
            for row in range(each.num_rows)
        ]
        assert cuts == batch.labels.tolist()
        assert all(each.view_seed == each.sequence // 2 for each in batch.cuts)
        assert all(each.address == f"log@{each.sequence}" for each in batch.cuts)


@given(SIZES, st.integers(1, 3), st.integers(1, 12), st.integers(1, 4), st.data())
def test_going_on_from_any_cursor_gives_the_same_batches_and_cursors(
    sizes: list[int], passes: int, batch_size: int, together: int, data: st.DataObject
) -> None:
    whole = batches(sizes, passes, batch_size, Cursor.start())
    if not whole:
        return
    at = data.draw(st.integers(0, len(whole) - 1))
    rest = batches(sizes, passes, batch_size, whole[at][1], together)
    assert [cursor.as_dict() for _, cursor in rest] == [cursor.as_dict() for _, cursor in whole[at + 1 :]]
    assert all(torch.equal(a.labels, b.labels) for (a, _), (b, _) in zip(rest, whole[at + 1 :], strict=True))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 12))
def test_batches_do_not_depend_on_where_orders_end(sizes: list[int], batch_size: int) -> None:
    one = replace(order(0, 0, sum(sizes)), targets={})
    pieces, at = [], 0
    for sequence, size in enumerate(sizes):
        part = slice(at, at + size)
        pieces.append(replace(one, sequence=sequence, sample_ids=one.sample_ids[part], labels=one.labels[part]))
        at += size
    start = Cursor.start()
    cut_up = [batch for ((batch, _),) in cut(pieces, batch_size, start, len(pieces))]
    whole = [batch for ((batch, _),) in cut([one], batch_size, start, 1)]
    assert len(cut_up) == len(whole)
    assert all(torch.equal(a.sample_ids, b.sample_ids) for a, b in zip(cut_up, whole, strict=True))


def test_a_cursors_place_is_behind_the_last_order_that_was_trained_on_to_its_end() -> None:
    cursors = [cursor for _, cursor in batches([4, 4, 4, 4], 2, 6, Cursor(0, 0, 0, "the start"))]
    assert [cursor.as_dict() for cursor in cursors] == [
        Cursor(0, 1, 2, "behind 0/0").as_dict(),  # order 1 begun: it is read again
        Cursor(0, 3, 0, "behind 0/2").as_dict(),
        Cursor(1, 0, 2, "behind 0/3").as_dict(),
        Cursor(1, 2, 0, "behind 1/1").as_dict(),
        Cursor(1, 3, 2, "behind 1/2").as_dict(),
    ]
    ((_, first),) = batches([4], 1, 3, Cursor(0, 0, 0, "the start"))
    assert first.place == "the start"


def test_the_end_of_a_pass_is_the_start_of_the_next() -> None:
    assert [cursor for _, cursor in batches([3, 3], 1, 6, Cursor.start())] == [Cursor(1, 0, 0)]


def test_batches_that_an_order_completes_come_together_and_wait_for_no_other() -> None:
    def given_orders() -> Iterator[LabelledOrder]:
        for sequence, size in enumerate([7, 1, 6]):
            asked.append(sequence)
            yield order(0, sequence, size)

    asked: list[int] = []
    sizes = [(len(group), asked[-1]) for group in cut(given_orders(), 2, Cursor.start(), 3, together=2)]
    assert sizes == [(2, 0), (1, 0), (1, 1), (2, 2), (1, 2)]


def test_a_batch_in_hand_is_not_written_to_again() -> None:
    start = Cursor.start()
    ((first, _),), ((second, _),) = islice(cut(orders([2] * 4, 1, start), 4, start, 4), 2)
    assert first.labels.tolist() == [0, 1, 100, 101]
    assert second.labels.tolist() == [200, 201, 300, 301]


def test_a_cursor_survives_json_and_is_the_same_without_its_place() -> None:
    cursor = Cursor(1, 2, 3, {"offsets": {"cnn": [4, 5]}})
    again = Cursor.from_dict(cursor.as_dict())
    assert again == cursor == Cursor(1, 2, 3)
    assert again.place == cursor.place


@given(SIZES, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_processes_share_the_rows_of_each_batch_out_among_them(
    sizes: list[int], rows_each: int, world: int, together: int
) -> None:
    start, batch_size = Cursor.start(), rows_each * world

    def of(share: Share) -> list[tuple[RowBatch, Cursor]]:
        groups = cut(orders(sizes, 2, start), batch_size, start, len(sizes), together, share=share)
        return [each for group in groups for each in group]

    whole, shares = of(WHOLE), [of(Share(rank, world)) for rank in range(world)]
    for (batch, cursor), *parts in zip(whole, *shares, strict=True):
        assert [behind for _, behind in parts] == [cursor] * world
        assert torch.equal(torch.cat([part.sample_ids for part, _ in parts]), batch.sample_ids)
        logits = [part.targets["cnn.logits"].logits for part, _ in parts]
        assert torch.equal(torch.cat(logits), batch.targets["cnn.logits"].logits)
        for part, _ in parts:
            seen = [value(c.pass_number, c.sequence, c.row + row) for c in part.cuts for row in range(c.num_rows)]
            assert part.labels.tolist() == seen


@pytest.mark.parametrize(("rank", "world", "what"), [(2, 2, "rank 2 of 2"), (-1, 2, "rank -1"), (0, 5, "batch_size 4")])
def test_a_share_that_cannot_be_is_refused(rank: int, world: int, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        list(cut(orders([4], 1, Cursor.start()), 4, Cursor.start(), 1, share=Share(rank, world)))
