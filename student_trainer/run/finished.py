"""A finished run that is asked for again: whether it is still what its run file, and its stream, would make of it."""

from __future__ import annotations

from collections.abc import Callable
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
    # A run file says where the first weights lie; which they were was written down when the run began.
    found = [each for each in found if each.key != "student.weights.sha256" or each.now]
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
