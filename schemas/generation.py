"""Teachers that move: who publishes for one, and which models it had, one generation after the other.

Generation 0 is the model of the teacher's own record. One run publishes for a teacher; what it has learned from the
first G * every orders is generation G. Records of both lie in the manifest's topic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Self

from schemas.avro import NEWEST, REGISTRY, Datum
from schemas.columns import pack_sha256
from schemas.errors import EncodeError
from schemas.names import check_name
from schemas.teacher import Teacher

_SHOWN = 80
"""Characters of a text that a message quotes."""


def _shows(text: str) -> bool:
    """Whether a text is one, and a terminal shows it and obeys nothing: whoever may publish may write any."""
    return bool(text) and text.isprintable()


@dataclass(frozen=True, slots=True)
class Publisher:
    """Which run publishes itself as a teacher's next generations."""

    stream_id: str
    teacher: str
    run: str
    """Its name, for messages."""
    run_id: str
    """What it is told by: random."""
    every: int
    """Orders of the first pass from one generation to the next."""

    def encode(self, pinned: Mapping[str, str] = NEWEST) -> bytes:
        """Return the record's bytes in the schema version `pinned`; EncodeError where a value does not fit."""
        if problem := self._problem():
            raise EncodeError(f"publisher for teacher {self.teacher!r}: {problem}")
        return REGISTRY.encode("publisher", asdict(self), pinned)

    @classmethod
    def decode(cls, raw: bytes, address: str) -> Self:
        """Return the publisher; anything else raises DecodeError with `address`."""
        return REGISTRY.decode_as("publisher", cls._of, raw, address)

    @classmethod
    def _of(cls, datum: Datum) -> Self:
        publisher = cls(**datum)
        if problem := publisher._problem():
            raise ValueError(problem)
        return publisher

    def _problem(self) -> str:
        check_name("teacher", self.teacher)
        check_name("run", self.run)
        if not _shows(self.run_id) or self.every < 1:
            return f"it has run ID {self.run_id[:_SHOWN]!r} and publishes every {self.every} orders"
        return ""


@dataclass(frozen=True, slots=True)
class Generation:
    """A model that a run published as the next one of a teacher."""

    stream_id: str
    teacher: str
    number: int
    """1, 2, 3, ..."""
    sha256: str
    """Of the ONNX file; 64 lower-case hex digits."""
    weights_sha256: str
    """Of the weights that were published, in the same form, for whoever reaches them again."""
    model: str
    """Where the file lies: an absolute path, or a URL."""
    run_id: str
    """The publisher's."""
    step: int
    """Steps that the run had taken."""
    sequence: int
    """Orders of the first pass that it had learned from: number times the publisher's `every`."""

    def encode(self, pinned: Mapping[str, str] = NEWEST) -> bytes:
        """Return the record's bytes in the schema version `pinned`; EncodeError where a value does not fit."""
        if problem := self._problem():
            raise EncodeError(f"generation {self.number} of teacher {self.teacher!r}: {problem}")
        sums = {name: pack_sha256(getattr(self, name)) for name in ("sha256", "weights_sha256")}
        return REGISTRY.encode("generation", asdict(self) | sums, pinned)

    @classmethod
    def decode(cls, raw: bytes, address: str) -> Self:
        """Return the generation; anything else raises DecodeError with `address`."""
        return REGISTRY.decode_as("generation", cls._of, raw, address)

    @classmethod
    def _of(cls, datum: Datum) -> Self:
        sums = {name: datum[name].hex() for name in ("sha256", "weights_sha256")}
        generation = cls(**datum | sums)
        if problem := generation._problem():
            raise ValueError(problem)
        return generation

    def _problem(self) -> str:
        check_name("teacher", self.teacher)
        if self.number < 1 or self.step < 0 or self.sequence < 1:
            return f"it has number {self.number}, step {self.step} and sequence {self.sequence}"
        shown = _shows(self.model) and _shows(self.run_id)
        return "" if shown else f"it has model {self.model[:_SHOWN]!r} of run ID {self.run_id[:_SHOWN]!r}"


@dataclass(frozen=True, slots=True, eq=False)
class Lineage:
    """A teacher through its generations, as far as they are known."""

    teacher: Teacher
    """As its record says: generation 0."""
    publisher: Publisher | None = None
    """None: nobody publishes for it, so it stays what it is."""
    generations: tuple[Generation, ...] = ()
    """1, 2, 3, ... without a gap."""

    @property
    def newest(self) -> int:
        """Number of the last generation."""
        return len(self.generations)

    def at(self, number: int) -> Teacher | None:
        """Return the teacher as it was in a generation, with that model; None: such a one is not known."""
        if number == 0:
            return self.teacher
        if not 0 < number <= self.newest:
            return None
        found = self.generations[number - 1]
        file = found.model.rstrip("/").rpartition("/")[2] or self.teacher.model_file
        return replace(self.teacher, sha256=found.sha256, model_file=file, generation=number)

    def of_model(self, sha256: str) -> Teacher | None:
        """Return the teacher as it was in the first generation that had a model; None: none had."""
        numbers = range(self.newest + 1)
        return next((found for each in numbers if (found := self.at(each)) and found.sha256 == sha256), None)


def follows(publisher: Publisher | None, newest: int, generation: Generation) -> bool:
    """Whether a generation is the one behind the newest: its publisher's, with the next number, where that is due.

    It is the reader's rule once more: every other one, lower or higher, is dropped.
    """
    if publisher is None:
        return False
    number = newest + 1
    expected = publisher.stream_id, publisher.teacher, publisher.run_id, number, number * publisher.every
    found = generation.stream_id, generation.teacher, generation.run_id, generation.number, generation.sequence
    return found == expected


def age(every: int, sequence: int, generation: int) -> int:
    """Return by how many generations the labels of an order are behind what is due there; less than 1: by none.

    It is a function of the log alone, and no clock has a part in it.

    Args:
        every: the publisher's.
        sequence: of the order.
        generation: by which it was labelled.
    """
    return sequence // every - generation
