"""Warnings that come again and again: each is said once, and of the same not more than every ten seconds."""

from __future__ import annotations

import logging
import time

EVERY = 10.0
"""seconds between two words on one fault that lasts"""


class Complaints:
    """Of one place in the code, which may meet the same fault many times a second; for one thread."""

    def __init__(self, log: logging.Logger) -> None:
        """What is said goes to `log`."""
        self._log = log
        self._last = ""
        self._again = 0.0

    def warn(self, text: str) -> None:
        """Warn, unless that was the last warning and is a moment ago."""
        now = time.monotonic()
        if text != self._last or now >= self._again:
            self._last, self._again = text, now + EVERY
            self._log.warning("%s", text)
