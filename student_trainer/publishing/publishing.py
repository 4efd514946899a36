"""When a run's student becomes a teacher's next generation, and what becomes of it.

Generation G is what the student is at the first step boundary behind which all rows of orders below G * `every` of the
first pass lie: a function of the cursor. The run that publishes for the teacher writes the file, then the record; a
replay of it, and the run itself where it comes by again after a resume, compares the weights' hash with the record's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from pipeline.captured.storage import storage_of
from schemas.errors import BrokerUnavailable, ManifestMismatch, Starved
from schemas.records import Generation, Lineage
from student_trainer.learning.average import averaged
from student_trainer.learning.peers import Peers
from student_trainer.learning.weights import tensors_sha256
from student_trainer.publishing.exporting import Exporter, ModelFile
from student_trainer.run.peer_settings import FIRST
from student_trainer.run.publish_settings import PublishSettings
from student_trainer.run.settings import StarveSettings
from student_trainer.sources.base import Cursor
from student_trainer.sources.ledger import Ledger

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PAUSE = 1.0
"""Seconds between two tries while Kafka gives no answer."""


def file_name(teacher: str, number: int, sha256: str) -> str:
    """Return how a generation's file is called; 0: the student as its run began."""
    return f"{teacher}-{number:06d}-{sha256[:12]}.onnx"


class Publishing:
    """A run's generations; used by the training thread."""

    def __init__(
        self,
        settings: PublishSettings,
        starve: StarveSettings,
        ledger: Ledger,
        lineage: Lineage | None,
        exporter: Exporter | None,
        run_id: str,
        num_orders: int,
        done: int,
    ) -> None:
        """Go on behind generation `done`, by what the ledger says now.

        Args:
            settings, starve: the run's.
            ledger: of the teacher.
            lineage: what it says at the start.
            exporter: makes the files; None: this run compares alone.
            run_id: the run's.
            num_orders: of the stream.
            done: the last generation that the run has dealt with.
        """
        self._settings = settings
        self._starve = starve
        self._ledger = ledger
        self._lineage = lineage
        self._exporter = exporter
        self._run_id = run_id
        self._num_orders = num_orders
        self.done = done
        """The last generation that was dealt with."""
        self.published: list[int] = []
        """Those that this process wrote."""
        self.compared: list[int] = []
        """Those whose weights were found to be these."""
        self.missing: list[int] = []
        """Those that are not there, and that are not this run's to write."""

    @property
    def publishes(self) -> bool:
        """Whether it writes what is not there; else it compares alone."""
        return self._exporter is not None

    def due(self, cursor: Cursor) -> int:
        """Return the newest generation that the run has reached before a cursor; the last one leaves an order."""
        trained = self._num_orders if cursor.pass_number else cursor.sequence
        return min(trained, self._num_orders - 1) // self._settings.every

    def reach(self, step: int, cursor: Cursor, trainee: Peers, stopped: Callable[[], bool]) -> None:
        """Publish, or compare, what became due before a cursor; what is left when `stopped` stays due.

        Raises:
            ManifestMismatch: a generation that is there has other weights.
            Starved: Kafka gave no answer for `[starve] timeout` seconds.
            StreamConflict, NotAuthorized, CannotWrite, ConfigError: as their names say; nothing was written then.
        """
        weights = self._weights(trainee)
        sha256, file = tensors_sha256(weights), None
        for number in range(self.done + 1, self.due(cursor) + 1):
            if not self._look(number, stopped):
                return
            newest = 0 if self._lineage is None else self._lineage.newest
            if number <= newest:
                self._compare(number, step, sha256)
            elif self._exporter is None or number > newest + 1:
                self.missing.append(number)
            else:
                file = file or self._exporter.export(weights, Path(f"step {step}"))
                if not self._publish(number, step, sha256, file, stopped):
                    return
            self.done = number

    def came_of(self) -> dict[str, list[int]]:
        """Return the numbers of the generations that this process came by, by what became of them."""
        return {"published": self.published, "compared": self.compared, "missing": self.missing}

    def _look(self, number: int, stopped: Callable[[], bool]) -> bool:
        """Ask what is there by now, unless it is known that this one is; False: told to stop."""
        if self._lineage is not None and number <= self._lineage.newest:
            return True
        found = self._patiently(number, self._ledger.lineage, stopped)
        if stopped():
            return False
        self._lineage = found or self._lineage
        return True

    def _compare(self, number: int, step: int, sha256: str) -> None:
        assert self._lineage is not None  # it has the number
        there = self._lineage.generations[number - 1]
        if there.weights_sha256 != sha256:
            raise ManifestMismatch(
                f"generation {number} of teacher {there.teacher!r} has the weights {there.weights_sha256[:16]}, "
                f"published after step {there.step}, and this run has {sha256[:16]} after step {step}: it is no replay "
                "of the run that published it (other settings, hardware or threads? a GPU, which promises no bits?); "
                "nothing was published: leave [publish] out to learn without comparing"
            )
        self.compared.append(number)

    def _publish(self, number: int, step: int, sha256: str, file: ModelFile, stopped: Callable[[], bool]) -> bool:
        assert self._lineage is not None  # a run that publishes has claimed its teacher
        teacher = self._lineage.teacher
        folder, name = storage_of(self._settings.to), file_name(teacher.name, number, file.sha256)
        folder.write_whole(name, file.content)
        generation = Generation(
            stream_id=teacher.stream_id,
            teacher=teacher.name,
            number=number,
            sha256=file.sha256,
            weights_sha256=sha256,
            model=folder.address(name),
            run_id=self._run_id,
            step=step,
            sequence=number * self._settings.every,
        )
        self._patiently(number, lambda: self._ledger.publish(generation), stopped)
        if stopped():
            return False  # it may be there by now, and is compared with then
        self.published.append(number)
        logger.info("generation %d of teacher %r: %s", number, teacher.name, folder.address(name))
        return True

    def _patiently(self, number: int, ask: Callable[[], T], stopped: Callable[[], bool]) -> T | None:
        """Return the answer; None once `stopped`."""
        begun, warn_at = time.monotonic(), self._starve.warning
        while not stopped():
            try:
                return ask()
            except BrokerUnavailable as error:
                waited = time.monotonic() - begun
                text = f"generation {number} waits for Kafka for {waited:.0f} s: {error}"
                if waited >= self._starve.timeout:
                    raise Starved(f"{text}; gave up, resume the run when it is back") from None
                if waited >= warn_at:
                    warn_at = 2 * waited
                    logger.warning("%s", text)
            time.sleep(_PAUSE)
        return None

    def _weights(self, trainee: Peers) -> Mapping[str, Tensor]:
        state = trainee.each[self._settings.peer or FIRST].state()
        weights: Mapping[str, Tensor] = state["model"] if self._settings.weights == "trained" else averaged(state)
        return weights
