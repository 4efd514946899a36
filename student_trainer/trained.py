"""A student as its newest checkpoint holds it, ready to evaluate or export; needs neither its stream nor its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from schemas.errors import ConfigError
from schemas.names import did_you_mean
from schemas.records import ViewSpec
from student_trainer.checkpoint import load_checkpoint
from student_trainer.export import Projection
from student_trainer.learning.alignment import Alignment
from student_trainer.learning.average import averaged
from student_trainer.learning.fitting import layer_of
from student_trainer.learning.student_outputs import StudentOutputs
from student_trainer.learning.students import Network, build_student
from student_trainer.learning.weights import load_weights
from student_trainer.run.folder import checkpoint_of, read_run
from student_trainer.run.peer_settings import FIRST
from student_trainer.run.settings import RunSettings, run_settings


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A run's student."""

    model: nn.Module
    """On the CPU, in evaluation mode."""
    outputs: StudentOutputs
    """The same, with its inner values."""
    network: Network
    settings: RunSettings
    projections: dict[str, Projection]
    """Key of the loss -> its layer."""
    view: ViewSpec
    """What it was trained under."""
    step: int


def load_student(run: Path, peer: str = "") -> Trained:
    """Load the newest whole checkpoint of a run folder, which may be training meanwhile: the average, if it has one.

    Args:
        run: the folder.
        peer: which of its [[peers]]; "": the student of [student].

    Raises:
        ConfigError: there is no run in the folder, no such peer, or its student cannot be built.
        CheckpointError: no checkpoint, or none whole; or the student is another one than it was.
    """
    read_run(run)
    checkpoints = run / "checkpoints"
    checkpoint, state = load_checkpoint(checkpoints)
    students = run_settings(checkpoint.settings, str(run)).of_peers()
    if (peer or FIRST) not in students:
        raise ConfigError(f"{run}: there is no peer {peer!r}: {did_you_mean(peer, students)}")
    settings = students[peer or FIRST]
    state = state["peers"][peer] if peer not in ("", FIRST) else state
    network = Network.from_dict(checkpoint.network)
    model = build_student(settings.student, network, settings.train.seed)
    load_weights(model, averaged(state), settings.student.name, checkpoint_of(checkpoints, checkpoint.step))
    on = {loss.title: loss.on for loss in settings.losses}
    aligned = {key: tuple(Alignment(**each) for each in made) for key, made in checkpoint.aligned.items()}
    projections = {
        key: Projection(on[key], _layer(weights), aligned.get(key, ())) for key, weights in state["projections"].items()
    }
    outputs = StudentOutputs(model.eval(), settings.student.outputs)
    view = ViewSpec(**checkpoint.source["view"])
    return Trained(model, outputs, network, settings, projections, view, checkpoint.step)


def _layer(weights: Mapping[str, Tensor]) -> nn.Module:
    wide, narrow, *kernel = weights["weight"].shape
    layer = layer_of("conv" if kernel else "linear", (narrow,), (wide,))
    layer.load_state_dict(weights)
    return layer
