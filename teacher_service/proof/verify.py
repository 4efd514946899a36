"""`distillog verify`: the labels of a teacher, order by order, held against what its model gives here."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.limits import SAME_LABEL
from pipeline.sequence import Sequence as OrderSequence
from pipeline.stored_labels import Damaged, Dropped, StoredLabels
from pipeline.views.check import check_data
from schemas.errors import ConfigError, LabelsDiffer
from teacher_service.models.session import OnnxTeacher
from teacher_service.proof.again import Again, Difference, Piece
from teacher_service.proof.compare import Change
from teacher_service.proof.rows import Choice
from teacher_service.proof.subject import Subject

NAMED = 10
"""Orders that differ, those of the lowest sequences, that are told one by one."""


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """What a user may say about a verification."""

    dataset: str | None = None
    provider: str = "auto"
    threads: int = 0
    loaders: int = 1
    loader_processes: bool = False
    choice: Choice = field(default_factory=Choice)
    limit: float = SAME_LABEL
    """largest change, as a share of an output's range, that is no difference"""
    begin: int = 0
    """the first order"""
    until: int | None = None
    """the order behind the last; None: all"""


@dataclass(slots=True)
class OutputFound:
    """What was found of one output."""

    largest: float = 0.0
    """change, as a share of the output's range"""
    overlap: float | None = None
    """the lowest of a row, of topk"""


