"""The training loop: take a batch, step, maybe log, maybe evaluate, maybe checkpoint. One loop for every source."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from pipeline.stop_signals import on_stop
from schemas.errors import CheckpointError, ConfigError, DataUnavailable, PeerLost, RunLocked, SequenceGap, Starved
from student_trainer.checkpoint import Checkpoint, check_resume, has_checkpoints, load_checkpoint, machine
from student_trainer.learning.alignment import alignments
from student_trainer.learning.first_weights import begin_with
from student_trainer.learning.losses import need_labels
from student_trainer.learning.peers import peers_of
from student_trainer.learning.students import num_parameters
from student_trainer.learning.terms import resolve
from student_trainer.learning.trainee import weights_sha256
from student_trainer.preparation import (
    choose_device,
    enough_memory,
    inspect_network,
    plan,
    prepare_evaluation,
    set_threads,
    view_fields,
)
from student_trainer.processes.briefing import brief
from student_trainer.processes.meeting import assemble, meet, telling
from student_trainer.processes.world import ALONE, World, started_by_torchrun
from student_trainer.publishing.preparing import prepare_publishing
from student_trainer.records import Progress, Records
from student_trainer.run.folder import RunFolder, checkpoint_of
from student_trainer.run.settings import RunSettings
from student_trainer.sources.base import Cursor, OrderSource, Reporter
from student_trainer.supply import supply

logger = logging.getLogger(__name__)

_MENDED_ELSEWHERE = (DataUnavailable, PeerLost, RunLocked, SequenceGap, Starved)
"""Errors that are no fault of the run or its file: they ask for a resume later, so the run stays."""


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
    too_old_rows: int
    """Rows left out so far, since their labels were too old; those before a resume counted."""
    undecodable_rows: int
    """Rows that counted for nothing, since their samples cannot be decoded; those before a resume counted."""
    generations: dict[str, list[int]] | None
    """What became of the generations that this process came by: published, compared, missing; None: no [publish]."""
    first_wait_s: float
    """Seconds until the first batch came."""
    longest_wait_s: float
    """Longest wait for a batch after that."""
    waited_s: float
    """All waits of this process together."""
    seconds: float
    """From this process's first batch to its last, evaluations and checkpoints counted."""
    views_per_s: float
    """Rows made ready per CPU second of the background threads."""
    model: nn.Module
    peers: dict[str, nn.Module]
    """Name -> each other student that learned with it."""


