"""The training loop: take a batch, step, maybe log, maybe evaluate, maybe checkpoint. One loop for every source."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pipeline.stop_signals import on_stop
from pipeline.views.fetch import Fetcher
from schemas.errors import ConfigError, Starved
from student_trainer.batches import Batch, batches
from student_trainer.checkpoint import (
    Checkpoint,
    check_resume,
    has_checkpoints,
    load_checkpoint,
    machine,
    save_checkpoint,
)
from student_trainer.evaluate import evaluate
from student_trainer.losses import check_losses
from student_trainer.prefetch import Prefetcher
from student_trainer.preparation import choose_device, evaluation_fetcher, inspect_network, plan, set_threads
from student_trainer.run_folder import Metrics, RunFolder
from student_trainer.settings import RunSettings
from student_trainer.source import Cursor, OrderSource, Reporter
from student_trainer.trainee import Trainee, weights_sha256

logger = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, eq=False)
class TrainResult:
    """What a run came to."""

    step: int
    """Steps taken, those before a resume counted."""
    finished: bool
    """False where a signal ended it early; it can be resumed."""
    weights_sha256: str
    cursor: Cursor
    metrics: dict[str, float]
    """The last evaluation (`evaluate`); {} without [evaluation]."""
    dropped_rows: int
    """Rows left at the end of the last pass that fill no batch."""
    first_wait_s: float
    """Seconds until the first batch came."""
    longest_wait_s: float
    """Longest wait for a batch after that."""
    waited_s: float
    """All waits of this process together."""
    seconds: float
    """From this process's first batch to its last, evaluations and checkpoints counted."""
    views_per_s: float
    """Rows made ready per CPU second of the background thread."""
    model: nn.Module


