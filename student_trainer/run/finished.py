"""A run that is asked for again: whether it is still what its run file, and its stream, would make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.kafka.settings import KafkaSettings
from pipeline.streams import open_stream
from schemas.errors import CheckpointError, StreamNotFound
from student_trainer.checkpoint import another_stream, has_checkpoints, load_checkpoint, ways_on
from student_trainer.run.edits import Edit, edits
from student_trainer.run.folder import read_settings
from student_trainer.run.settings import RunSettings

_LONGER = ("train.steps", "train.passes")
"""Settings that a run under way may take, and that ask a finished one for another student."""


def check_finished(path: Path, asked: RunSettings, kafka: Callable[[], KafkaSettings]) -> list[Edit]:
    """Compare a finished run with its run file and its stream as they are now.

    A stream that is gone is no other one: its students outlive it.

    Args:
        path: the run's folder.
        asked: the run file.
        kafka: asked for the cluster only where the run is of a stream.

    Returns:
        What differs in the run file and has no part in the student.

    Raises:
        CheckpointError: another student would come of them; it names what differs.
        BrokerUnavailable: no answer from Kafka.
    """
    saved = load_checkpoint(path / "checkpoints")[0] if has_checkpoints(path / "checkpoints") else None
    found = edits(saved.settings if saved else read_settings(path).as_dict(), asked.placed().as_dict())
    found = _said(found)
    if another := [str(each) for each in found if not each.allowed or each.key in _LONGER]:
        raise CheckpointError(f"{path}: is trained, but with other settings: {'; '.join(another)}; {ways_on(path)}")
    if saved and asked.source == "stream":
        try:
            stream_id = open_stream(kafka(), asked.data.stream).manifest.stream_id
        except StreamNotFound:
            return found
        if text := another_stream(saved.source, {"stream": asked.data.stream, "stream_id": stream_id}):
            raise CheckpointError(f"{path}: is trained, but on {text}; {ways_on(path)}")
    return found


def check_begun(path: Path, asked: RunSettings) -> RunSettings:
    """Compare a run that has begun, but is not finished, with its run file as it is now.

    Args:
        path: the run's folder, which may hold no checkpoint yet.
        asked: the run file.

    Returns:
        The settings to go on with: those asked for, with the first weights that the run began with.

    Raises:
        CheckpointError: it would learn something else than it began to; it names what differs.
    """
    began = read_settings(path)
    found = _said(edits(began.as_dict(), asked.placed().as_dict()))
    if another := [str(each) for each in found if not each.allowed]:
        raise CheckpointError(f"{path}: began with other settings: {'; '.join(another)}; {ways_on(path)}")
    if asked.student.weights is None or asked.student.weights.sha256 or began.student.weights is None:
        return asked
    return replace(asked, student=asked.student.pinned(began.student.weights.sha256))


def _said(found: list[Edit]) -> list[Edit]:
    """A run file says where the first weights lie; which they were was written down when the run began."""
    return [each for each in found if each.key != "student.weights.sha256" or each.now]
