"""The writers' chain of one partition, against a log of anything and acknowledgements at any time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.commits import LeaseNote
from schemas.errors import DecodeError
from schemas.records import WorkOrder
from teacher_service.leases.chain import PROBATION, Chain, Job, Mark, Parcel, Verdict, is_abandoned

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


def held(probation: int | None = None, attempts: int = 0) -> Chain:
    """A chain of worker "me", whose partition the group knows as another's."""
    start = Mark(0, 0, LeaseNote("me", probation, attempts))
    return Chain(0, 1, start, P, Mark(0, 0, LeaseNote("another")))


def commit(chain: Chain) -> Mark:
    chain.committed = chain.to_commit
    return chain.committed


def test_a_lease_ended_without_grace_if_its_holder_neither_left_nor_is_there() -> None:
    assert is_abandoned(LeaseNote("dead"), "me", {"me", "another"})
    assert not is_abandoned(LeaseNote("another"), "me", {"me", "another"})  # it let the partition go
    assert not is_abandoned(LeaseNote("me"), "me", set())
    assert not is_abandoned(LeaseNote(""), "me", {"me"})


def test_nothing_begins_before_the_group_knows_the_holder() -> None:
    chain = held()
    jobs = [chain.accept(offset, order(offset * P)) for offset in range(3)]
    assert chain.to_begin() == []
    assert chain.dirty
    assert commit(chain) == Mark(0, 0, LeaseNote("me"))
    assert chain.to_begin() == jobs
    assert chain.to_begin() == []
    assert not chain.dirty
    assert chain.waiting == 0


@given(
    st.lists(st.booleans(), min_size=1, max_size=30),
    st.integers(0, PROBATION - 1),
    st.integers(0, 3),
    st.lists(st.booleans(), max_size=40),
)
def test_on_probation_each_order_begins_alone_and_behind_the_commit_of_its_attempt(
    log: list[bool], before: int, attempts: int, late: list[bool]
) -> None:
    chain = held(before, attempts)
    for offset, is_order in enumerate(log):
        chain.accept(offset, order(chain.read.sequence) if is_order else NONE)
    committed, running = Mark(0, 0, LeaseNote("another")), None
    num_done = num_orders = 0
    while num_done < len(log):
        if not (late and late.pop()):
            committed = commit(chain)
        for job in chain.to_begin():
            if isinstance(job.order, WorkOrder) and committed.note.probation is not None:
                assert running is None
                expected = 1 + (0 if num_orders else attempts)
                assert committed == Mark(committed.offset, job.sequence, LeaseNote("me", before + num_orders, expected))
                assert chain.suspects(job) == (expected >= 2)
                running = job
            else:
                assert not chain.suspects(job)
            chain.labelled(Parcel(job))
        if (job := publish(chain)) is not None:
            num_done += 1
            num_orders += isinstance(job.order, WorkOrder)
            running = None if job is running else running
        note = chain.to_commit.note
        assert (note.probation is None) == (before + num_orders >= PROBATION)
        assert note.holder == "me"
    assert committed.note.holder in ("me", "another")


def test_an_order_that_comes_after_the_commit_waits_for_another_one() -> None:
    chain = held(probation=0)
    commit(chain)
    job = chain.accept(0, order(0))
    assert chain.to_begin() == []
    assert commit(chain).note.attempts == 1
    assert chain.to_begin() == [job]


def test_an_attempt_counts_until_there_is_progress_whoever_makes_it() -> None:
    chain = held(probation=3, attempts=1)
    chain.accept(0, order(0))
    assert commit(chain).note == LeaseNote("me", 3, 2)
    (job,) = chain.to_begin()
    assert chain.suspects(job)
    chain.labelled(Parcel(job))
    publish(chain)
    assert commit(chain).note == LeaseNote("me", 4, 0)


def test_a_partition_is_on_trial_while_an_order_that_began_on_probation_is_under_way() -> None:
    chain = held(probation=0)
    chain.accept(0, order(0))
    commit(chain)
    assert not chain.on_trial  # it may begin now
    (job,) = chain.to_begin()
    assert chain.on_trial
    chain.labelled(Parcel(job))
    publish(chain)
    assert not chain.on_trial
    free = held()
    free.accept(0, order(0))
    commit(free)
    assert free.to_begin()
    assert not free.on_trial


def test_who_leaves_says_so_and_counts_no_attempt_that_did_not_end_it() -> None:
    chain = held(probation=0)
    first, _ = chain.accept(0, order(0)), chain.accept(1, order(P))
    commit(chain)
    assert chain.to_begin() == [first]
    chain.leave()
    assert chain.dirty
    assert commit(chain).note == LeaseNote("", 0, 0)  # what it had begun did not end it
    idle = held(probation=5)
    idle.accept(0, order(0))
    idle.leave()
    assert commit(idle).note == LeaseNote("", 5, 0)  # it was not begun


def test_who_gives_up_on_an_order_that_hangs_does_not_say_that_it_left_with_grace() -> None:
    chain = held(probation=0, attempts=1)
    chain.accept(0, order(0))
    commit(chain)
    assert chain.to_begin()
    chain.leave(gave_up=True)
    assert chain.to_commit.note == LeaseNote("me", 0, 2)
    assert is_abandoned(chain.to_commit.note, "another", {"another"})
