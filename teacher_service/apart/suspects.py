"""Orders that may have ended the workers before: labelled in a child process, whose death tells which rows do it.

A child that dies or hangs over some rows is asked for each half of them, down to single ones. A row that ends it alone
is asked for once more when all others were, and right behind samples of other orders: what is no matter of that row,
such as storage that hangs, ends those, too, and blames nobody. If the row ends a child again, it is dead-lettered.
Beside the stages, so that other partitions go on meanwhile.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipeline.datasets.base import Ints
from pipeline.wait import Deadline
from schemas.errors import ChildLost, DecodeError
from schemas.records import Output, Teacher, WorkOrder
from teacher_service.apart.child import Frame
from teacher_service.apart.parent import Child, Death, Stopped
from teacher_service.leases.chain import Job, Parcel
from teacher_service.models.labels import Labels, nothing
from teacher_service.models.session import OnnxTeacher
from teacher_service.parcels import Parcels

log = logging.getLogger(__name__)

MOST_DEADLY = 8
"""rows of one order that may end their process: more are a mount that hangs, or code that is broken, and no samples"""
CONTROLS = 4
"""samples of other orders that are to be well before a row is blamed"""
IDLE = 30.0
"""seconds without a suspicious order after which the child, which holds a model, is ended"""


class _Over(Exception):
    """The lease has ended: the order is another worker's now."""


