"""What every part of the demo works with: its folder, broker, processes and progress; and the end of all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from folder import DemoFolder
from processes import Child, DemoError, Processes, Trainer
from signals import Signals

from pipeline.broker.local import LocalBroker
from pipeline.kafka.settings import KafkaSettings
from pipeline.progress import Progress
from pipeline.wait import Deadline

T = TypeVar("T")

PATIENCE = 180.0
"""Seconds for which any one thing is waited for; the slowest takes 30 s on two cores."""


class Stage:
    """A context manager over an emptied folder: whatever was started on it has ended when it is left."""

    def __init__(self, path: Path, signals: Signals) -> None:
        """Raises ConfigError or RunLocked where the folder is not the demo's to use."""
        self.path = path
        self.runs = path / "runs"
        self.signals = signals
        self.processes = Processes(signals, path / "logs")
        self.progress = Progress()
        self.broker = LocalBroker(path / "broker")
        self.kafka = KafkaSettings("")
        self._began = time.monotonic()
        self._folder = DemoFolder(path)

    def __enter__(self) -> Self:
        with self.signals.held():
            self.broker.stop()  # of a demo that was killed
            self._folder.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.signals.ignore()
        try:
            self.progress.close()
            if kind is not None:
                self.say("stopping everything")
            self.processes.stop(*self.processes.children)
        finally:
            self.broker.stop(timeout=10.0)
            self._folder.close()

    @property
    def seconds(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._began

    def start_broker(self) -> None:
        """Start Kafka on free ports, and let all processes from now on find it."""
        from pipeline.broker.jars import ready_jars

        self.say("starting Kafka (the first time, 45 MB are downloaded)")
        ready_jars()  # may take minutes, and a signal may end it; the start that follows takes seconds
        with self.signals.held():
            self.broker.start()
        self.kafka = KafkaSettings(self.broker.bootstrap_servers)
        self.processes.environment["KAFKA_BOOTSTRAP_SERVERS"] = self.kafka.bootstrap_servers
        self.say(f"Kafka answers: export KAFKA_BOOTSTRAP_SERVERS={self.kafka.bootstrap_servers}")

    def distillog(self, name: str, *arguments: str | Path) -> Child:
        """Start a `distillog` command, and show it as a user would type it."""
        self.say("$ distillog " + " ".join(f"'{each}'" if "?" in str(each) else str(each) for each in arguments))
        return self.processes.distillog(name, *arguments)

    def result(self, trainer: Trainer, what: str) -> Any:
        """Wait for what a trainer's job returns, and show its steps meanwhile."""

        def answer() -> tuple[Any] | None:
            found = trainer.answer()
            if "total_steps" in trainer.progress:
                step, total = trainer.progress["step"], trainer.progress["total_steps"]
                self.progress.update(**{f"{what}, step": f"{step:,}/{total:,}"})
            return None if found is None else (found,)

        result = self.wait(what, answer)[0]
        self.progress.update(**{f"{what}, step": None})
        return result

    def wait(self, what: str, done: Callable[[], T | None]) -> T:
        """Poll until `done` gives something true, and return it.

        Raises:
            DemoError: a process ended badly, or nothing came of it in PATIENCE seconds.
        """
        deadline = Deadline(PATIENCE)
        while not (result := done()):
            self.processes.check()
            if deadline.over:
                raise DemoError(f"{what} took more than {PATIENCE:.0f} s; see {self.path / 'logs'}")
            time.sleep(0.02)
        self.processes.check()
        return result

    def say(self, text: str) -> None:
        """Print a line, with the seconds since the beginning."""
        self.progress.message(f"{self.seconds:5.1f} s  {text}")
