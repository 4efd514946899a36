"""How old labels may be, in generations of their teachers: a function of the log alone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from schemas.errors import BrokerUnavailable, ConfigError, Starved
from schemas.generation import age
from schemas.records import Lineage, Publisher, SoftTargets
from student_trainer.run.settings import StarveSettings

logger = logging.getLogger(__name__)

_LOOK_EVERY = 1.0
"""Seconds between two looks for who publishes for a teacher."""


class Ages:
    """Which labels are too old; a teacher is due a generation every so many orders, as its publisher's record says."""

    def __init__(
        self, limits: Mapping[str, int], publishers: Mapping[str, Publisher], own: Mapping[str, int], waits: bool
    ) -> None:
        """Take the limits.

        Args:
            limits: teacher -> by how many generations its labels may be behind.
            publishers: by teacher, as far as they are known.
            own: teacher -> orders from one generation to the next, of the teacher for which this run publishes.
            waits: whether those that are not known may come yet; `wait` is to be called then.

        Raises:
            ConfigError: nobody publishes for a teacher of `limits`.
        """
        self._limits = limits
        self._every = {name: each.every for name, each in publishers.items()} | dict(own)
        for name in self._unknown:
            if not waits:
                raise ConfigError(
                    f"[[teachers]] {name}: max_age counts generations, and no run publishes for this teacher; start "
                    "that run first, or leave max_age out"
                )

    @property
    def _unknown(self) -> list[str]:
        return [name for name in self._limits if name not in self._every]

    def wait(self, lineage: Callable[[str], Lineage | None], stop: threading.Event, starve: StarveSettings) -> None:
        """Wait until it is known who publishes for each teacher, or `stop` is set.

        Two runs that teach each other have to begin somewhere: each writes that it publishes before it gets here.

        Raises:
            Starved: nobody does for `[starve] timeout` seconds.
        """
        begun, warn_at = time.monotonic(), starve.warning
        for name in self._unknown:
            while not stop.is_set():
                trouble = ""
                try:
                    found = lineage(name)
                except BrokerUnavailable as error:
                    found, trouble = None, f" ({error})"
                if found is not None and found.publisher is not None:
                    self._every[name] = found.publisher.every
                    break
                waited = time.monotonic() - begun
                text = f"waits for a run that publishes for teacher {name!r}, by whose generations its max_age counts"
                if waited >= starve.timeout:
                    raise Starved(f"{text}: none for {waited:.0f} s{trouble}; start it, and resume this run")
                if waited >= warn_at:
                    warn_at = 2 * waited
                    logger.warning("%s, for %.0f s%s", text, waited, trouble)
                stop.wait(_LOOK_EVERY)

    def too_old(self, labels: Iterable[SoftTargets]) -> bool:
        """Return whether one of an order's labels is older than it may be."""
        return any(
            age(self._every[each.teacher], each.sequence, each.generation) > self._limits[each.teacher]
            for each in labels
            if each.teacher in self._limits
        )
