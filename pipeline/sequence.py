"""Which samples work order `s` holds: a pure function of five numbers of the manifest.

N: samples in an order; P: partitions. An epoch is a seeded permutation of the dataset, cut into orders of
`order_size` IDs; its last order may be short. The permutation is computed index by index, so an order costs
O(order size) time and memory for a dataset of any size (small orders are computed some 4,096 IDs at once).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.hashing import hash_int, hash_int_on, hash_on, tag
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from schemas.records import Manifest

MAX_SAMPLES = 1 << 40
"""Beyond it, sums inside the permutation could leave 64 bits and a hash modulo the halves would be biased."""

_ROUNDS = 6
_BLOCK = 4_096
"""IDs that are computed at once, of several small orders: who wants one wants the next, too, and for 256 values NumPy
takes most of its time to begin."""
_PERMUTATION = tag("sequence.permutation")
_VIEW = tag("sequence.view")


@dataclass(frozen=True, slots=True)
class Sequence:
    """The numbered work orders of a stream. Raises ConfigError when a number makes no sense."""

    num_samples: int
    """Samples of the dataset, 1 to 2^40."""
    order_size: int
    """IDs in each order but an epoch's last, which may be shorter."""
    epochs: int
    """Passes over the dataset, each in another order and with other views."""
    seed: int
    """In [0, 2^63): keys the permutations and the view seeds."""
    partitions: int
    """Order `s` goes to partition `s % partitions`."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("num_samples", self.num_samples, 1, MAX_SAMPLES),
            ("order_size", self.order_size, 1, 1 << 24),
            ("epochs", self.epochs, 1, 1 << 31),
            ("seed", self.seed, 0, (1 << 63) - 1),
            ("partitions", self.partitions, 1, 1 << 16),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}: give a whole number from {low} to {high}")
        if self.num_orders >= 1 << 62:
            raise ConfigError(f"{self.num_orders} orders are too many: lower epochs or raise order_size")

    @classmethod
    def of(cls, manifest: Manifest) -> Sequence:
        """The sequence that a stream's manifest describes."""
        return cls(manifest.num_samples, manifest.order_size, manifest.epochs, manifest.seed, manifest.partitions)

    @property
    def orders_per_epoch(self) -> int:
        """Orders in one epoch, the short last one counted."""
        return -(-self.num_samples // self.order_size)

    @property
    def num_orders(self) -> int:
        """Orders in all epochs: sequences run from 0 to one less."""
        return self.orders_per_epoch * self.epochs

    def epoch_of(self, sequence: int) -> int:
        """The epoch that an order belongs to. Raises IndexError outside the stream."""
        self._check(sequence)
        return sequence // self.orders_per_epoch

    def size_of(self, sequence: int) -> int:
        """How many IDs an order holds: `order_size`, or fewer for an epoch's last. Raises IndexError."""
        self._check(sequence)
        start = sequence % self.orders_per_epoch * self.order_size
        return min(self.order_size, self.num_samples - start)

    def sample_ids(self, sequence: int) -> npt.NDArray[np.int64]:
        """[N] int64: the IDs of an order, in the order that students train on them. Raises IndexError."""
        epoch = self.epoch_of(sequence)
        start = sequence % self.orders_per_epoch * self.order_size
        size = max(self.order_size, _BLOCK // self.order_size * self.order_size)
        block = _block(self.num_samples, size, start // size, _of_epoch(self.seed, _PERMUTATION, epoch))
        return block[start % size : start % size + self.size_of(sequence)].copy()

    def view_seed(self, epoch: int) -> int:
        """The seed of all views of an epoch, in [0, 2^63)."""
        return _of_epoch(self.seed, _VIEW, epoch) >> 1

    def partition(self, sequence: int) -> int:
        """The partition, of work orders and of soft targets, that holds an order."""
        return sequence % self.partitions

    def first_of(self, partition: int) -> int:
        """The lowest sequence of a partition."""
        return partition

    def next_in(self, partition: int, sequence: int) -> int:
        """The smallest sequence >= `sequence` that belongs to a partition (it may lie past the stream's end)."""
        return sequence + (partition - sequence) % self.partitions

    def _check(self, sequence: int) -> None:
        if not 0 <= sequence < self.num_orders:
            raise IndexError(f"sequence {sequence} is outside [0, {self.num_orders})")


@lru_cache(maxsize=64)
def _of_epoch(seed: int, purpose: int, epoch: int) -> int:
    """`hash_int` of the three: asked for with every order, and new with every epoch."""
    return hash_int(seed, purpose, epoch)


@lru_cache(maxsize=8)
def _block(num_samples: int, size: int, number: int, key: int) -> npt.NDArray[np.int64]:
    """The IDs of some consecutive orders of an epoch; not to be written to."""
    indices = np.arange(number * size, min((number + 1) * size, num_samples), dtype=np.uint64)
    return _permuted(indices, num_samples, key).astype(np.int64)


def _permuted(indices: npt.NDArray[np.uint64], n: int, key: int) -> npt.NDArray[np.uint64]:
    """Where a keyed permutation of [0, n) sends `indices`.

    A generalised Feistel network on [0, a) x [0, b) with cycle walking (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains"). a * b exceeds n by less than sqrt(n) + 1, so hardly an index walks.
    """
    a = isqrt(n - 1) + 1
    b = -(-n // a)
    states = [hash_int(key, number) for number in range(_ROUNDS)]
    result = _feistel(indices, a, b, states)
    for place in np.flatnonzero(result >= n):
        # One by one, in Python: they are few, and NumPy takes as long for three values as for three hundred.
        value = int(result[place])
        while value >= n:
            value = _feistel_int(value, a, b, states)
        result[place] = value
    return result


def _feistel(values: npt.NDArray[np.uint64], a: int, b: int, states: list[int]) -> npt.NDArray[np.uint64]:
    a64, b64 = np.uint64(a), np.uint64(b)
    left = values // b64
    right = values - left * b64
    for number in range(0, _ROUNDS, 2):
        left = _add_modulo(left, hash_on(states[number], right), a64)
        right = _add_modulo(right, hash_on(states[number + 1], left), b64)
    left *= b64
    left += right
    return left


def _add_modulo(values: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64], n: np.uint64) -> npt.NDArray[np.uint64]:
    """`(values + others % n) % n` for values below n, in place of `others`."""
    excess = others // n  # NumPy divides by one number nine times as fast as it takes the remainder
    excess *= n
    others -= excess
    others += values
    np.floor_divide(others, n, out=excess)
    excess *= n
    others -= excess
    return others


def _feistel_int(value: int, a: int, b: int, states: list[int]) -> int:
    """`_feistel` of one value."""
    left, right = divmod(value, b)
    for number in range(0, _ROUNDS, 2):
        left = (left + hash_int_on(states[number], right) % a) % a
        right = (right + hash_int_on(states[number + 1], left) % b) % b
    return left * b + right
