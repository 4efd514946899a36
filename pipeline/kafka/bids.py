"""What a worker says of itself to its group: Kafka carries it as a member's user data, and shows it to whoever asks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VERSION = 1
"""A reader takes a newer version's for a bid that says nothing."""
_MAX_NUMBER = 1 << 63
"""Offsets of Kafka end there: what is larger is no number of orders."""


@dataclass(frozen=True, slots=True)
class Bid:
    """What a member says of itself whenever the partitions are shared out."""

    speed: float = 0.0
    """Samples per second; 0: not known."""
    remaining: Mapping[int, int] = field(default_factory=dict)
    """partition -> orders of the stream that it has not labelled yet"""
    pinned: tuple[int, ...] = ()
    """partitions that are not to move: an order of theirs takes so long that it may be what holds the worker up, and is
    not to hold up one worker after another"""


def encode_bid(bid: Bid) -> bytes:
    """Return a bid as it travels in a member's user data."""
    remaining = sorted(bid.remaining.items())
    # Three digits: what lies below is noise.
    values: dict[str, Any] = {"version": VERSION, "speed": float(f"{bid.speed:.3g}"), "remaining": remaining}
    if bid.pinned:
        values["pinned"] = sorted(bid.pinned)
    return json.dumps(values, separators=(",", ":")).encode()


def decode_bid(raw: bytes | None) -> Bid:
    """Undo `encode_bid`; a bid that says nothing for any other bytes."""
    try:
        values = json.loads(raw or b"")
        if values["version"] != VERSION:
            return Bid()
        speed = values["speed"]
        remaining = {partition: left for partition, left in values["remaining"]}
        pinned = tuple(values.get("pinned", ()))
    except (ValueError, TypeError, KeyError, RecursionError):
        return Bid()
    numbers = [*remaining, *remaining.values(), *pinned]
    if type(speed) not in (int, float) or not (speed == 0 or 1e-18 < speed < 1e18):
        return Bid()
    if not all(type(one) is int and abs(one) < _MAX_NUMBER for one in numbers):
        return Bid()
    return Bid(float(speed), {partition: left for partition, left in remaining.items() if left >= 0}, pinned)
