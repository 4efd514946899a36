"""A worker's side of its child process: ask for rows, and tell what ended it from what only stopped it.

A child that a signal of a crash ends, or that gives no answer in time, says something of the rows that it was asked
for. One that is killed, that runs out of memory, or that ends by itself does not: its machine is to blame, or its code.
N: rows asked for.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from pipeline.datasets.base import Ints
from schemas.errors import ChildLost, DataUnavailable, DistillogError
from teacher_service import watchdog
from teacher_service.apart.child import Frame, decode_labels, read_frame, write_frame
from teacher_service.models.labels import Labels

log = logging.getLogger(__name__)

CRASHES = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE"})
"""signals that a process brings upon itself"""

_OUT_OF_MEMORY = "std::bad_alloc"
"""What C++ says as it aborts without memory."""
_LAST_LINES = 50
"""Lines of stderr in which that is looked for."""
_TOLD = 500
"""Lines that are not told again as loudly: children that end in one place all say so."""
_STEP = 0.2
_LEAVE = 5.0
"""Seconds for a child that has said its last word to end."""
_LAST_WORDS = 2.0
"""Seconds for what it wrote to arrive: a process that it left behind may hold its stderr for ever."""


class Stopped(Exception):
    """The worker is to end: nobody waits for the answer."""


@dataclass(frozen=True, slots=True)
class Death:
    """Some rows ended the child that was asked for them."""

    how: str
    """a signal's name, or a hang"""


class Child:
    """One child at a time, started when it is asked and none is there; used by one thread, which has to stay alive."""

    def __init__(self, task: Frame, stop: threading.Event) -> None:
        self._task = task
        self._stop = stop
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._told: deque[str] = deque(maxlen=_TOLD)
        self._threads: list[threading.Thread] = []
        self._writer = threading.Thread()
        self._num_rows = max(1, len(task[0]["sample_ids"]))
        self._patience = 0.0
        """seconds for an answer about so many rows"""

    def label(self, sequence: int, sample_ids: Ints, view_seed: int) -> Labels | Death:
        """Label [N] samples; the labels speak of these rows.

        Raises:
            ChildLost: the child ended, and no row is to blame.
            DistillogError: what the child raised.
            Stopped: the worker is to end.
        """
        if self._process is None:
            self._start()
        self._ask({"sequence": sequence, "sample_ids": sample_ids.tolist(), "view_seed": view_seed})
        share = len(sample_ids) / self._num_rows  # a few rows that hang are not to hold their order up as a whole does
        answer = self._answer(max(watchdog.MIN_DEADLINE, self._patience * share), f"order {sequence}")
        return answer if isinstance(answer, Death) else decode_labels(answer)

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._ended()

    def _start(self) -> None:
        path = [os.path.abspath(place) for place in sys.path]  # "" is where we are
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "teacher_service.apart.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            start_new_session=True,  # Ctrl-C at the terminal reaches the worker, which finishes what it has begun
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._answers = queue.SimpleQueue()
        self._last_lines = deque(maxlen=_LAST_LINES)
        stderr = (self._process.stderr, self._last_lines, self._told)
        self._threads = [
            threading.Thread(target=_pump, args=(self._process.stdout, self._answers), name="child", daemon=True),
            threading.Thread(target=_relay, args=stderr, name="child's stderr", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self._ask(self._task[0], self._task[1])
        answer = self._answer(watchdog.FIRST_DEADLINE, "start")
        if isinstance(answer, Death):
            raise ChildLost(
                f"the child process that labels a suspicious order ended ({answer.how}) on samples that are known to "
                "be well: nothing of the order was committed; start the worker again where its data and model run"
            )
        # What it measured was read before; other rows may come from storage that nobody read yet.
        self._patience = max(watchdog.COLD_DEADLINE, watchdog.FACTOR * answer[0]["seconds"])

    def _ask(self, header: dict[str, object], body: bytes = b"") -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        # Beside this thread, which waits for the answer: a child that hangs before it reads never takes a long frame.
        words = (self._process.stdin, header, body)
        self._writer = threading.Thread(target=_write, args=words, name="child's stdin", daemon=True)
        self._writer.start()

    def _answer(self, patience: float, what: str) -> Frame | Death:
        left = patience
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                answer = self._answers.get(timeout=_STEP)
            except queue.Empty:
                left -= min(time.monotonic() - began, 1.0)  # no more, should this process have been frozen
                if left > 0:
                    continue
                self.close()
                return Death(f"no answer within {patience:.0f} s")
            if answer is None:
                return self._death(what)
            kind = answer[0]["kind"]
            if kind in ("ready", "labels"):
                return answer
            if kind != "alive":
                self.close()
                raise _error(kind, answer[0]["text"], what)
            left = patience
        self.close()
        raise Stopped

    def _death(self, what: str) -> Death:
        """Tell how the child ended that closed its stdout.

        Raises:
            ChildLost: not by a crash.
        """
        code = self._ended()
        how = _name_of(code)
        if any(_OUT_OF_MEMORY in line for line in self._last_lines):
            how = f"out of memory: {_OUT_OF_MEMORY}"
        if how in CRASHES:
            return Death(how)
        memory = ", as the system does where memory runs out" if how == "SIGKILL" else ""
        raise ChildLost(
            f"{what}: the child process that was to label it ended ({how}{memory}), which is no fault of a sample; "
            "nothing of it was committed, start the worker again where there is room for it"
        )

    def _ended(self) -> int:
        """Clean up after a child that ended, or is about to; returns its exit code."""
        process = self._process
        assert process is not None
        self._process = None
        assert process.stdin is not None
        code = _wait(process)
        if code is None:
            process.kill()
            code = _wait(process)
        for thread in (*self._threads, self._writer):
            thread.join(_LAST_WORDS)
        if not self._writer.is_alive():
            with suppress(OSError):  # what it did not read
                process.stdin.close()
        return code or 0


def _write(stdin: IO[bytes], header: dict[str, object], body: bytes) -> None:
    with suppress(OSError):  # it is gone: waiting for the answer tells how
        write_frame(stdin, header, body)


def _pump(stdout: IO[bytes], answers: queue.SimpleQueue[Frame | None]) -> None:
    with stdout:
        while (answer := read_frame(stdout)) is not None:
            answers.put(answer)
    answers.put(None)


def _relay(stderr: IO[bytes], last_lines: deque[str], told: deque[str]) -> None:
    with stderr:
        for raw in stderr:
            line = raw.decode(errors="replace").rstrip()
            last_lines.append(line)
            log.log(logging.DEBUG if line in told else logging.WARNING, "child process: %s", line)
            told.append(line)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(_LEAVE)
    except subprocess.TimeoutExpired:  # such as in a read of a mount that is away
        return None


def _name_of(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _error(kind: str, text: str, what: str) -> DistillogError:
    """What the child raised: an error of ours, or anything else."""
    # Storage that is away is that for everybody; a model that a second process cannot open is the child's own trouble.
    if kind == DataUnavailable.__name__:
        return DataUnavailable(text)
    return ChildLost(f"{what}: the child process that was to label it failed: {text}; nothing of it was committed")