@dataclass(slots=True)
class Verdict:
    """What a verification found, so far or at its end."""

    num_orders: int
    """in the range"""
    num_verified: int = 0
    """orders that are there, each of them looked at"""
    num_others: int = 0
    """orders that are there of other generations, with another model than is asked; nothing of them is looked at"""
    num_rows: int = 0
    """rows that were labelled again"""
    num_same: int = 0
    """of them, equal to the bit in all outputs"""
    rows_left_out: int = 0
    """rows of the orders that have no labels"""
    num_differ: int = 0
    """orders"""
    first_missing: int | None = None
    dropped: Dropped = field(default_factory=Dropped)
    outputs: dict[str, OutputFound] = field(default_factory=dict)
    seconds: float = 0.0
    _lowest: list[tuple[int, int, Difference]] = field(default_factory=list)

    @property
    def num_missing(self) -> int:
        """Orders of the range that are not there."""
        return self.num_orders - self.num_verified - self.num_others

    @property
    def differences(self) -> list[Difference]:
        """Those of the lowest sequences, rising."""
        return [each for *_, each in sorted(self._lowest, reverse=True)]

    def add(self, difference: Difference) -> None:
        """Take note of an order that differs."""
        self.num_differ += 1
        # The highest sequence goes first; the count keeps two of one sequence apart.
        heapq.heappush(self._lowest, (-difference.sequence, self.num_differ, difference))
        if len(self._lowest) > NAMED:
            heapq.heappop(self._lowest)

    def count(self, changes: Mapping[str, Change]) -> None:
        """Take note of rows that were compared."""
        same = np.logical_and.reduce([change.same for change in changes.values()])
        self.num_rows += len(same)
        self.num_same += int(same.sum())
        for name, change in changes.items():
            found = self.outputs.setdefault(name, OutputFound())
            found.largest = max(found.largest, float(change.share.max(initial=0.0)))
            if change.overlap is not None:
                found.overlap = float(change.overlap.min(initial=1.0 if found.overlap is None else found.overlap))

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values; what is infinite is null."""
        of_outputs = {name: {**asdict(each), "largest": _finite(each.largest)} for name, each in self.outputs.items()}
        return {
            "orders": self.num_orders,
            "verified": self.num_verified,
            "other_generations": self.num_others,
            "missing": self.num_missing,
            "first_missing": self.first_missing,
            "rows": self.num_rows,
            "same_bits": self.num_same,
            "rows_left_out": self.rows_left_out,
            "outputs": of_outputs,
            "differ": self.num_differ,
            "differences": [{**asdict(each), "share": _finite(each.share)} for each in self.differences],
            "dropped": asdict(self.dropped),
            "seconds": self.seconds,
        }


class Verification:
    """Everything that can be checked before labels are read has been, as before a worker joins."""

    def __init__(self, subject: Subject, model_path: Path, options: VerifyOptions) -> None:
        """Open data and model.

        Raises:
            ManifestMismatch, TeacherRejected, DataUnavailable, ConfigError: as they are named.
        """
        self.subject = subject
        num_orders = OrderSequence.of(subject.manifest).num_orders
        until = num_orders if options.until is None else options.until
        if not 0 <= options.begin < until <= num_orders:
            raise ConfigError(
                f"orders {options.begin} to {until}: {subject.what} has the orders 0 to {num_orders - 1}, give "
                f"a range of them (--from-sequence is the first, --until-sequence, {num_orders} at most, the one "
                "behind the last)"
            )
        self._options = options
        self._fetcher = check_data(subject.manifest, options.dataset, options.loaders, options.loader_processes)
        self._model = OnnxTeacher(model_path, subject.teacher, options.provider, options.threads)
        self.labels: StoredLabels = subject.labels(options.begin, until)
        self.provider = self._model.provider
        self.verdict = Verdict(until - options.begin)

    def run(self, progress: Callable[[Verdict], None] = lambda verdict: None) -> Verdict:
        """Look at each order that is there; `progress` is called with what was found, as it comes.

        Raises:
            BrokerUnavailable, StreamChanged, DataUnavailable, ModelFailed: as their names say.
        """
        began = time.monotonic()
        verdict, again = self.verdict, Again(self.subject.manifest, self._fetcher, self._model)
        teacher = self.subject.teacher
        pieces: list[Piece] = []
        num_rows = 0
        try:
            for stored in self.labels.read():
                if isinstance(stored, Damaged):
                    verdict.num_verified += stored.is_order
                    verdict.add(Difference(stored.sequence, stored.address, "", stored.why, np.inf))
                    continue
                number = stored.value.generation
                was = self.subject.lineage(number).at(number) if number != teacher.generation else teacher
                # What says whose it is and lies is a difference; what is another model's is none of this one's.
                if was and was.sha256 != teacher.sha256 and stored.value.teacher_sha256 == was.sha256:
                    verdict.num_others += 1
                    continue
                verdict.num_verified += 1
                verdict.rows_left_out += len(stored.value.sample_ids) - stored.value.num_kept
                piece = again.piece(stored, self._options.choice, was)
                if isinstance(piece, Difference):
                    verdict.add(piece)
                    continue
                if len(piece.rows):  # none where no row could be labelled
                    pieces.append(piece)
                num_rows += len(piece.rows)
                if num_rows >= again.rows_at_once:
                    self._compare(again, pieces)
                    pieces, num_rows = [], 0
                    verdict.seconds = time.monotonic() - began
                    progress(verdict)
            if num_rows:
                self._compare(again, pieces)
        finally:
            self._fetcher.close()
        verdict.first_missing, verdict.dropped = self.labels.first_missing, self.labels.dropped
        verdict.seconds = time.monotonic() - began
        return verdict

    def _compare(self, again: Again, pieces: Sequence[Piece]) -> None:
        found = again.compare(pieces, self._options.limit)
        for changes in found.changes:
            self.verdict.count(changes)
        for difference in found.differences:
            self.verdict.add(difference)

    def judge(self) -> None:
        """Say that labels differ, or that there were none.

        Raises:
            LabelsDiffer: an order is not what the teacher gives here.
            ConfigError: no order of the range is labelled, so that nothing was shown.
        """
        verdict, what, teacher = self.verdict, self.subject.what, self.subject.teacher.name
        if not verdict.num_verified:
            others = f" by this model, and {verdict.num_others} of other generations" if verdict.num_others else ""
            raise ConfigError(
                f"{what} has no labels of teacher {teacher!r}{others} in these {verdict.num_orders} orders: there is "
                "nothing to verify" + ("" if others else " yet")
            )
        if not verdict.num_differ:
            return
        first = verdict.differences[0]
        raise LabelsDiffer(
            f"{what}: {verdict.num_differ} of {verdict.num_verified} orders of teacher {teacher!r} are not what its "
            f"model gives here; the first is order {first.sequence} "
            f"({first.address}{f', by worker {first.worker}' if first.worker else ''}): {first.what}. "
            f"{self.subject.remedy}"
        )


def _finite(share: float) -> float | None:
    return share if np.isfinite(share) else None
