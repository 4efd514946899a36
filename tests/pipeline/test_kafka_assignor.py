"""What members of a group say to each other, in Kafka's own format."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription

from pipeline.kafka.assignor import SharesBySpeed
from pipeline.kafka.bids import Bid, decode_bid, encode_bid


class Cluster:
    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {0, 1, 2} if topic == "orders" else None


class Member:
    def __init__(self, member_id: str, assignor: SharesBySpeed, topic: str = "orders") -> None:
        self.member_id = member_id
        self.metadata = ConsumerProtocolSubscription.decode(assignor.metadata({topic}).encode())


def sharing_out(assignors: dict[str, SharesBySpeed], generation: int) -> dict[str, list[int]]:
    """One generation: all join, the first shares out, all hear of it."""
    members: list[Any] = [Member(name, assignor) for name, assignor in assignors.items()]
    answer = next(iter(assignors.values())).assign(Cluster(), members)
    shares = {}
    for name, assignor in assignors.items():
        heard = ConsumerProtocolAssignment.decode(answer[name].encode())
        assignor.on_assignment(heard, generation)
        shares[name] = [partition for _, partition in heard.partitions()]
    return shares


def test_what_a_member_says_and_hears_travels_through_kafkas_own_format() -> None:
    one, two = SharesBySpeed(lambda: Bid(20.0)), SharesBySpeed(lambda: Bid(10.0))
    for generation in range(1, 4):
        shares = sharing_out({"one": one, "two": two}, generation)
    assert {name: len(share) for name, share in shares.items()} == {"one": 2, "two": 1}
    one.forget()
    assert not one.metadata({"orders"}).owned_partitions
    assert one.metadata({"orders"}).generation_id == -1


def test_a_member_that_wants_another_topic_gets_nothing_and_takes_nothing_away() -> None:
    one, foreign = SharesBySpeed(lambda: Bid(1.0)), SharesBySpeed(lambda: Bid(100.0))
    answer = one.assign(Cluster(), [Member("one", one), Member("foreign", foreign, "another")])
    assert {name: said.partitions() for name, said in answer.items()}.keys() == {"one", "foreign"}
    assert [len(answer[name].partitions()) for name in ("one", "foreign")] == [3, 0]


def test_a_partition_that_was_let_go_of_is_spoken_of_until_the_next_sharing_out() -> None:
    left = {0: 8, 1: 8, 2: 8}
    slow, fast = SharesBySpeed(lambda: Bid(1.0, left)), SharesBySpeed(lambda: Bid(2.0))
    assert sharing_out({"slow": slow}, 1) == {"slow": [0, 1, 2]}
    first = sharing_out({"slow": slow, "fast": fast}, 2)
    assert first == {"slow": [0], "fast": []}  # the others move, and are nobody's yet
    said = decode_bid(slow.metadata({"orders"}).user_data)
    assert said == Bid(1.0, left)
    assert sharing_out({"slow": slow, "fast": fast}, 3) == {"slow": [0], "fast": [1, 2]}
    assert decode_bid(slow.metadata({"orders"}).user_data) == Bid(1.0, {0: 8})


bids = st.builds(
    Bid,
    st.just(0.0) | st.floats(1e-9, 1e9),
    st.dictionaries(st.integers(0, 255), st.integers(0, 1 << 40)),
    st.lists(st.integers(0, 255), unique=True).map(lambda pinned: tuple(sorted(pinned))),
)


@given(bids)
def test_a_bid_comes_back_to_three_digits(bid: Bid) -> None:
    again = decode_bid(encode_bid(bid))
    assert (again.remaining, again.pinned) == (bid.remaining, bid.pinned)
    assert abs(again.speed - bid.speed) <= 0.005 * bid.speed


@given(st.one_of(st.none(), st.binary(), st.text().map(str.encode)))
def test_what_is_no_bid_says_nothing(raw: bytes | None) -> None:
    assert decode_bid(raw) == Bid()


def test_bids_of_other_versions_or_with_impossible_numbers_say_nothing() -> None:
    for text in (
        '{"version":2,"speed":1.0,"remaining":[]}',
        '{"version":1,"speed":-1.0,"remaining":[]}',
        '{"version":1,"speed":NaN,"remaining":[]}',
        '{"version":1,"speed":"1","remaining":[]}',
        '{"version":1,"speed":5e-324,"remaining":[]}',
        '{"version":1,"speed":1.0,"remaining":[[0]]}',
        '{"version":1,"speed":1.0,"remaining":[[0,1' + "0" * 400 + "]]}",
        '{"version":1,"speed":1.0,"remaining":[[0,true]]}',
        '{"version":1,"speed":1.0,"remaining":5}',
        '{"version":1,"speed":1.0,"remaining":[],"pinned":["x"]}',
        '{"version":1,"speed":1.0,"remaining":[],"pinned":3}',
        "[]",
        "[" * 100_000,
    ):
        assert decode_bid(text.encode()) == Bid(), text[:40]
