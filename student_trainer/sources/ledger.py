"""Where the generations of a teacher are written down, as a run sees it that publishes or compares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from schemas.records import Generation, Lineage, Publisher


class Ledger(Protocol):
    """What is known of one teacher's generations; each of its methods may raise BrokerUnavailable."""

    @property
    def writes(self) -> bool:
        """Whether anything can be written here."""

    def lineage(self) -> Lineage | None:
        """Return the teacher with what is there by now; None: nothing is known of it here."""

    def refuse_unmovable(self) -> None:
        """Raise ConfigError where the teacher cannot have generations."""

    def claim(self, publisher: Publisher) -> Lineage:
        """Write who publishes for the teacher; where another run did before, the lineage says so."""

    def publish(self, generation: Generation) -> None:
        """Write the next generation, once; StreamConflict where it is not taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """The generations that were captured with labels: there to be compared with."""

    found: Lineage | None
    writes: bool = False

    def lineage(self) -> Lineage | None:
        """Return them; None: no label of this teacher was captured."""
        return self.found

    def refuse_unmovable(self) -> None:
        """Do nothing: nobody writes here."""

    def claim(self, publisher: Publisher) -> Lineage:
        """Not to be called."""
        raise NotImplementedError

    def publish(self, generation: Generation) -> None:
        """Not to be called."""
        raise NotImplementedError
