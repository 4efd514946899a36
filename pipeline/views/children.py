"""Loaders that are processes: for code of a user that holds Python's interpreter lock, or that threads cannot share."""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from pipeline.datasets.base import Dataset, Ints
from pipeline.views.messages import STORAGE, Answer, Task, receive, send
from schemas.errors import BadSamples, ConfigError, DataUnavailable, LoaderLost, ManifestMismatch
from schemas.records import ViewSpec

log = logging.getLogger(__name__)

_BEGIN = 600.0
"""Seconds for a child to open its data, and to begin an answer."""
_ROW = 60.0
"""Seconds for each sample of it."""
_SILENCE = 10.0
"""Seconds without an answer after which a warning says so; the next come at twice the last."""
_STEP = 0.2
_LEAVE = 5.0
"""Seconds for a child that closed its socket to end."""
_NAMED = 8
"""Samples of a request that are named, at most."""
_OURS = {kind.__name__: kind for kind in (BadSamples, ConfigError, DataUnavailable, ManifestMismatch)}
"""What reading and viewing samples raises, beside what storage does."""


class Children:
    """`count` child processes, each with the dataset and the view opened anew by `start`.

    They end with `close`, when nobody knows these any more, and with this process, in whatever way it ends.
    """

    def __init__(self, dataset: Dataset, view: ViewSpec, count: int, partners: Ints | None = None) -> None:
        self._dataset = dataset
        self._view = view
        self._count = count
        self._partners = partners
        self._what = f"dataset {dataset.uri} under view {view.name}"
        self._all: list[_Child] = []
        self._free: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._over = threading.Event()

    @property
    def busy(self) -> float:
        """CPU seconds that they spent."""
        return sum(child.busy for child in self._all)

    def close(self) -> None:
        """End them; whoever waits for one of them raises LoaderLost."""
        self._over.set()

    def start(self, kinds: Sequence[str]) -> None:
        """Have all of them ready, unless they are; `kinds`: what the samples of each user's view are held to.

        Raises:
            OSError: the data cannot be read now; the next call tries again.
            DistillogError: the data or the view cannot be opened.
            LoaderLost: a child ended.
        """
        if self._all:
            return
        self._over = over = threading.Event()
        started: queue.SimpleQueue[list[_Child] | OSError] = queue.SimpleQueue()
        # Children end with the thread that started them (on Linux), and the caller's may well end before this process.
        keeper = (self._count, started, over)
        threading.Thread(target=_keep, args=keeper, name="views-keeper", daemon=True).start()
        weakref.finalize(self, over.set)
        children = started.get()
        if isinstance(children, OSError):
            raise LoaderLost(f"{self._what}: no process of a loader can be started: {children}")
        task = Task(self._dataset.uri, self._dataset.fields, self._view, tuple(kinds), self._partners)
        try:
            for child in children:
                child.ask(task)
            for child in children:
                self._answer(child, _BEGIN, "opened them")
        except BaseException:
            over.set()
            raise
        self._all = children
        for child in children:
            self._free.put(child)

    def fetch(self, sample_ids: Ints, view_seed: int, size: tuple[int, ...] | None, mix: bool = True) -> Any:
        """As `Fetcher.fetch`, by one of them; by as many threads at once as there are children.

        Raises:
            OSError, DistillogError: as the child does.
            LoaderLost: the child ended, or gave no answer in time.
        """
        named = ", ".join(map(str, sample_ids[:_NAMED].tolist()))
        more = f" and {len(sample_ids) - _NAMED} more" if len(sample_ids) > _NAMED else ""
        child = self._free.get()
        try:
            with child.talk:
                child.ask((sample_ids, view_seed, size, mix))
                return self._answer(child, _BEGIN + _ROW * len(sample_ids), f"was asked for samples {named}{more}")
        finally:
            self._free.put(child)

    def _answer(self, child: _Child, patience: float, what: str) -> Any:
        left, before, warn_at = patience, time.monotonic(), _SILENCE

        def waiting() -> None:
            nonlocal left, before, warn_at
            if self._over.is_set():
                raise LoaderLost(f"{self._what}: the loaders were closed")
            now = time.monotonic()
            left, before = left - min(now - before, 1.0), now  # no more, should this process have been frozen
            if left < 0:
                raise self._lost(what, f"gave no answer within {patience:.0f} s")
            if (silent := patience - left) >= warn_at:
                warn_at = 2 * silent
                log.warning(
                    "%s: the process of a loader that %s gave no answer for %.0f s; waiting up to %.0f s for it",
                    self._what, what, silent, patience,
                )  # fmt: skip

        try:
            answer: Answer = receive(child.end, waiting)
        except EOFError:
            waiting()
            raise self._lost(what, f"ended ({child.how_it_ended()})") from None
        except BaseException:
            child.kill()  # else its answer would be taken for the one to the next request
            raise
        child.busy = answer.busy
        if answer.error == STORAGE:
            raise OSError(answer.text)
        if answer.error in _OURS:
            raise _OURS[answer.error](answer.text)
        if answer.error:
            raise self._lost(what, f"failed ({answer.text})")
        return answer.made

    def _lost(self, what: str, how: str) -> LoaderLost:
        return LoaderLost(
            f"{self._what}: the process of a loader that {what} {how}; nothing of these was used. Start again when the "
            "code that reads them, or the machine's memory, is mended"
        )


class _Child:
    """One child, and our end of the socket between us."""

    def __init__(self) -> None:
        self.busy = 0.0
        """CPU seconds until its last answer."""
        self.talk = threading.Lock()
        """Held as long as somebody uses the socket."""
        self.end, theirs = socket.socketpair()
        path = [os.path.abspath(place) for place in sys.path]  # "" is where we are
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.views.child", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a dataset prints is no part of what this process prints
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C at the terminal reaches this process, which ends its children
            )

    def ask(self, message: object) -> None:
        """Send; that nobody is there is heard when the answer is waited for."""
        try:
            self.end.settimeout(_BEGIN)
            send(self.end, message)
            self.end.settimeout(_STEP)
        except OSError:
            self.kill()

    def kill(self) -> None:
        """Have it end at once."""
        self._process.kill()

    def how_it_ended(self) -> str:
        """Of a child that closed its end: the signal, or the exit code."""
        try:
            code = self._process.wait(_LEAVE)
        except subprocess.TimeoutExpired:
            self.kill()
            return "it closed its socket"
        if code >= 0:
            return f"exit code {code}"
        if code == -signal.SIGKILL:
            return "SIGKILL, as the system does where memory runs out"
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"

    def clear_away(self) -> None:
        """Kill it, and leave nothing of it."""
        self.kill()
        self._process.wait()
        with self.talk:
            self.end.close()


def _keep(count: int, started: queue.SimpleQueue[list[_Child] | OSError], over: threading.Event) -> None:
    """Start children, and stay until they are not needed; knows nothing by which whoever needs them would stay."""
    children: list[_Child] = []
    try:
        for _ in range(count):
            children.append(_Child())
    except OSError as error:  # no room for another process
        started.put(error)
    else:
        started.put(children)
        over.wait()
    for child in children:
        child.clear_away()
