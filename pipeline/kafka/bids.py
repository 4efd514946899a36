"""What a worker says of itself to its group: Kafka carries it as a member's user data, and shows it to whoever asks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

VERSION = 1
"""A reader takes a newer version's for a bid that says nothing."""


@dataclass(frozen=True, slots=True)
class Bid:
    """What a member says of itself whenever the partitions are shared out."""

    speed: float = 0.0
    """Samples per second; 0: not known."""
    remaining: Mapping[int, int] = field(default_factory=dict)
    """partition -> orders of the stream that it has not labelled yet"""


def encode_bid(bid: Bid) -> bytes:
    """Return a bid as it travels in a member's user data."""
    remaining = sorted(bid.remaining.items())
    # Three digits: what lies below is noise.
    values = {"version": VERSION, "speed": float(f"{bid.speed:.3g}"), "remaining": remaining}
    return json.dumps(values, separators=(",", ":")).encode()


def decode_bid(raw: bytes | None) -> Bid:
    """Undo `encode_bid`; a bid that says nothing for any other bytes."""
    try:
        values = json.loads(raw or b"")
        if values["version"] != VERSION:
            return Bid()
        speed = values["speed"]
        remaining = {partition: left for partition, left in values["remaining"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        return Bid()
    numbers = [*remaining, *remaining.values()]
    if type(speed) not in (int, float) or not 0 <= speed < 1e18 or not all(type(one) is int for one in numbers):
        return Bid()
    return Bid(float(speed), {partition: left for partition, left in remaining.items() if left >= 0})
