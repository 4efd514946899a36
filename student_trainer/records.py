"""What a run writes and says while it trains: metrics, a trace, evaluations, checkpoints, its state."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schemas.errors import CannotWrite, DistillogError, NotFinite, RunRemoved
from student_trainer.batches import Batch, Cut
from student_trainer.checkpoint import Checkpoint, save_checkpoint
from student_trainer.evaluate import evaluate
from student_trainer.learning.guard import looks_at_once
from student_trainer.learning.peers import Peers
from student_trainer.learning.step import Step
from student_trainer.prefetch import Prefetcher
from student_trainer.preparation import Evaluation
from student_trainer.publishing.publishing import Publishing
from student_trainer.run.folder import RunFolder
from student_trainer.run.json_lines import JsonLines
from student_trainer.run.settings import RunSettings
from student_trainer.sources.base import Cursor, Reporter

logger = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]

_NAMED = 16
"""Sample IDs that an error names at most."""


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    """A step that nobody has looked at yet."""

    step: int
    """Steps taken before it."""
    cursor: Cursor
    """Where its batch starts."""
    behind: Cursor
    """Where the next one does."""
    sample_ids: Tensor
    """[B] int64"""
    cuts: tuple[Cut, ...]
    undecodable_rows: int
    """Rows of weight 0."""
    result: Step


class Records:
    """A run's records. Whoever reads the student, to log, evaluate or save it, first looks whether a step was refused.

    Every method but `say` and `rescue` may raise CannotWrite, and NotFinite once a step was refused; all that write,
    RunRemoved.
    """

    def __init__(
        self,
        settings: RunSettings,
        folder: RunFolder,
        trainee: Peers,
        checkpoint: Checkpoint,
        evaluation: Evaluation | None,
        reporter: Reporter | None,
        progress: Progress | None,
        total_steps: int,
        publishing: Publishing | None = None,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._trainee = trainee
        self._checkpoint = checkpoint
        self._evaluation = evaluation
        self._reporter = reporter
        self._progress = progress
        self._total_steps = total_steps
        self._publishing = publishing
        self._metrics = JsonLines(folder.metrics, checkpoint.metrics_bytes)
        self._trace = JsonLines(folder.trace, checkpoint.trace_bytes) if settings.train.trace else None
        self._last = (checkpoint.step, time.perf_counter())
        self._taken: list[_Taken] = []
        self.undecodable_rows = checkpoint.undecodable_rows
        """Rows of weight 0 that the run has come by so far."""

    def say(self, state: str) -> None:
        """Tell the reporter what the run does."""
        if self._reporter is not None:
            self._reporter.state(state)

    def took(self, step: int, cursor: Cursor, behind: Cursor, batch: Batch, result: Step) -> None:
        """Take note of a step, the batch of which lies between two cursors."""
        self._folder.keep()
        undecodable = batch.undecodable_rows
        if undecodable is None:
            undecodable = 0 if batch.weights is None else int((batch.weights == 0).sum())
        rows = batch.whole or batch
        self._taken.append(_Taken(step, cursor, behind, rows.sample_ids, rows.cuts, undecodable, result))
        if looks_at_once(result.loss.device):
            self._look()

    def _look(self) -> None:
        """Look at the steps since the last look.

        Raises:
            NotFinite: one was refused, or under fp16 too many; a checkpoint of before it is on disk.
        """
        taken, self._taken = self._taken, []
        if not taken:
            return
        # One is asked as it is: on the CPU each step is looked at, and stacking costs a tiny student's step a tenth.
        alone = len(taken) == 1
        flags = [taken[0].result.refused.item()] if alone else torch.stack([r.result.refused for r in taken]).tolist()
        refused = [each for each, flag in zip(taken, flags, strict=True) if flag]
        for each in taken:
            if refused and each.step >= refused[0].step and not self._trainee.skips:
                break  # nothing was learned from there on; under fp16 steps are skipped alone, and count
            self._write_trace(each)
            self.undecodable_rows += each.undecodable_rows
        if not refused:
            return
        bad, step, cursor, cause = refused[0], refused[0].step, refused[0].cursor, ""
        if self._trainee.skips:
            scale = self._trainee.lost_scale()
            if scale is None:
                return
            # Each was skipped alone: the weights are those of now.
            bad, step, cursor = refused[-1], taken[-1].step + 1, taken[-1].behind
            cause = f"; steps overflow again and again, fp16's gradient scale fell to {scale:.1g}: take bf16"
        place = f"no checkpoint of step {step} could be written"
        if not self._trainee.is_finite():
            place = "the weights were not finite before it, so the checkpoints on disk are older"
        else:
            with _warned():
                # One more than usual is kept: whoever looks into it may want to go back further.
                saved = self._save(step, cursor, self._settings.checkpoint.keep + 1)
                place = f"{saved.name} is of before it"
        raise NotFinite(
            f"{self._folder.path}: step {bad.step + 1}, pass {bad.cursor.pass_number}, sequence "
            f"{bad.cursor.sequence}: {_what(bad)}; it was not taken, {place}{cause}; "
            "look at these samples, or start another run with a lower learning rate"
        )

    def save(self, step: int, cursor: Cursor) -> None:
        """Write a checkpoint of a student that can be gone on with.

        Raises:
            NotFinite: its weights are not finite.
        """
        self._look()
        if not self._trainee.is_finite():
            raise NotFinite(
                f"{self._folder.path}: the weights are not finite after step {step}, at sequence {cursor.sequence}; "
                "the checkpoints on disk are of before; start another run with a lower learning rate"
            )
        self._save(step, cursor, self._settings.checkpoint.keep)

    def rescue(self, step: int, cursor: Cursor) -> None:
        """Write a checkpoint while the run fails; that it cannot be written is only a warning then."""
        with _warned():
            self.save(step, cursor)

    def _save(self, step: int, cursor: Cursor, keep: int) -> Path:
        """Write a checkpoint, then report it, in this order: a report of what a crash forgets would be a lie."""
        self._folder.refuse_removed(now=True)
        checkpoint = replace(
            self._checkpoint,
            step=step,
            cursor=cursor.as_dict(),
            metrics_bytes=self._metrics.sync(),
            trace_bytes=self._trace.sync() if self._trace else self._checkpoint.trace_bytes,
            undecodable_rows=self.undecodable_rows,
            generation=self._generation,
        )
        saved = save_checkpoint(self._folder.checkpoints, checkpoint, self._trainee.state(), keep)
        self._folder.keep()
        if self._reporter is not None:
            self._reporter.checkpointed(cursor)
        return saved

    @property
    def _generation(self) -> int:
        return self._publishing.done if self._publishing else self._checkpoint.generation

    def reach(self, step: int, cursor: Cursor, stopped: Callable[[], bool]) -> None:
        """Publish, or compare, the generations that are due at a cursor; raises as `Publishing.reach`, too.

        Before one is published the student is saved: whoever resumes has these weights, and need not come by them
        again, which a GPU does not to the bit.
        """
        if self._publishing is None or self._publishing.due(cursor) <= self._generation:
            return
        self._look()
        if self._publishing.publishes:
            self.save(step, cursor)
        self._publishing.reach(step, cursor, self._trainee, stopped)

    def log(self, step: int, cursor: Cursor, result: Step, ready: Prefetcher[Any]) -> None:
        """Write a line of metrics: this step's losses, and how fast the last steps were."""
        self._look()
        (last_step, last_time), now = self._last, time.perf_counter()
        self._last = (step, now)
        batch_size = self._settings.train.batch_size
        self._write(
            {
                "step": step,
                "total_steps": self._total_steps,
                "pass": cursor.pass_number,
                "sequence": cursor.sequence,
                "lr": self._trainee.lr(step - 1),
                "loss": _number(result.loss),
                "losses": {name: _number(rows.mean()) for name, rows in result.rows.items()},
                **({} if result.gradient_norm is None else {"gradient_norm": _number(result.gradient_norm)}),
                **({"generation": self._generation} if self._publishing else {}),
                **({"too_old_rows": cursor.too_old} if self._settings.bounds_age else {}),
                "timing": {
                    "time": time.time(),
                    "samples_per_s": (step - last_step) * batch_size / (now - last_time),
                    "views_per_s": ready.produced * batch_size / ready.busy if ready.busy else 0.0,
                    "waited_s": ready.waited,
                    "longest_wait_s": ready.longest_wait,
                    "batches_ready": ready.ready,
                },
            }
        )

    def evaluate(self, step: int, cursor: Cursor) -> dict[str, float]:
        """Evaluate each student where there is something to evaluate on; should that fail, save them first."""
        if self._evaluation is None:
            return {}
        self._look()
        self.say("evaluating")
        try:
            scores: dict[str, float] = {}
            for name, trainee in self._trainee.each.items():
                with trainee.averaged():
                    found = evaluate(
                        trainee.outputs,
                        self._evaluation.fetcher,
                        self._settings.evaluation.batch_size,
                        metrics=self._evaluation.metrics,
                        fields=trainee.fields,
                        size=self._settings.student.size,
                    )
                first = trainee is self._trainee.first
                scores |= {metric if first else f"{name}/{metric}": value for metric, value in found.items()}
        except DistillogError:
            self.rescue(step, cursor)
            raise
        of = {} if self._settings.train.ema is None else {"ema": self._settings.train.ema}
        self._write({"step": step, "evaluation": scores} | of)
        self.say("training")
        return scores

    def close(self, state: str) -> None:
        """Write the run's last state; where it failed, that even this cannot be written is only a warning."""
        if state in ("failed", "starved"):
            with _warned(), suppress(RunRemoved):
                self._folder.set_state(state)
        else:
            self._folder.set_state(state)
        self._metrics.close()
        if self._trace is not None:
            self._trace.close()
        self.say(state)

    def _write_trace(self, taken: _Taken) -> None:
        if self._trace is not None:
            orders = [[cut.pass_number, cut.sequence, cut.row, cut.num_rows] for cut in taken.cuts]
            self._trace.write({"step": taken.step + 1, "orders": orders, "samples": taken.sample_ids.tolist()})

    def _write(self, line: dict[str, Any]) -> None:
        self._metrics.write(line)
        if self._progress is not None:
            self._progress(line)


@contextmanager
def _warned() -> Iterator[None]:
    """Say what cannot be written where another error is on its way, which says more."""
    try:
        yield
    except CannotWrite as error:
        logger.warning("%s", error)


def _number(value: Tensor) -> float | None:
    """The number for JSON; null where fp16 overflowed."""
    number: float = value.item()
    return number if math.isfinite(number) else None


def _what(bad: _Taken) -> str:
    """What was not finite, and the samples of it: of a loss the rows' own, of a gradient all of the batch."""
    loss, rows = bad.result.loss.item(), bad.result.bad_rows().cpu()
    ids = (bad.sample_ids[rows] if rows.any() else bad.sample_ids).tolist()
    gradient = f"the gradient or a running statistic is not finite, with a loss of {loss:.4g},"
    what = gradient if math.isfinite(loss) else f"the loss is {loss}"
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"{what} on samples {', '.join(map(str, ids[:_NAMED]))}{more} of a batch of {len(rows)}"
