"""Who labels which partitions: shares by speed, as a pure function of what the members of a group say of themselves.

The partitions of a stream are fed round robin and trained on in sequence, so the pace is that of the partition which is
done last. What is made smallest is therefore the largest `remaining orders / speed` of all members. Where all
partitions have equally much left, that is D'Hondt's apportionment (each seat to the smallest (n + 1) / speed, which
maximises the smallest speed / n); towards a stream's end, where they have not, it is the greedy rule for machines of
unequal speed (the longest first, each to whoever would be done with it first). So the tail needs no rule of its own.

Letters: P partitions, M members.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from pipeline.kafka.bids import Bid

WORTH_MOVING = 1.01
"""An apportionment that would be done sooner by less than this factor moves nothing: it is noise."""
WORTH_MOVING_ALL = 1.05
"""The same for the apportionment that asks nobody what he has."""

_NOTHING_LEFT = 1e-3
"""Orders that a finished partition counts as, so that it has an owner, too, and weighs nothing beside another."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A member's bid, with what it says to own."""

    generation: int = -1
    """of its last assignment"""
    owned: tuple[int, ...] = ()
    bid: Bid = field(default_factory=Bid)


Claims = Mapping[str, Claim]
"""member ID -> what it says"""
Shares = dict[str, list[int]]
"""member ID -> its partitions, ascending"""


def share_out(partitions: int, claims: Claims) -> Shares:
    """Give each of P partitions to at most one member, moving as few as the best apportionment allows.

    A partition that must move is held back for one round: it stays out of the result while its owner still works on it
    (KIP-429). A member too slow for one partition gets none.
    """
    owners = _owners(partitions, claims)
    wanted = apportion(partitions, claims)
    return {member: [one for one in share if owners.get(one, member) == member] for member, share in wanted.items()}


def apportion(partitions: int, claims: Claims) -> Shares:
    """Say who is to have which partition in the end: all of P are given out."""
    race = _Race(partitions, claims)
    anew = race.placed({member: [] for member in claims})
    least = race.longest(anew)
    # What would move less comes first, and is taken if it is as good; only where neither is good enough all may move.
    few = [race.placed(begun) for begun in (race.owned, race.trimmed(race.owned, least))]
    for worth in (WORTH_MOVING, WORTH_MOVING_ALL):
        for shares in few:
            if race.longest(shares) <= worth * least:
                return race.with_pinned(shares)
    return race.with_pinned(anew)


def gain(partitions: int, claims: Claims) -> float:
    """By which factor all would be done sooner if the partitions were shared out anew: 1 or more."""
    race = _Race(partitions, claims)
    if race.over:
        return 1.0
    return race.longest(race.placed(race.owned)) / race.longest(apportion(partitions, claims))


def _owners(partitions: int, claims: Claims) -> dict[int, str]:
    """Partition -> whose it is: of two claimants the newer generation owns it."""
    owners: dict[int, str] = {}
    for member in sorted(claims, key=lambda member: (-claims[member].generation, member)):
        for partition in claims[member].owned:
            if 0 <= partition < partitions:
                owners.setdefault(partition, member)
    return owners


class _Race:
    """How long members would take for shares, by their bids.

    What is pinned cannot move, but its owner has so much less time for others. It counts as no more than the owner's
    part of all: beyond that nothing can be done about it, and it is not to hide what can.
    """

    def __init__(self, partitions: int, claims: Claims) -> None:
        self._members = sorted(claims)
        known = [claim.bid.speed for claim in claims.values() if claim.bid.speed > 0]
        usual = median(known) if known else 1.0
        self._speeds = {member: claim.bid.speed or usual for member, claim in claims.items()}
        left = _left(partitions, claims)
        self.owned: Shares = {member: [] for member in claims}
        self._pinned: Shares = {member: [] for member in claims}
        for partition, owner in sorted(_owners(partitions, claims).items()):
            if partition in claims[owner].bid.pinned:
                self._pinned[owner].append(partition)
            else:
                self.owned[owner].append(partition)
        part = sum(left) / sum(self._speeds.values())
        self._begun: dict[str, float] = {}
        for member, pinned in self._pinned.items():
            self._begun[member] = min(sum(left[partition] for partition in pinned), part * self._speeds[member])
            for partition in pinned:
                left[partition] = 0.0
        self._fixed = {partition for share in self._pinned.values() for partition in share}
        self._left = left

    def with_pinned(self, shares: Shares) -> Shares:
        """Add what is pinned to its owners' shares."""
        return {member: sorted([*share, *self._pinned[member]]) for member, share in shares.items()}

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return max(self._left, default=0) <= _NOTHING_LEFT

    def longest(self, shares: Shares) -> float:
        """When the last member is done, in orders per speed."""
        return max((self._begun[one] + self._load(share)) / self._speeds[one] for one, share in shares.items())

    def placed(self, begun: Shares) -> Shares:
        """Give out what is nobody's yet: the longest first, each to whoever would be done with it first."""
        shares = {member: list(share) for member, share in begun.items()}
        loads = {member: self._begun[member] + self._load(share) for member, share in begun.items()}
        taken = {partition for share in begun.values() for partition in share}
        free = set(range(len(self._left))) - taken - self._fixed
        for partition in sorted(free, key=lambda partition: (-self._left[partition], partition)):
            left = self._left[partition]
            first = min(self._members, key=lambda member: ((loads[member] + left) / self._speeds[member], member))
            shares[first].append(partition)
            loads[first] += left
        return {member: sorted(share) for member, share in shares.items()}

    def trimmed(self, owned: Shares, least: float) -> Shares:
        """Let each member keep as many of its partitions as it would be done with in `least`."""
        kept: Shares = {}
        for member, share in owned.items():
            kept[member] = []
            load = self._begun[member]
            for partition in sorted(share, key=lambda partition: (self._left[partition], partition)):
                load += self._left[partition]
                if load <= least * self._speeds[member] * (1 + 1e-9):
                    kept[member].append(partition)
        return kept

    def _load(self, share: Iterable[int]) -> float:
        return sum(self._left[partition] for partition in share)


def _left(partitions: int, claims: Claims) -> list[float]:
    """[P] orders: what owners say, then what others who just let go say; else as many as any has."""
    said: dict[int, int] = {}
    for member in sorted(claims, key=lambda member: (-claims[member].generation, member)):
        claim = claims[member]
        for partition, left in claim.bid.remaining.items():
            if partition in claim.owned:
                said.setdefault(partition, left)
    for member in sorted(claims):
        for partition, left in claims[member].bid.remaining.items():
            said.setdefault(partition, left)
    most = max((left for partition, left in said.items() if 0 <= partition < partitions), default=1)
    return [max(said.get(partition, most), _NOTHING_LEFT) for partition in range(partitions)]
