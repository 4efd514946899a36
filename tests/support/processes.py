"""The real `distillog` command as child processes: what they print is kept, and none outlives its test."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.kafka.settings import KafkaSettings
from pipeline.processes import DISTILLOG, Process
from pipeline.wait import Deadline

TESTS = Path(__file__).parents[1]
PATIENCE = 90.0
"""seconds until a process must have done what it was waited for; PyTorch alone may take ten to load on a busy box"""


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Child(Process):
    """One process of the command; stdout and stderr go into files of their own."""

    def __init__(self, arguments: tuple[str, ...], files: Path, env: dict[str, str], by: Sequence[str] = ()) -> None:
        """`by`: the command that starts it, if not this process itself."""
        self.arguments = arguments
        self._out = files.with_suffix(".stdout")
        with self._out.open("wb") as out:
            super().__init__(
                f"`distillog {' '.join(arguments)}`",
                [*by, DISTILLOG, *arguments],
                files.with_suffix(".stderr"),
                environment=env,
                stdout=out,
            )

    def __repr__(self) -> str:
        return f"{self.name} (exit {self.popen.poll()})\n{self.stdout}{self.stderr}"

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self.log.read_text()

    def wait_for(self, pattern: str, timeout: float = PATIENCE) -> str:
        """Wait until stderr has a line that matches, and return the match; AssertionError if it ends without."""
        deadline = Deadline(timeout)
        while True:
            ended = not self.running  # before the look, so that the last words count
            if found := re.search(pattern, self.stderr):
                return found.group()
            assert not ended, f"ended without saying {pattern!r}: {self!r}"
            assert not deadline.over, f"did not say {pattern!r} within {timeout:g} s: {self!r}"
            time.sleep(0.02)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Exit code, negative for a signal."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {timeout:g} s: {self!r}") from None

    def succeed(self, timeout: float = PATIENCE) -> str:
        """Wait for its end in success, and return stdout."""
        assert self.wait(timeout) == 0, repr(self)
        assert_clean(self.stderr)
        return self.stdout

    def refuse(self, *words: str, code: int = 1, timeout: float = PATIENCE) -> str:
        """Wait for its end with an error that holds these words, and return that one line."""
        assert self.wait(timeout) == code, repr(self)
        return one_error(self.stderr, *words)

    def assert_clean(self) -> None:
        assert_clean(self.stderr)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP: no thread of it runs, its connections stay open."""
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.send(signal.SIGCONT)


class Distillog:
    """Calls `distillog` against one cluster: `start` as a process of its own, `call` in this one."""

    def __init__(self, settings: KafkaSettings, folder: Path) -> None:
        self.settings = settings
        self._folder = folder
        self._children: list[Child] = []
        self._cluster = {"KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers}
        if settings.options:
            self._cluster["DISTILLOG_KAFKA_CONFIG"] = str(write_properties(settings, folder / "cluster.properties"))

    def start(self, *arguments: object, **env: str) -> Child:
        """Start a command; `env` on top of the environment."""
        return self._start(arguments, env)

    def torchrun(self, size: int, *arguments: object, restarts: int = 0) -> Child:
        """Start a command in several processes, all of them anew up to so many times where one ends."""
        options = ("--nproc-per-node", size, "--max-restarts", restarts, "--monitor-interval", 0.2)
        by = (sys.executable, "-m", "torch.distributed.run", "--no-python", "--master-port", free_port(), *options)
        return self._start(arguments, {}, tuple(map(str, by)))

    def _start(self, arguments: tuple[object, ...], env: dict[str, str], by: Sequence[str] = ()) -> Child:
        files = self._folder / f"{len(self._children):02d}-{arguments[0]}"
        inherited = {
            **os.environ,
            **self._cluster,
            "PYTHONPATH": str(TESTS),  # the datasets and views of support/
            "OMP_NUM_THREADS": "1",
        }
        child = Child(tuple(map(str, arguments)), files, inherited | env, by)
        self._children.append(child)
        return child

    def call(self, *arguments: object, **env: str) -> Result:
        """Run a command that needs no process of its own: PyTorch and Kafka are loaded here already."""
        return CliRunner().invoke(main, list(map(str, arguments)), env=self._cluster | env)

    def succeed(self, *arguments: object, **env: str) -> str:
        """As `call`, to success; returns stdout."""
        result = self.call(*arguments, **env)
        assert result.exit_code == 0, result.output
        assert_clean(result.stderr)
        return result.stdout

    def refuse(self, *arguments: object, words: tuple[str, ...], code: int = 1, **env: str) -> str:
        """As `call`, to an error that holds these words; returns that one line."""
        result = self.call(*arguments, **env)
        assert result.exit_code == code, result.output
        return one_error(result.stderr, *words)

    def close(self) -> None:
        for child in self._children:
            child.kill()


@contextmanager
def distillog_commands(settings: KafkaSettings, folder: Path) -> Iterator[Distillog]:
    """A `Distillog` whose processes all end with the block."""
    commands = Distillog(settings, folder)
    try:
        yield commands
    finally:
        commands.close()


def write_properties(settings: KafkaSettings, file: Path) -> Path:
    """Write what `--kafka-config` takes."""
    lines = {"bootstrap.servers": settings.bootstrap_servers, **settings.options}
    file.write_text("".join(f"{name.replace('_', '.')}={value}\n" for name, value in lines.items()), encoding="utf-8")
    return file


def one_error(stderr: str, *words: str) -> str:
    """The one line beginning with `error:`; nobody was shown a traceback, and it holds all these words."""
    assert_no_traceback(stderr)
    errors = [line for line in stderr.splitlines() if line.lower().startswith("error:")]
    assert len(errors) == 1, stderr
    assert stderr.splitlines()[-1] == errors[0], stderr
    for word in words:
        assert word in errors[0], f"{word!r} is not in {errors[0]!r}"
    return errors[0]


def assert_clean(stderr: str) -> None:
    """Neither an error nor a traceback; warnings may be."""
    assert_no_traceback(stderr)
    assert not re.search(r"(?im)^error:", stderr), stderr


def assert_no_traceback(stderr: str) -> None:
    assert "Traceback" not in stderr, stderr
    assert "this is a bug" not in stderr, stderr
