from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas.codecs import CodecSpec, Dense
from schemas.records import Output
from student_trainer.batches import Batch, batches
from student_trainer.learning.targets import DenseTarget, TopKTarget
from student_trainer.sources.base import Cursor, ReadyOrder

C = 5


def value(pass_number: int, sequence: int, row: int) -> int:
    return pass_number * 10_000 + sequence * 100 + row


def order(pass_number: int, sequence: int, num_rows: int, offset: int) -> ReadyOrder:
    values = np.array([value(pass_number, sequence, row) for row in range(num_rows)], np.int64)
    logits = np.outer(values, np.arange(C)).astype(np.float32) / 1000
    logits.flags.writeable = False  # as views of a record's bytes are
    top = Output.of("logits", logits, CodecSpec("topk", 2, (1.0, 2.0))).values()
    return ReadyOrder(
        pass_number,
        sequence,
        values + 1_000_000,
        {"x": values[:, None] * np.float32(1)},
        values,
        (Dense(logits), top),
        (offset, offset * 2),
    )


def orders(sizes: list[int], passes: int, start: Cursor) -> Iterator[ReadyOrder]:
    for pass_number in range(start.pass_number, passes):
        for sequence in range(start.sequence if pass_number == start.pass_number else 0, len(sizes)):
            yield order(pass_number, sequence, sizes[sequence], offset=sequence + 7)


def cut(sizes: list[int], passes: int, batch_size: int, partitions: int, start: Cursor) -> list[tuple[Batch, Cursor]]:
    return list(batches(orders(sizes, passes, start), batch_size, start, partitions, len(sizes)))


SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=8)


@given(SIZES, st.integers(1, 3), st.integers(1, 12), st.integers(1, 4))
def test_rows_come_whole_in_order_and_only_the_last_few_are_dropped(
    sizes: list[int], passes: int, batch_size: int, partitions: int
) -> None:
    rows = [value(p, s, r) for p in range(passes) for s, size in enumerate(sizes) for r in range(size)]
    made = cut(sizes, passes, batch_size, partitions, Cursor.start(2, partitions))
    got = [int(label) for batch, _ in made for label in batch.labels]
    assert got == rows[: len(rows) - len(rows) % batch_size]
    for batch, _ in made:
        dense, top = batch.targets
        assert isinstance(dense, DenseTarget)
        assert isinstance(top, TopKTarget)
        assert torch.equal(batch.inputs["x"][:, 0].long(), batch.labels)
        assert torch.equal(batch.sample_ids - 1_000_000, batch.labels)
        assert torch.equal(dense.logits[:, 1], (batch.labels.float() / 1000))
        assert set(top.log_tails) == {1.0, 2.0}


@given(SIZES, st.integers(1, 3), st.integers(1, 12), st.integers(1, 4), st.data())
def test_going_on_from_any_cursor_gives_the_same_batches_and_cursors(
    sizes: list[int], passes: int, batch_size: int, partitions: int, data: st.DataObject
) -> None:
    whole = cut(sizes, passes, batch_size, partitions, Cursor.start(2, partitions))
    if not whole:
        return
    at = data.draw(st.integers(0, len(whole) - 1))
    rest = cut(sizes, passes, batch_size, partitions, whole[at][1])
    assert [cursor for _, cursor in rest] == [cursor for _, cursor in whole[at + 1 :]]
    assert all(torch.equal(a.labels, b.labels) for (a, _), (b, _) in zip(rest, whole[at + 1 :], strict=True))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 12))
def test_batches_do_not_depend_on_where_orders_end(sizes: list[int], batch_size: int) -> None:
    one = replace(order(0, 0, sum(sizes), 1), targets=(), next_offsets=())
    pieces, at = [], 0
    for sequence, size in enumerate(sizes):
        part = slice(at, at + size)
        pieces.append(
            replace(
                one,
                sequence=sequence,
                sample_ids=one.sample_ids[part],
                labels=one.labels[part],
                inputs={"x": one.inputs["x"][part]},
                targets=(),
                next_offsets=(),
            )
        )
        at += size
    start = Cursor.start()
    cut_up = [batch for batch, _ in batches(pieces, batch_size, start, 1, len(pieces))]
    whole = [batch for batch, _ in batches([one], batch_size, start, 1, 1)]
    assert len(cut_up) == len(whole)
    assert all(torch.equal(a.inputs["x"], b.inputs["x"]) for a, b in zip(cut_up, whole, strict=True))


def test_a_cursor_counts_only_records_that_were_trained_on_to_their_end() -> None:
    cursors = [cursor for _, cursor in cut([4, 4, 4, 4], 2, 6, 2, Cursor.start(2, 2))]
    assert cursors == [
        Cursor(0, 1, 2, ((7, 0), (14, 0))),  # order 1 begun: partition 1 still reads from its record
        Cursor(0, 3, 0, ((9, 8), (18, 16))),
        Cursor(1, 0, 2, ((0, 0), (0, 0))),  # a new pass reads each log from its start
        Cursor(1, 2, 0, ((7, 8), (14, 16))),
        Cursor(1, 3, 2, ((9, 8), (18, 16))),
    ]


def test_the_end_of_a_pass_is_the_start_of_the_next() -> None:
    assert [cursor for _, cursor in cut([3, 3], 1, 6, 2, Cursor.start(2, 2))] == [Cursor(1, 0, 0, ((0, 0), (0, 0)))]


def test_a_batch_in_hand_is_not_written_to_again() -> None:
    first, second = islice(batches(orders([2] * 4, 1, Cursor.start(2, 1)), 4, Cursor.start(2, 1), 1, 4), 2)
    assert first[0].labels.tolist() == [0, 1, 100, 101]
    assert second[0].labels.tolist() == [200, 201, 300, 301]


def test_a_cursor_survives_json() -> None:
    cursor = Cursor(1, 2, 3, ((4, 5), (6, 7)))
    assert Cursor.from_dict(cursor.as_dict()) == cursor
