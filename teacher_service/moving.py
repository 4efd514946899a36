"""A worker's teacher through its generations: a thread that follows the manifest's topic and takes up the newest.

Beside the work, and never in its way: whatever goes wrong with a generation, the worker labels on by the one it has.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Protocol

from pipeline.kafka.log import Cluster
from pipeline.manifest_log import ManifestFollower, holds_generations
from pipeline.streams import Stream
from schemas.errors import BrokerUnavailable, DistillogError
from schemas.records import Lineage
from teacher_service.models.generations import Open, open_generation, unfit
from teacher_service.models.session import Inputs, OnnxTeacher

log = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two looks at the manifest's topic, where somebody publishes for the teacher."""
UNMOVED = 5.0
"""The same where nobody does, so far."""
ANSWER = 5.0
"""Seconds for one look; the next one goes on where it failed."""
LONGEST_PAUSE = 60.0
"""Seconds between two tries of a generation that cannot be taken up, at most; the first pause is EVERY, and each is
twice the last."""
_TRIES = 3
"""Generations that a worker tries at its start, from the newest down."""
_END = 2.0
"""Seconds for which the end of the thread is waited for."""


class Labelling(Protocol):
    """Whoever labels by a model that is replaced between two orders."""

    model: OnnxTeacher


class Moving:
    """What a worker knows of its teacher's generations; `first` is for one thread, before `start`."""

    def __init__(
        self, cluster: Cluster, stream: Stream, base: OnnxTeacher, inputs: Inputs, open_model: Open = OnnxTeacher
    ) -> None:
        """Make one, which asks for nothing before it is started.

        Args:
            cluster: where the stream is.
            stream: as the worker opened it.
            base: the teacher's own model, which labels `inputs` well.
            inputs: field of the view -> [M, ...], of one order.
            open_model: as `open_generation` has it.
        """
        self._cluster = cluster
        self._manifest = stream.manifest
        self._lineage = stream.lineage(base.teacher.name)
        self._inputs = {field: values[: base.teacher.inference_batch].copy() for field, values in inputs.items()}
        self._open_model = open_model
        self._moves = holds_generations(stream.manifest) and not base.heads
        self._copies: tempfile.TemporaryDirectory[str] | None = None
        self._rejected = 0
        """The last generation that cannot serve, whenever it is asked again."""
        self._failed, self._pause, self._again = 0, EVERY, 0.0
        """The last one that could not be taken up; and for how long, and until when, it is left alone."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def first(self, base: OnnxTeacher) -> OnnxTeacher:
        """Return the model that a worker begins with: the newest generation that can be had, or the teacher's own."""
        newest = self._lineage.newest
        for number in range(newest, max(0, newest - _TRIES), -1):
            if (model := self._taken(base, number)) is not None:
                return model
        return base

    def of(self, base: OnnxTeacher, number: int) -> OnnxTeacher | None:
        """Return the model of any generation that a label names, unchecked; None: there is none, or not to be had."""
        try:
            if number > self._lineage.newest:  # it came since the stream was opened, and before that label
                with closing(ManifestFollower(self._cluster, self._manifest)) as follower:
                    self._lineage = follower.read(ANSWER).lineages.get(base.teacher.name, self._lineage)
            if not 0 <= number <= self._lineage.newest:
                return None
            return base if number == 0 else self._opened(base, number)
        except (DistillogError, OSError, MemoryError) as error:
            log.debug("generation %d of teacher %r: %s", number, base.teacher.name, error)
            return None

    def start(self, labelling: Labelling) -> None:
        """Start the thread, which puts each newer model that is fit in place of the one in use."""
        if self._moves:
            self._thread = threading.Thread(target=self._run, args=(labelling,), name="generations", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread, and remove the copies of files; waits 2 s for it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_END)
        if self._copies is not None:
            self._copies.cleanup()

    def _run(self, labelling: Labelling) -> None:
        with closing(ManifestFollower(self._cluster, self._manifest)) as follower:
            while not self._stop.is_set():
                try:
                    there = follower.read(ANSWER).lineages.get(self._lineage.teacher.name)
                except BrokerUnavailable as error:
                    log.debug("looking for generations: %s", error)  # the work itself says so, and has a deadline
                except Exception as error:  # the topic is gone, say: others look at that, and stop the worker
                    log.debug("looking for generations: %s: %s", type(error).__name__, error)
                else:
                    self._look(there, labelling)
                self._stop.wait(EVERY if self._lineage.publisher else UNMOVED)

    def _look(self, there: Lineage | None, labelling: Labelling) -> None:
        if there is None:
            return  # it was removed, or a newer Distillog's
        self._lineage = there
        number = there.newest
        if number <= max(labelling.model.teacher.generation, self._rejected):
            return
        if number == self._failed and time.monotonic() < self._again:
            return
        model = self._taken(labelling.model, number)
        if model is not None and not self._stop.is_set():
            labelling.model = model
            log.info("labels by generation %d of teacher %r from the next order on", number, there.teacher.name)

    def _taken(self, beside: OnnxTeacher, number: int) -> OnnxTeacher | None:
        """Open a generation and look whether it is fit to label; None, said in a warning, where it is not."""
        what = f"generation {number} of teacher {beside.teacher.name!r}"
        goes_on = f"labels go on by generation {beside.teacher.generation}"
        try:
            model = self._opened(beside, number)
            if problem := unfit(model, self._manifest.codec, self._inputs):
                self._rejected = number
                file = self._lineage.generations[number - 1].model
                log.warning("%s is not taken: %s; %s", what, problem.replace(str(model.path), file), goes_on)
                return None
        except Exception as error:  # storage, memory and devices may come right
            pause = EVERY if number != self._failed else min(2 * self._pause, LONGEST_PAUSE)
            self._failed, self._pause, self._again = number, pause, time.monotonic() + pause
            # As text: an exception holds what its frames hold, the old model too.
            log.warning("%s cannot be had now: %s; %s, and it is tried again", what, str(error), goes_on)
            return None
        return model

    def _opened(self, beside: OnnxTeacher, number: int) -> OnnxTeacher:
        if self._copies is None:
            self._copies = tempfile.TemporaryDirectory(prefix="distillog-generations-", ignore_cleanup_errors=True)
        return open_generation(beside, self._lineage, number, Path(self._copies.name), self._open_model)
