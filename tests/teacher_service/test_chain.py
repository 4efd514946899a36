"""The writers' chain of one partition, against a log of anything and acknowledgements at any time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import DecodeError
from schemas.records import WorkOrder
from teacher_service.chain import Chain, Job, Mark, Parcel, Verdict

P = 3
GARBAGE = None

logs = st.lists(st.one_of(st.integers(0, 8).map(lambda n: 2 + n * P), st.just(GARBAGE)), max_size=40)
"""What a partition 2 may hold: orders in order, repeated, early, and records that are none."""

NONE = DecodeError("here", "no order")


def order(sequence: int = 0) -> WorkOrder:
    return WorkOrder("0" * 16, sequence, 0, np.arange(1), 0)


def publish(chain: Chain) -> Job | None:
    """Send and acknowledge what is next."""
    parcel = chain.to_send()
    if parcel is None:
        return None
    assert chain.acknowledged(parcel.job)
    return parcel.job


@given(logs, st.data())
def test_what_may_be_committed_is_always_the_contiguous_acknowledged_prefix(
    log: list[int | None], data: st.DataObject
) -> None:
    start = Mark(0, 2)
    chain = Chain(2, 1, start, P, start)
    acknowledged: list[bool] = []  # by job, in order
    taken: list[tuple[int, bool]] = []  # (offset, is an order)
    jobs: list[Job] = []

    for offset, sequence in enumerate(log):
        expected = 2 + P * sum(is_order for _, is_order in taken)
        if sequence is GARBAGE:
            jobs.append(chain.accept(offset, NONE))
            taken.append((offset, False))
            acknowledged.append(False)
        else:
            verdict = chain.judge(sequence)
            assert (verdict is Verdict.ACCEPT) == (sequence == expected)
            assert (verdict is Verdict.DROP) == (sequence < expected)
            if verdict is Verdict.ACCEPT:
                jobs.append(chain.accept(offset, order(sequence)))
                taken.append((offset, True))
                acknowledged.append(False)
            else:
                chain.drop(offset)
        # Labelled in any order: what goes out, goes in the log's.
        for job in data.draw(st.lists(st.sampled_from(jobs), max_size=4), label="labelled") if jobs else ():
            chain.labelled(Parcel(job))
        for _ in range(data.draw(st.integers(0, chain.in_hand), label="acknowledged")):
            if (job := publish(chain)) is not None:
                assert job is jobs[acknowledged.index(False)]
                acknowledged[acknowledged.index(False)] = True

        num_done = acknowledged.index(False) if False in acknowledged else len(acknowledged)
        done_orders = sum(is_order for _, is_order in taken[:num_done])
        assert chain.done.sequence == 2 + P * done_orders
        assert chain.done.offset <= (taken[num_done][0] if num_done < len(taken) else offset + 1)
        assert chain.done.offset >= (taken[num_done - 1][0] + 1 if num_done else 0)
        if num_done == len(taken):
            assert chain.done.offset == offset + 1 == chain.read.offset
        assert chain.in_hand == acknowledged.count(False)
        assert chain.read.offset == offset + 1
        assert chain.dirty == (chain.done != start)


def test_only_one_job_is_on_its_way_and_it_is_sent_once() -> None:
    chain = Chain(0, 1, Mark(0, 0), P)
    first, second = chain.accept(0, order(0)), chain.accept(1, order(3))
    chain.labelled(Parcel(second))
    assert chain.to_send() is None  # the one before it is not labelled yet
    chain.labelled(Parcel(first))
    sent = chain.to_send()
    assert sent is not None
    assert sent.job is first
    assert chain.to_send() is None
    assert chain.acknowledged(first)
    sent = chain.to_send()
    assert sent is not None
    assert sent.job is second


def test_an_acknowledgement_counts_for_the_job_that_was_sent_and_for_no_other() -> None:
    chain = Chain(0, 1, Mark(0, 0), P)
    first, second = chain.accept(0, order(0)), chain.accept(1, order(3))
    chain.labelled(Parcel(first))
    chain.labelled(Parcel(second))
    assert not chain.acknowledged(first)  # it was not sent
    chain.to_send()
    assert not chain.acknowledged(second)
    twin = Chain(0, 1, Mark(0, 0), P)
    assert not chain.acknowledged(twin.accept(0, order(0)))  # the same record under another lease
    assert chain.done == Mark(0, 0)
    assert chain.acknowledged(first)
    assert not chain.acknowledged(first)
    assert chain.done == Mark(1, 3)


def test_a_lease_that_ended_sends_nothing_and_counts_nothing() -> None:
    chain = Chain(0, 1, Mark(0, 0), P)
    job = chain.accept(0, order(0))
    chain.labelled(Parcel(job))
    chain.to_send()
    chain.end()
    assert not chain.acknowledged(job)
    assert chain.to_send() is None
    assert chain.done == Mark(0, 0)
    assert chain.in_hand == 0


def test_a_repetition_between_two_orders_is_done_with_the_one_before_it() -> None:
    chain = Chain(2, 1, Mark(10, 5), P)
    chain.labelled(Parcel(chain.accept(10, order(5))))
    chain.drop(11)
    chain.labelled(Parcel(chain.accept(12, order(8))))
    publish(chain)
    assert chain.done == Mark(12, 8)
    publish(chain)
    assert chain.done == Mark(13, 11)


def test_a_record_that_is_no_order_moves_the_offset_and_not_the_sequence() -> None:
    chain = Chain(1, 1, Mark(0, 1), P)
    chain.labelled(Parcel(chain.accept(0, NONE)))
    assert chain.judge(1) is Verdict.ACCEPT
    publish(chain)
    assert chain.done == Mark(1, 1)


def test_a_start_that_the_group_does_not_know_is_to_be_committed() -> None:
    assert Chain(1, 1, Mark(0, 1), P).dirty
    assert not Chain(1, 1, Mark(0, 1), P, Mark(0, 1)).dirty
