"""A second look at a sample that failed as storage may fail: a fault of a sample can be had again."""

from __future__ import annotations

import time
from collections.abc import Callable
from traceback import walk_tb
from typing import TypeVar

from pipeline.user_code import blames_sample, said

T = TypeVar("T")

_PAUSES = (0.2, 0.5)
"""Seconds before a sample is read once more, and once again where it then failed in another way."""
_MOST = 8
"""Samples of one request that are looked at again; where more fail, it is no matter of single samples anyway."""

_PLAIN = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, SyntaxError, TypeError, ValueError)
"""Python's own, raised by code that looks at a sample; Pillow raises SyntaxError for a broken PNG."""
_DECODERS = {"PIL", "_lzma", "_pickle", "binascii", "cv2", "gzip", "json", "numpy", "struct", "zipfile", "zlib"}
"""Packages whose exceptions, and whose OSErrors, are about bytes that they were given."""


class SecondLook:
    """Second looks at the samples of one request, a few at most.

    Libraries of storage raise exceptions of their own kind (botocore, httpx, sqlite3, `http.client.IncompleteRead`),
    which nobody can list. What is not known to be of the sample is therefore tried again once, before it is believed.
    """

    def __init__(self) -> None:
        self._left = _MOST
        self._helped = False

    def at(self, read: Callable[[], T]) -> T:
        """What `read` gives, now or after a pause. Raises what it raises in the end.

        Raises ConnectionError where no look is left and one has helped: then it is the storage that fails.
        """
        try:
            return read()
        except Exception as error:
            if not blames_sample(error) or _is_of_the_sample(error):
                raise
            if not self._left:
                if self._helped:
                    raise ConnectionError(f"{said(error)}; others were read a moment later") from error
                raise
            last = error
        self._left -= 1
        for pause in _PAUSES:
            time.sleep(pause)
            try:
                given = read()
            except Exception as error:
                if type(error) is type(last) or not blames_sample(error):
                    raise
                last = error
            else:
                self._helped = True
                return given
        raise last


def _is_of_the_sample(error: Exception) -> bool:
    """Whether it is plainly about the sample: Python's own, a decoder's, or a bare OSError from inside a decoder."""
    kind = type(error)
    if kind is OSError:
        raised_in = [frame.f_globals.get("__name__") for frame, _ in walk_tb(error.__traceback__)]
        return str(raised_in[-1]).partition(".")[0] in _DECODERS
    package = kind.__module__.partition(".")[0]
    return package in _DECODERS or (package == "builtins" and issubclass(kind, _PLAIN))
