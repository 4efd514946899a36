"""Reading with patience: storage that is away for a moment ends neither a worker nor a run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.datasets.base import Dataset, Ints
from pipeline.user_code import one_line
from pipeline.views.fetch import Fetched, Fetcher
from schemas.errors import DataUnavailable

T = TypeVar("T")

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 5.0
"""Seconds between two tries, at most; the first pause is 0.1 s, and each is twice the last."""


def fetch_patiently(
    fetcher: Fetcher,
    sample_ids: Ints,
    view_seed: int,
    size: tuple[int, ...] | None = None,
    stopped: threading.Event | None = None,
    *,
    seconds: float = 10.0,
    what: str = "",
    advice: str = "bring it back and try again",
    alive: Callable[[], None] = lambda: None,
    readable: bool = False,
) -> Fetched:
    """Fetch as `Fetcher.fetch`, trying again after an OSError: storage says nothing about the samples.

    Args:
        fetcher, sample_ids, view_seed, size: of `Fetcher.fetch`.
        stopped: once set, there is no further try.
        seconds: for how long there are further tries.
        what: what is fetched, such as "order 7"; for messages.
        advice: what to do about it.
        alive: called before each further try, for whoever watches over the time that this takes.
        readable: all samples were read elsewhere, so a fault here may be storage's as well: it is tried again too, and
            believed in the end.

    Raises:
        DataUnavailable: all tries failed, or one did and `stopped` is set.
    """

    def doubt(fetched: Fetched) -> str:
        return fetched.faults[0][1] if readable and fetched.faults else ""

    place = f"dataset {fetcher.dataset.uri}"
    return _patiently(
        lambda: fetcher.fetch(sample_ids, view_seed, size), place, stopped, seconds, what, advice, alive, doubt
    )


def labels_patiently(
    dataset: Dataset,
    sample_ids: Ints,
    stopped: threading.Event | None = None,
    *,
    seconds: float = 10.0,
    advice: str = "bring it back and try again",
) -> Ints:
    """Return [N] int64 labels as `Dataset.labels`, trying again as `fetch_patiently` does.

    Raises:
        DataUnavailable: as `fetch_patiently`.
    """
    place = f"the labels of dataset {dataset.uri}"
    return _patiently(lambda: dataset.labels(sample_ids), place, stopped, seconds, "", advice)


def _patiently(
    read: Callable[[], T],
    place: str,
    stopped: threading.Event | None,
    seconds: float,
    what: str,
    advice: str,
    alive: Callable[[], None] = lambda: None,
    doubt: Callable[[T], str] = lambda got: "",
) -> T:
    """`doubt` says why what was read is to be read again, if time is left; "" where it need not."""
    stopped = stopped or threading.Event()
    first, pause = time.monotonic(), 0.1
    while True:
        try:
            got = read()
            reason = doubt(got)
            if not reason or time.monotonic() - first + pause > seconds or stopped.is_set():
                return got
        except OSError as error:
            reason = one_line(error)
            if time.monotonic() - first + pause > seconds or stopped.is_set():
                raise DataUnavailable(
                    f"{place}{what and f': {what}'} cannot be read ({reason}); tried for {seconds:.0f} s; {advice}"
                ) from error
        log.warning("%s cannot be read (%s); trying again", what or place, reason)
        stopped.wait(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        alive()
