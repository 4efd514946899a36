"""What a group's coordinator says of members that may be anybody's."""

from __future__ import annotations

from pipeline.kafka.bids import Bid
from pipeline.kafka.coordinator import members_of


def test_what_a_foreign_member_calls_itself_steers_no_terminal() -> None:
    said = {
        "member_id": "m-1",
        "client_id": "one\x1b[2J\ntwo",
        "client_host": "/127.0.0.1",
        "member_metadata": "",
        "member_assignment": "",
    }
    (member,) = members_of({"members": [said]})
    assert (member.name, member.host, member.bid, member.partitions) == ("one?[2J?two", "127.0.0.1", Bid(), ())