class Suspects:
    """A thread that labels suspicious orders, one after another; results go to `publish`."""

    def __init__(
        self,
        task: Callable[[OnnxTeacher], Frame],
        model: Callable[[], OnnxTeacher],
        num_samples: int,
        parcels: Parcels,
        publish: Callable[[Parcel], None],
    ) -> None:
        self.failure: BaseException | None = None
        self._task = task
        """what a child is to open; see child.py"""
        self._model = model
        """who labels at present: another generation needs another child"""
        self._num_samples = num_samples
        """of the dataset"""
        self._parcels = parcels
        self._publish = publish
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._in_hand: list[Job] = []
        self._stop = threading.Event()
        # The child dies with the thread that started it: this one lives until `stop`.
        self._thread = threading.Thread(target=self._guard, name="suspects", daemon=True)

    @property
    def partitions(self) -> set[int]:
        """Those of the orders in hand: to find their rows anew elsewhere would cost their attempts again."""
        return {job.chain.partition for job in list(self._in_hand) if not job.chain.over}

    def start(self) -> None:
        """Start the thread; a child is started with the first order."""
        self._thread.start()

    def add(self, job: Job) -> None:
        """Queue a job."""
        self._in_hand.append(job)
        self._jobs.put(job)

    def clear(self) -> list[Job]:
        """Take back what was not begun."""
        jobs = []
        while True:
            try:
                jobs.append(self._jobs.get_nowait())
            except queue.Empty:
                return jobs

    def stop(self) -> None:
        """Give up the order in hand, and end the child; waits 2 s for it."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(2.0)

    def _guard(self) -> None:
        try:
            self._run()
        except Stopped:
            pass
        except BaseException as error:
            self.failure = error

    def _run(self) -> None:
        child: Child | None = None
        model = self._model()
        idle = Deadline(IDLE)
        try:
            while not self._stop.is_set():
                try:
                    job = self._jobs.get(timeout=0.2)
                except queue.Empty:
                    if child is not None and idle.over:
                        child.close()
                    continue
                if child is not None and model is not self._model():
                    child.close()
                    child = None
                if child is None:
                    model = self._model()
                    child = Child(self._task(model), self._stop)
                if not isinstance(job.order, DecodeError) and not job.chain.over:
                    self._label(child, model.teacher, job, job.order)
                self._in_hand.remove(job)
                idle = Deadline(IDLE)
        finally:
            if child is not None:
                child.close()

    def _label(self, child: Child, teacher: Teacher, job: Job, order: WorkOrder) -> None:
        log.warning("order %d: begun before by workers that ended; labelled in a child process", order.sequence)
        try:
            without = nothing(teacher, self._parcels.codec)
            labels, deadly = _Search(child, job, order, without, self._num_samples).label()
        except _Over:
            return
        faults = tuple(sorted([*labels.faults, *deadly.items()]))
        self._publish(self._parcels.of_labels(job, order, replace(labels, faults=faults), len(deadly), teacher))


class _Search:
    """One order, and what became of its rows."""

    def __init__(self, child: Child, job: Job, order: WorkOrder, without: tuple[Output, ...], num_samples: int) -> None:
        self._child = child
        self._num_samples = num_samples
        self._job = job
        self._order = order
        self._nothing = Labels(np.empty(0, np.int64), (), without)
        self._suspected: dict[int, Death] = {}
        """row that ended a child, alone -> how"""
        self._deadly: dict[int, str] = {}
        """row that did so twice -> reason"""

    def label(self) -> tuple[Labels, dict[int, str]]:
        """Label all rows but those that end whatever labels them, which come with their reasons."""
        rows = np.arange(len(self._order.sample_ids))
        whole = self._ask(rows)
        if isinstance(whole, Labels):
            return whole, {}
        pieces = self._search(rows, whole)
        for row, death in self._suspected.items():
            pieces += self._ask_again(row, death)
        # Once more without those rows, in the calls of the model that a worker makes of an order in which they cannot
        # be decoded: its labels are the same to the bit, whichever halves were tried.
        rows = np.setdiff1d(rows, list(self._deadly))
        whole = self._ask(rows)
        if isinstance(whole, Death):
            # They are deadly together only: no label of such an order was ever made in one piece.
            log.warning("order %d: labelled in %d pieces", self._order.sequence, len(pieces))
            whole = _joined(pieces)
        return whole, self._deadly

    def _search(self, rows: Ints, death: Death) -> list[Labels]:
        """Find what is deadly among rows that ended a child; returns the labels of all others."""
        sequence = self._order.sequence
        if len(rows) == 1:
            self._suspected[int(rows[0])] = death
            if len(self._suspected) > MOST_DEADLY:
                raise self._lost(f"more than {MOST_DEADLY} of its samples end whatever labels them ({death.how})")
            return []
        log.warning("order %d: %d rows ended their process (%s): halving them", sequence, len(rows), death.how)
        pieces: list[Labels] = []
        for half in np.array_split(rows, 2):
            labels = self._ask(half)
            pieces += [labels] if isinstance(labels, Labels) else self._search(half, labels)
        return pieces

    def _ask_again(self, row: int, death: Death) -> list[Labels]:
        """Ask a second time for a row that ended a child: its labels, or it is deadly.

        Raises:
            ChildLost: other samples, asked for right before, end a child as well.
        """
        others = self._others()
        if len(others) and isinstance(end := self._ask_for(others), Death):
            raise self._lost(f"one of its samples ends whatever labels it ({death.how}), as others do ({end.how})")
        again = self._ask(np.array([row]))
        if isinstance(again, Labels):
            return [again]
        how = death.how if again.how == death.how else f"{death.how}, then {again.how}"
        self._deadly[row] = f"ended the process that labelled it alone, twice: {how}"
        sequence, sample = self._order.sequence, self._order.sample_ids[row]
        log.warning("order %d: sample %d %s; to the dead letters", sequence, sample, self._deadly[row])
        return []

    def _others(self) -> Ints:
        """Samples of other orders: by chance, so that it is no matter if one of them is deadly, too."""
        some = np.random.default_rng().integers(0, self._num_samples, CONTROLS)
        return np.setdiff1d(some, self._order.sample_ids)

    def _lost(self, what: str) -> ChildLost:
        return ChildLost(
            f"order {self._order.sequence}: {what}: a mount that hangs, or a dataset, view or model whose code is "
            "broken? Nothing of the order was committed; start the worker again when that is mended"
        )

    def _ask_for(self, sample_ids: Ints) -> Labels | Death:
        if self._job.chain.over:
            raise _Over
        return self._child.label(self._order.sequence, sample_ids, self._order.view_seed)

    def _ask(self, rows: Ints) -> Labels | Death:
        """Ask the child for some rows; the answer speaks of rows of the order."""
        if not len(rows):
            return self._nothing
        answer = self._ask_for(self._order.sample_ids[rows])
        if isinstance(answer, Death):
            return answer
        return Labels(rows[answer.kept], tuple((int(rows[row]), why) for row, why in answer.faults), answer.outputs)


def _joined(pieces: list[Labels]) -> Labels:
    """Put labels together, by rising rows."""
    pieces = sorted(pieces, key=lambda piece: min([*piece.kept[:1], *(row for row, _ in piece.faults[:1])], default=-1))
    return Labels.joined(pieces)
