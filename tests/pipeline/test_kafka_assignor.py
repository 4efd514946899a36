"""Sharing out partitions: cooperative, sticky, equal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition

from pipeline.kafka.assignor import EqualShares, share_out

Claim = tuple[int, list[TopicPartition]]


def partitions(count: int) -> list[TopicPartition]:
    return [TopicPartition("orders", number) for number in range(count)]


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[TopicPartition], dict[str, Claim]]:
    """Members that claim anything: nothing, too much, what others claim, under any generation."""
    there = partitions(draw(st.integers(1, 30)))
    members = draw(st.lists(st.text("abcdefgh", min_size=1, max_size=4), min_size=1, max_size=8, unique=True))
    claims: dict[str, Claim] = {}
    for member in members:
        owned = draw(st.lists(st.sampled_from([*there, TopicPartition("orders", 99)]), unique=True, max_size=30))
        claims[member] = (draw(st.integers(-1, 5)), owned)
    return there, claims


def owners_of(claims: dict[str, Claim]) -> dict[TopicPartition, str]:
    """The claimant of the newest generation; of two equal ones, the first in order of name."""
    owners: dict[TopicPartition, str] = {}
    for member, (_, owned) in sorted(claims.items(), key=lambda item: (-item[1][0], item[0])):
        for partition in owned:
            owners.setdefault(partition, member)
    return owners


def next_round(shares: dict[str, list[TopicPartition]], generation: int) -> dict[str, Claim]:
    return {member: (generation, share) for member, share in shares.items()}


@given(groups())
def test_each_partition_is_given_once_at_most_and_never_while_another_owns_it(group: Any) -> None:
    there, claims = group
    shares = share_out(there, claims)
    given_out = [partition for share in shares.values() for partition in share]
    assert len(given_out) == len(set(given_out))
    assert set(given_out) <= set(there)
    owners = owners_of(claims)
    for member, share in shares.items():
        assert all(owners.get(partition, member) == member for partition in share)


@given(groups())
def test_two_rounds_give_out_everything_in_shares_that_differ_by_one_at_most(group: Any) -> None:
    there, claims = group
    shares = share_out(there, next_round(share_out(there, claims), 6))
    assert sorted(partition for share in shares.values() for partition in share) == there
    sizes = [len(share) for share in shares.values()]
    assert max(sizes) - min(sizes) <= 1


@given(groups())
def test_nothing_moves_when_nothing_changed(group: Any) -> None:
    there, claims = group
    settled = share_out(there, next_round(share_out(there, claims), 6))
    again = share_out(there, next_round(settled, 7))
    assert {member: set(share) for member, share in again.items()} == {m: set(s) for m, s in settled.items()}


@given(groups())
def test_no_more_partitions_are_taken_away_than_equal_shares_need(group: Any) -> None:
    there, claims = group
    owners = owners_of(claims)
    owned = {member: {p for p in there if owners.get(p) == member} for member in claims}
    shares = share_out(there, claims)
    taken_away = sum(len(owned[member] - set(shares[member])) for member in claims)
    low, num_larger = divmod(len(there), len(claims))
    rich_first = sorted((len(one) for one in owned.values()), reverse=True)
    needed = sum(max(0, size - low - (rank < num_larger)) for rank, size in enumerate(rich_first))
    assert taken_away == needed


def test_a_zombie_of_an_older_generation_loses_its_claim() -> None:
    there = partitions(4)
    claims = {"a-zombie": (3, there), "b-owner": (4, there[:2]), "c-owner": (4, there[2:])}
    shares = share_out(there, claims)
    assert shares["a-zombie"] == []
    assert len(shares["b-owner"]) + len(shares["c-owner"]) == 3  # one is held back for the third member
    assert set(shares["b-owner"]) <= set(there[:2])


def test_a_member_too_many_gets_nothing_and_takes_nothing() -> None:
    there = partitions(2)
    shares = share_out(there, {"a": (1, there[:1]), "b": (1, there[1:]), "c": (-1, [])})
    assert shares == {"a": there[:1], "b": there[1:], "c": []}


class _Cluster:
    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {0, 1, 2} if topic == "orders" else None


def test_what_a_member_says_and_hears_travels_through_kafkas_own_format() -> None:
    from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription

    class Member:
        def __init__(self, member_id: str, assignor: EqualShares) -> None:
            self.member_id = member_id
            said = assignor.metadata({"orders"})
            self.metadata = ConsumerProtocolSubscription.decode(said.encode())

    first, second = EqualShares(), EqualShares()
    for generation in range(1, 4):
        answer = first.assign(_Cluster(), [Member("one", first), Member("two", second)])
        for assignor, name in ((first, "one"), (second, "two")):
            assignor.on_assignment(ConsumerProtocolAssignment.decode(answer[name].encode()), generation)
    assert {name: len(one.partitions()) for name, one in answer.items()} == {"one": 2, "two": 1}
    first.forget()
    assert not first.metadata({"orders"}).owned_partitions
    assert first.metadata({"orders"}).generation_id == -1


@pytest.mark.parametrize("members", [1, 3, 7, 64, 65])
def test_a_new_group_gets_equal_shares_at_once(members: int) -> None:
    there = partitions(64)
    shares = share_out(there, {f"m{number}": (-1, []) for number in range(members)})
    sizes = [len(share) for share in shares.values()]
    assert sum(sizes) == 64
    assert max(sizes) - min(sizes) <= 1
