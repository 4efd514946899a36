"""Child processes on this machine: each in a group of its own, asked to end before it is made to.

What one writes is kept in a log file (`Process`) or heard line by line (`HeardProcess`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from pipeline.wait import Deadline

DISTILLOG = Path(sysconfig.get_path("scripts"), "distillog")
"""The command of this installation."""
_TETHER = Path(__file__).with_name("tether.py")
_KEPT = 200
"""Lines of what was heard that are kept for its last words."""
GRACE = 8.0
"""Seconds between SIGTERM and SIGKILL."""


class Running:
    """A process that was started; it may have ended since."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes]) -> None:
        """`name` is for people."""
        self.name = name
        self.popen = popen

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
        """SIGKILL, as a crash or the kernel's memory killer would; waits some seconds for it.

        One that hangs in the kernel (storage that is away) ends when it comes back from there.
        """
        self.send(signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(GRACE)

    def last_words(self) -> str:
        """Return the last error that it wrote, else its last line."""
        lines = [line.strip() for line in self._lines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["it wrote nothing"])[-1].removeprefix("error: ")

    def _lines(self) -> Iterable[str]:
        raise NotImplementedError


class Process(Running):
    """One that writes into a log file, which nothing needs to read meanwhile."""

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
        self.log = log
        with log.open("ab") as file:
            popen = _start(command, file if stdout is None else stdout, file, environment, stdin)
        super().__init__(name, popen)

    def _lines(self) -> Iterable[str]:
        return self.log.read_text(errors="replace").splitlines()


class HeardProcess(Running):
    """One whose lines are heard as they come, and which gets SIGHUP when we end, however we do (on Linux)."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        hear: Callable[[str], None],
        *,
        environment: Mapping[str, str] | None = None,
        cores: Collection[int] = (),
    ) -> None:
        """Start it; OSError where that fails. To be called by a thread that lives as long as the process may.

        Args:
            name: for people.
            command: the program, as a whole path, and its arguments.
            hear: called with each line that it writes, on a thread of its own.
            environment: in place of ours.
            cores: where it runs (on Linux); none: where we do.
        """
        if sys.platform == "linux":
            tied_to = [str(os.getpid()), ",".join(map(str, sorted(cores)))]
            command = [sys.executable, "-I", "-S", _TETHER, *tied_to, *command]
        super().__init__(name, _start(command, subprocess.PIPE, subprocess.STDOUT, environment))
        self._kept: deque[str] = deque(maxlen=_KEPT)
        self._hear = hear
        self._thread = threading.Thread(target=self._listen, name=f"hearing {name}", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as lines:
            for raw in lines:
                line = raw.decode(errors="replace").rstrip()
                self._kept.append(line)
                self._hear(line)

    def _lines(self) -> Iterable[str]:
        self._thread.join(1.0)  # what it started itself may hold the pipe open
        return list(self._kept)


def _start(
    command: Sequence[str | Path],
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    environment: Mapping[str, str] | None,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        start_new_session=True,  # Ctrl-C at the terminal reaches us alone, who end them in order
    )


def stop(processes: Iterable[Running], timeout: float = GRACE) -> None:
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
