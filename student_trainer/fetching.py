"""Fetching views with patience: storage that is away for a moment does not end a run."""

from __future__ import annotations

import logging
import threading

import numpy as np
from numpy.typing import NDArray

from pipeline.views.fetch import Fetched, Fetcher
from schemas.errors import BadSamples, DataUnavailable

logger = logging.getLogger(__name__)

_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before each further try."""


def fetch_patiently(
    fetcher: Fetcher,
    sample_ids: NDArray[np.int64],
    view_seed: int,
    size: tuple[int, ...] = (),
    stopped: threading.Event | None = None,
) -> Fetched:
    """Fetch as `Fetcher.fetch`, trying again after an OSError.

    Raises:
        DataUnavailable: all tries failed, or one did and `stopped` is set meanwhile.
    """
    stopped = stopped or threading.Event()
    for pause in (*_PAUSES, None):
        try:
            return fetcher.fetch(sample_ids, view_seed, size or None)
        except OSError as error:
            if pause is None or stopped.wait(pause):
                raise DataUnavailable(
                    f"dataset {fetcher.dataset.uri} cannot be read: {error}; bring it back and resume the run"
                ) from error
            logger.warning("dataset %s cannot be read, trying again in %s s: %s", fetcher.dataset.uri, pause, error)
    raise AssertionError


class FaultBudget:
    """Counts samples that cannot be decoded; more than 1 % of them is a broken dataset, not bad samples."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._rows = 0
        self._faults = 0

    def add(self, sample_ids: NDArray[np.int64], faults: tuple[tuple[int, str], ...]) -> None:
        """Take note of an order's faulty rows, each logged with its ID.

        Raises:
            BadSamples: more than 1 % of the rows so far, and more than 10.
        """
        self._rows += len(sample_ids)
        self._faults += len(faults)
        for row, reason in faults:
            logger.warning("dataset %s: sample %d is left out: %s", self._uri, sample_ids[row], reason)
        if self._faults > max(10, self._rows // 100):
            raise BadSamples(
                f"dataset {self._uri}: {self._faults} of {self._rows} samples cannot be decoded, "
                f"the last because of {faults[-1][1]!r}; check its storage"
            )
