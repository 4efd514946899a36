"""A process of a run that is not rank 0: it trains on the rows that are dealt to it, and writes nothing."""

from __future__ import annotations

import json
import logging
import threading
from functools import partial
from pathlib import Path

from pipeline.stop_signals import on_stop
from schemas.errors import PeerLost
from student_trainer.learning.peers import peers_of
from student_trainer.learning.students import Network
from student_trainer.learning.terms import resolve
from student_trainer.preparation import (
    choose_device,
    enough_memory,
    first_ids,
    keep_freed_memory,
    set_threads,
    view_fields,
)
from student_trainer.processes.briefing import Told, briefed, state_of
from student_trainer.processes.deal import Dealt
from student_trainer.processes.meeting import assemble, leave, meet
from student_trainer.processes.world import World, started_by_torchrun
from student_trainer.run.settings import run_settings
from student_trainer.supply import supply_dealt

logger = logging.getLogger(__name__)

_LEAVING = 10.0
"""Seconds for which rank 0's last word is waited for: it says it before it ends."""


def follow(world: World) -> None:
    """Train with rank 0 until the run ends.

    Raises:
        PeerLost: rank 0 cannot start the run, another process cannot go on, or is gone.
        DistillogError: the dataset here is another one, or cannot be read; the others then hear of it.
    """
    dealt = Dealt(world)
    try:
        briefing = briefed(world)
        settings = run_settings(json.loads(briefing.settings), "rank 0's settings")
        set_threads(settings.train.threads)
        keep_freed_memory()
        device = choose_device(settings)
        known = Told(settings, briefing)
        network = Network.from_dict(json.loads(briefing.network))
        with enough_memory(settings.student.name):
            trainee = peers_of(
                settings,
                network,
                briefing.total_steps,
                briefing.labelled_fraction,
                device,
                partial(
                    resolve,
                    settings,
                    known.targets,
                    known.has_labels,
                    lambda: view_fields(settings, known),
                    mixes=known.fetcher.mixes,
                ),
                briefing.label_classes,
                world,
                known.sequence.num_samples,
            )
        trainee.load(state_of(briefing), Path("rank 0's state"))
        ready = supply_dealt(
            dealt,
            known.fetcher,
            known.targets,
            first_ids(known),
            settings.student.size,
            settings.train.prefetch,
            device.type == "cuda",
            trainee.labels,
        )
        assemble(world)
    except PeerLost:
        raise  # whoever waits for this process hears of that by itself
    except Exception as error:
        _give_up(world, dealt, error)
        raise
    stop = threading.Event()
    with ready, on_stop(stop.set, insists=not started_by_torchrun()):
        try:
            for step in range(briefing.step, briefing.total_steps):
                try:
                    item = None if stop.is_set() else ready.get(stop.is_set)
                except Exception as error:
                    _give_up(world, dealt, error)
                    raise
                met = meet(world, item and item[0], stop.is_set(), list(trainee.labels), settings.train.batch_size)
                if met.batch is None:
                    break
                trainee.take_step(met.batch, step)
        finally:
            dealt.drop()
    dealt.wait(_LEAVING)


def _give_up(world: World, dealt: Dealt, why: Exception) -> None:
    """Let the others hear why this process cannot go on, as soon as they come to the next step."""
    logger.warning("rank %d cannot go on, and waits for the others to hear of it: %s", world.rank, why)
    dealt.drop()
    leave(world, why)
    dealt.wait(_LEAVING)