def train(
    settings: RunSettings,
    folder: RunFolder,
    source: OrderSource,
    reporter: Reporter | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    say: Callable[[str], object] | None = None,
    world: World = ALONE,
) -> TrainResult:
    """Train a student to the end of its steps, or until SIGTERM or Ctrl-C; a checkpoint ends it either way.

    Args:
        settings: the run file.
        folder: locked by the caller.
        source: closed when this returns or raises.
        reporter: is told where the run stands, before every step and after the last.
        progress: is given each line of metrics: step, total_steps, loss, lr, timing; or step, evaluation.
        resume: go on from the newest whole checkpoint; at step 0 if the run came to none.
        say: is told, in a line, what begins.
        world: the processes that learn together, of which this one is rank 0; the others `follow`.

    Raises:
        ConfigError: what the run file asks for cannot be had, or is longer than its stream.
        CheckpointError: no checkpoint is whole, or the run, or the student that its settings make, differs.
        CannotWrite: the disk refuses.
        RunRemoved: the folder was removed, moved or replaced.
        NotFinite: a loss, a gradient or the weights are not finite; that step was not taken.
        DistillogError: whatever the source raises; what was learned until then is in a checkpoint.
    """
    try:
        set_threads(settings.train.threads)
        found = None
        if has_checkpoints(folder.checkpoints):
            if not resume:
                raise ConfigError(f"{folder.path}: holds checkpoints; resume the run, or give another name")
            found = load_checkpoint(folder.checkpoints)
            settings = _as_begun(settings, found[0].settings)
        described, here = {}, machine(settings.train.threads, world.size)
        if found:  # first: what differs may be why a student cannot be built
            described = source.describe(found[0].source)
            check_resume(found[0], settings.as_dict(), described, here, folder.path)
        device = choose_device(settings)
        total_steps, dropped_rows = plan(settings, source)
        with enough_memory(settings.student.name):
            terms_of = partial(
                resolve,
                settings,
                source.targets,
                source.has_labels,
                lambda: view_fields(settings, source),
                mixes=source.fetcher.mixes,
            )
            terms = terms_of([peer.name for peer in settings.peers])
            fraction = source.labelled_fraction if need_labels(settings) else 1.0
            network = inspect_network(settings, source)
            trainee = peers_of(
                settings,
                network,
                total_steps,
                fraction,
                device,
                terms_of,
                source.label_classes,
                world,
                source.sequence.num_samples,
            )
            # What each of several students gives has to be what is measured.
            evaluation, *_ = [
                prepare_evaluation(each, source, network, device) for each in settings.of_peers().values()
            ]
        beginning = ""
        if found is None:
            if resume:
                folder.refuse_emptied()
                logger.warning("%s: there is no checkpoint; the run begins at step 0", folder.path)
            if settings.student.weights is not None:
                first = begin_with(trainee.model, settings.student.weights, settings.student.frozen, network)
                beginning = first.text
                if not settings.student.weights.sha256:
                    settings = replace(settings, student=settings.student.pinned(first.sha256))
                    folder.pin(settings)
        checkpoint = Checkpoint(
            step=0,
            cursor=Cursor.start().as_dict(),
            metrics_bytes=0,
            settings=settings.as_dict(),
            settings_sha256=settings.sha256(),
            source=described or source.describe(),
            network=network.as_dict(),
            machine=here,
            aligned={
                term.key: [each.as_dict() for each in dict.fromkeys(alignments(term.specs).values())]
                for term in terms
                if term.projection
            },
        )
        if found:
            saved, tensors = found
            if saved.step > total_steps:
                raise CheckpointError(
                    f"{folder.path}: has taken {saved.step} steps, more than the {total_steps} that [train] steps asks "
                    "for now: give as many or more"
                )
            trainee.load(tensors, checkpoint_of(folder.checkpoints, saved.step))
            checkpoint = replace(
                checkpoint,
                step=saved.step,
                cursor=saved.cursor,
                metrics_bytes=saved.metrics_bytes,
                trace_bytes=saved.trace_bytes,
                undecodable_rows=saved.undecodable_rows,
                generation=saved.generation,
            )
        begins = say or logger.info
        publishing = prepare_publishing(
            settings, source, folder, trainee, network, checkpoint.generation, found is None, begins
        )
        brief(world, settings, source, fraction, network, total_steps, checkpoint.step, trainee.state())
        records = Records(
            settings, folder, trainee, checkpoint, evaluation, reporter, progress, total_steps, publishing
        )
        assemble(world)
        folder.set_state("training")
        if say is not None:
            size, name = num_parameters(trainee.model), settings.student.name
            say(f"{name} of {size:,} parameters, step {checkpoint.step:,} of {total_steps:,}, on {device.type}")
            for peer, model in trainee.models.items():
                say(f"with {peer} of {num_parameters(model):,} parameters")
            if beginning:
                say(f"{name} {beginning}")
    except BaseException:
        source.close()
        raise

    step, cursor = checkpoint.step, checkpoint.at()
    supplied = supply(
        source,
        cursor,
        settings.train.batch_size,
        settings.student.size,
        settings.train.prefetch,
        pin=device.type == "cuda",
        labels=trainee.labels,
        world=world,
    )

    def interrupted() -> bool:
        """Asked while no batch lies ready: a starving run, too, hears that its folder or its name is another's."""
        folder.refuse_removed()
        if reporter is not None:
            reporter.trained(cursor)
        return stopping()

    if reporter is not None and checkpoint.step:
        reporter.checkpointed(cursor)  # by the process before this one
    records.say("training")
    state, stopped = "failed", False
    stop = threading.Event()
    stopping = stop.is_set
    # torchrun hands SIGTERM on, also where the process got one itself; it kills after 30 s.
    with supplied as ready, on_stop(stop.set, insists=not started_by_torchrun()):
        begun = time.perf_counter()
        try:
            with telling(world, source.close):
                records.reach(step, cursor, stopping)  # what a process before this one was to publish, and did not
            while step < total_steps and not stopped:
                try:
                    with telling(world, source.close):
                        folder.refuse_removed()
                        if reporter is not None:
                            reporter.trained(cursor)
                        item = None if stopping() else ready.get(interrupted)
                    if item is None:
                        source.close()  # the others wait for their rows, too
                    batch, stopped = meet(
                        world, item and item[0], stopping(), list(trainee.labels), settings.train.batch_size
                    )
                except Exception as error:
                    if step:
                        records.rescue(step, cursor)  # what was learned until now is whole
                    elif isinstance(error, _MENDED_ELSEWHERE):
                        folder.keep()  # nothing to save, but a resume begins again
                    raise
                if batch is None or item is None:
                    break
                next_cursor = item[1]

                try:
                    result = trainee.take_step(batch, step)
                except PeerLost:  # before the gradients of all were there, so nothing of this step was learned
                    records.rescue(step, cursor)
                    raise
                with telling(world, source.close):
                    records.took(step, cursor, next_cursor, batch, result)
                    step, cursor = step + 1, next_cursor
                    records.reach(step, cursor, stopping)
                    if step % settings.train.log_every == 0 or step == total_steps:
                        records.log(step, cursor, result, ready)
                    if step < total_steps and _due(step, settings.evaluation.every):
                        records.evaluate(step, cursor)
                    if step < total_steps and _due(step, settings.checkpoint.every):
                        records.save(step, cursor)

            if reporter is not None:
                reporter.trained(cursor)
            finished = not ((stopped or stopping()) and step < total_steps)
            too_old = cursor.too_old
            if finished and step < total_steps:
                too_old = checkpoint.at().too_old + source.too_old  # no batch, so no cursor, lies behind the last ones
                logger.warning(
                    "%s: the source ended at step %d of %d; it left rows out%s",
                    folder.path,
                    step,
                    total_steps,
                    f", {too_old:,} of them since their labels were older than max_age" if too_old else "",
                )
            records.save(step, cursor)
            scores = records.evaluate(step, cursor) if finished else {}
            state = "done" if finished else "stopped"
        except Starved:
            state = "starved"
            raise
        finally:
            records.close(state)
    trainee.settle()
    seconds = time.perf_counter() - begun - ready.first_wait
    views_per_s = ready.produced * settings.train.batch_size / ready.busy if ready.busy else 0.0
    generations = None if publishing is None else publishing.came_of()
    return TrainResult(
        step, finished, weights_sha256(trainee.model), cursor, scores, dropped_rows, too_old,
        records.undecodable_rows, generations, ready.first_wait, ready.longest_wait, ready.waited, seconds, views_per_s,
        trainee.model, trainee.models,
    )  # fmt: skip


def _as_begun(settings: RunSettings, saved: Mapping[str, Any]) -> RunSettings:
    """Return the same with the first weights that the checkpoint's settings say, unless these say some themselves."""
    weights = settings.student.weights
    if weights is None or weights.sha256:
        return settings
    sha256 = saved["student"].get("weights", {}).get("sha256", "")
    return replace(settings, student=settings.student.pinned(sha256))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
