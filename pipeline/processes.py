"""Child processes on this machine: each with a log file and a group of its own, asked to end before it is made to."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from pipeline.wait import Deadline

DISTILLOG = Path(sysconfig.get_path("scripts"), "distillog")
"""The command of this installation."""
GRACE = 8.0
"""Seconds between SIGTERM and SIGKILL."""


class Process:
    """A process that was started; nothing needs to read what it writes meanwhile."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
    ) -> None:
        """Start it; OSError where that fails.

        Args:
            name: for people.
            command: the program and its arguments.
            log: file that its stderr is appended to.
            environment: in place of ours.
            stdin: as subprocess.Popen takes it.
            stdout: the same; None: into the log, too.
        """
        self.name = name
        self.log = log
        with log.open("ab") as file:
            self.popen = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=file if stdout is None else stdout,
                stderr=file,
                env=environment,
                start_new_session=True,  # Ctrl-C at the terminal reaches us alone, who end them in order
            )

    @property
    def pid(self) -> int:
        """Its number, which is that of its group."""
        return self.popen.pid

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self.popen.poll() is None

    def send(self, number: int) -> None:
        """Send its whole group a signal; a process that has ended is left alone, its number may be another's."""
        if self.running:
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, as a crash or the kernel's memory killer would."""
        self.send(signal.SIGKILL)
        self.popen.wait(GRACE)

    def last_words(self) -> str:
        """Return the last error in its log, else its last line."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["it wrote nothing"])[-1].removeprefix("error: ")


def stop(processes: Iterable[Process], timeout: float = GRACE) -> None:
    """Ask processes to end, at once, and kill those that have not after `timeout` seconds, for all together."""
    asked = list(processes)
    for process in asked:
        if process.popen.stdin is not None:
            process.popen.stdin.close()
        process.send(signal.SIGTERM)
        process.send(signal.SIGCONT)  # a frozen one hears nothing else
    deadline = Deadline(timeout)
    for process in asked:
        try:
            process.popen.wait(deadline.left)
        except subprocess.TimeoutExpired:
            process.kill()