def train(
    settings: RunSettings,
    folder: RunFolder,
    source: OrderSource,
    reporter: Reporter | None = None,
    progress: Progress | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a student to the end of its steps, or until SIGTERM or Ctrl-C; a checkpoint ends it either way.

    Args:
        settings: the run file.
        folder: locked by the caller.
        source: closed when this returns or raises.
        reporter: is told where the run stands, before every step and after the last.
        progress: is given each line of metrics: step, total_steps, loss, lr, timing; or step, evaluation.
        resume: go on from the newest whole checkpoint; at step 0 if none was written yet.

    Raises:
        ConfigError: what the run file asks for cannot be had, or is longer than its stream.
        CheckpointError: no checkpoint is whole, or the run differs.
        DistillogError: whatever the source raises, after a checkpoint.
    """
    try:
        set_threads(settings.train.threads)
        device = choose_device(settings)
        total_steps, dropped_rows = plan(settings, source)
        check_losses(settings, source.available, source.temperatures)
        network = inspect_network(settings, source)
        evaluation = evaluation_fetcher(settings, source, network)
        trainee = Trainee(settings, network, total_steps, source.labelled_fraction, device)
        checkpoint = Checkpoint(
            step=0,
            cursor=Cursor.start(source.num_teachers, source.sequence.partitions).as_dict(),
            metrics_bytes=0,
            settings=settings.as_dict(),
            settings_sha256=settings.sha256(),
            source=source.describe(),
            network=network.as_dict(),
            machine=machine(settings.train.threads),
        )
        if has_checkpoints(folder.checkpoints):
            if not resume:
                raise ConfigError(f"{folder.path}: holds checkpoints; resume the run, or give another name")
            saved, tensors = load_checkpoint(folder.checkpoints)
            check_resume(saved, checkpoint, folder.path)
            trainee.load(tensors)
            checkpoint = replace(checkpoint, step=saved.step, cursor=saved.cursor, metrics_bytes=saved.metrics_bytes)
            logger.info("%s: resumes at step %d of %d", folder.path, saved.step, total_steps)
        elif resume:
            logger.warning("%s: no checkpoint was written yet; the run begins at step 0", folder.path)
        records = _Records(settings, folder, trainee, checkpoint, evaluation, reporter, progress, total_steps)
    except BaseException:
        source.close()
        raise

    step, cursor = checkpoint.step, checkpoint.at()
    start = cursor

    def make() -> Iterator[tuple[Batch, Cursor]]:
        sequence, pin = source.sequence, device.type == "cuda"
        orders = source.orders(start)
        return batches(orders, settings.train.batch_size, start, sequence.partitions, sequence.num_orders, pin)

    def interrupted() -> bool:
        """Asked while no batch lies ready, so that a starving run too hears of another process that trains it."""
        if reporter is not None:
            reporter.trained(cursor)
        return stopping()

    folder.set_state("training")
    records.say("training")
    state = "failed"
    stop = threading.Event()
    stopping = stop.is_set
    with Prefetcher(make, settings.train.prefetch, source.close) as ready, on_stop(stop.set):
        begun = time.perf_counter()
        try:
            while step < total_steps and not stopping():
                try:
                    if reporter is not None:
                        reporter.trained(cursor)
                    item = ready.get(interrupted)
                except Exception as error:
                    records.save(step, cursor)  # what was learned until now is whole
                    state = "starved" if isinstance(error, Starved) else "failed"
                    raise
                if item is None:
                    break
                batch, next_cursor = item

                loss, terms = trainee.take_step(batch, step)
                step, cursor = step + 1, next_cursor

                if step % settings.train.log_every == 0 or step == total_steps:
                    records.log(step, cursor, loss, terms, ready)
                if step < total_steps and _due(step, settings.evaluation.every):
                    records.evaluate(step)
                if step < total_steps and _due(step, settings.checkpoint.every):
                    records.save(step, cursor)

            if reporter is not None:
                reporter.trained(cursor)
            finished = not (stopping() and step < total_steps)
            if finished and step < total_steps:
                logger.warning(
                    "%s: the source ended at step %d of %d; it left rows out", folder.path, step, total_steps
                )
            records.save(step, cursor)
            scores = records.evaluate(step) if finished else {}
            state = "done" if finished else "stopped"
        finally:
            records.close(state)
    seconds = time.perf_counter() - begun - ready.first_wait
    views_per_s = ready.produced * settings.train.batch_size / ready.busy if ready.busy else 0.0
    return TrainResult(
        step, finished, weights_sha256(trainee.model), cursor, scores, dropped_rows,
        ready.first_wait, ready.longest_wait, ready.waited, seconds, views_per_s, trainee.model,
    )  # fmt: skip


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _Records:
    """What a run writes and says while it trains: metrics, evaluations, checkpoints, its state."""

    def __init__(
        self,
        settings: RunSettings,
        folder: RunFolder,
        trainee: Trainee,
        checkpoint: Checkpoint,
        evaluation: Fetcher | None,
        reporter: Reporter | None,
        progress: Progress | None,
        total_steps: int,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._trainee = trainee
        self._checkpoint = checkpoint
        self._evaluation = evaluation
        self._reporter = reporter
        self._progress = progress
        self._total_steps = total_steps
        self._metrics = Metrics(folder.metrics, checkpoint.metrics_bytes)
        self._last = (checkpoint.step, time.perf_counter())

    def say(self, state: str) -> None:
        """Tell the reporter what the run does."""
        if self._reporter is not None:
            self._reporter.state(state)

    def save(self, step: int, cursor: Cursor) -> None:
        """Write a checkpoint, then report it, in this order: a report of what a crash forgets would be a lie."""
        num_bytes = self._metrics.sync()
        checkpoint = replace(self._checkpoint, step=step, cursor=cursor.as_dict(), metrics_bytes=num_bytes)
        save_checkpoint(self._folder.checkpoints, checkpoint, self._trainee.state(), self._settings.checkpoint.keep)
        if self._reporter is not None:
            self._reporter.checkpointed(cursor)

    def log(self, step: int, cursor: Cursor, loss: Any, terms: dict[str, Any], ready: Prefetcher[Any]) -> None:
        """Write a line of metrics: this step's losses, and how fast the last steps were."""
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
                "loss": loss.item(),
                "losses": {name: term.item() for name, term in terms.items()},
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

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluate the student where there is something to evaluate on."""
        if self._evaluation is None:
            return {}
        self.say("evaluating")
        size, batch_size = self._settings.student.size, self._settings.evaluation.batch_size
        scores = evaluate(self._trainee.model, self._evaluation, batch_size, field=self._trainee.field, size=size)
        self._write({"step": step, "evaluation": scores})
        self.say("training")
        return scores

    def close(self, state: str) -> None:
        """Write the run's last state."""
        self._metrics.sync()
        self._metrics.close()
        self._folder.set_state(state)
        self.say(state)

    def _write(self, line: dict[str, Any]) -> None:
        self._metrics.write(line)
        if self._progress is not None:
            self._progress(line)
