"""The writers' chain of one partition, against a log of anything and acknowledgements at any time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from teacher_service.ledger import Mark, PartitionLedger, Verdict

P = 3
GARBAGE = None

logs = st.lists(st.one_of(st.integers(0, 8).map(lambda n: 2 + n * P), st.just(GARBAGE)), max_size=40)
"""What a partition 2 may hold: orders in order, repeated, early, and records that are none."""


@given(logs, st.data())
def test_what_may_be_committed_is_always_the_contiguous_settled_prefix(
    log: list[int | None], data: st.DataObject
) -> None:
    start = Mark(0, 2)
    ledger = PartitionLedger(1, start, P)
    settled: list[bool] = []  # by record taken, in order
    taken: list[tuple[int, bool]] = []  # (offset, is an order)

    def settle_one() -> None:
        ledger.settle()
        settled[settled.index(False)] = True

    for offset, sequence in enumerate(log):
        expected = 2 + P * sum(is_order for _, is_order in taken)
        if sequence is GARBAGE:
            ledger.take(offset, is_order=False)
            taken.append((offset, False))
            settled.append(False)
        else:
            verdict = ledger.judge(sequence)
            assert (verdict is Verdict.ACCEPT) == (sequence == expected)
            assert (verdict is Verdict.DROP) == (sequence < expected)
            if verdict is Verdict.ACCEPT:
                ledger.take(offset)
                taken.append((offset, True))
                settled.append(False)
            else:
                ledger.drop(offset)
        for _ in range(data.draw(st.integers(0, ledger.num_flying), label="acknowledged")):
            settle_one()

        num_settled = settled.index(False) if False in settled else len(settled)
        done_orders = sum(is_order for _, is_order in taken[:num_settled])
        assert ledger.done.sequence == 2 + P * done_orders
        assert ledger.done.offset <= (taken[num_settled][0] if num_settled < len(taken) else offset + 1)
        assert ledger.done.offset >= (taken[num_settled - 1][0] + 1 if num_settled else 0)
        if num_settled == len(taken):
            assert ledger.done.offset == offset + 1 == ledger.read.offset
        assert ledger.num_flying == settled.count(False)
        assert ledger.read.offset == offset + 1
        assert ledger.dirty == (ledger.done != start)


def test_a_repetition_between_two_orders_settles_with_the_one_before_it() -> None:
    ledger = PartitionLedger(1, Mark(10, 5), P)
    ledger.take(10)
    ledger.drop(11)
    ledger.take(12)
    ledger.settle()
    assert ledger.done == Mark(12, 8)
    ledger.settle()
    assert ledger.done == Mark(13, 11)


def test_a_garbage_record_moves_the_offset_and_not_the_sequence() -> None:
    ledger = PartitionLedger(1, Mark(0, 1), P)
    ledger.take(0, is_order=False)
    assert ledger.judge(1) is Verdict.ACCEPT
    ledger.settle()
    assert ledger.done == Mark(1, 1)
