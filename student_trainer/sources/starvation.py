"""What is said and done while no label comes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from pipeline.names import soft_targets_topic
from schemas.errors import Starved
from student_trainer.run.settings import StarveSettings
from student_trainer.sources.held import Wait

log = logging.getLogger(__name__)


class Starvation:
    """Call it with each `Wait`: it warns, in growing intervals, and in the end raises Starved."""

    def __init__(self, settings: StarveSettings, stream: str, more: Callable[[], str] = lambda: "") -> None:
        """`more` is what else to say of a wait."""
        self._settings = settings
        self._stream = stream
        self._more = more
        self._sequence = -1
        self._warn_at = settings.warning

    def __call__(self, wait: Wait) -> None:
        """Warn after `warning` seconds, then after twice and four times as many, and so on.

        Raises:
            Starved: the wait lasts `timeout` seconds.
        """
        if wait.sequence != self._sequence:
            self._sequence, self._warn_at = wait.sequence, self._settings.warning
        if wait.seconds >= self._settings.timeout:
            raise Starved(f"{self._text(wait)}; gave up, resume the run when labels come")
        if wait.seconds >= self._warn_at:
            self._warn_at = 2 * wait.seconds
            log.warning("%s", self._text(wait))

    def _text(self, wait: Wait) -> str:
        since = datetime.now() - timedelta(seconds=wait.seconds)
        logs = [f"{soft_targets_topic(self._stream, teacher)}/{partition}" for teacher, partition in wait.logs]
        text = (
            f"no soft targets for sequence {wait.sequence} since {since:%Y-%m-%d %H:%M:%S} ({wait.seconds:.0f} s); "
            f"waiting for {', '.join(logs)}"
        )
        if wait.trouble:
            return f"{text}; Kafka gives no answer ({wait.trouble}); is it running? (`distillog broker status`)"
        counts = {teacher: wait.members.get(teacher) for teacher, _ in wait.logs}
        for teacher, count in counts.items():
            workers = "an unknown number of workers" if count is None else f"{count} worker{'s' * (count != 1)}"
            text += f"; teacher {teacher!r} has {workers}"
        if 0 in counts.values():
            text += f"; start one with `distillog teach {self._stream} MODEL.onnx`"
        else:
            text += f"; `distillog topics lag {self._stream}` shows what they do"
        return text + wait.dropped + self._more()
