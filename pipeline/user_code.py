"""Code of a user's own: how it is found, and what its exceptions mean."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from schemas.errors import ConfigError, DataUnavailable, DistillogError

_MAX_TEXT = 300
"""Characters of an exception's text: a user's may print whole arrays."""

_DECODERS = {("builtins", "OSError"), ("PIL", "UnidentifiedImageError"), ("gzip", "BadGzipFile")}
"""Kinds of OSError that decoders raise on broken bytes. All others that lack an errno (a time-out, a lost connection,
those of HTTP libraries) are of the storage."""


def imported(what: str, path: str, hint: str = "") -> Callable[..., Any]:
    """The callable that `package.module:name` names; `hint` ends the text where the module itself is missing.

    Raises ConfigError, whatever the module raises while it is imported.
    """
    module, _, name = path.partition(":")
    try:
        with calling(f"{what} {path}"):
            found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        # The module itself is missing, or a package above it: otherwise it lacks one of its own imports.
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise ConfigError(
                f"{what} {path} cannot be imported: no module {error.name!r} on the Python path (see PYTHONPATH)"
                + (f". {hint}" if hint else "")
            ) from error
        raise ConfigError(
            f"{what} {path} cannot be imported: {module} needs a missing package: {one_line(error)}"
        ) from error
    except DistillogError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} {path} cannot be imported: {said(error)}") from error
    if not callable(found):
        raise ConfigError(f"{what} {path} is not callable")
    return found  # type: ignore[no-any-return]


@contextmanager
def calling(what: str) -> Iterator[None]:
    """Around each call of user code: `what` is called, such as "dataset a.b:make: __getitem__(7)".

    What is no Exception (`sys.exit`, an own BaseException) would end a thread or the process as if all were well: it
    becomes ConfigError. Memory that ran out becomes DataUnavailable. All else passes, Ctrl-C too.
    """
    try:
        yield
    except MemoryError as error:
        raise DataUnavailable(f"{what} ran out of memory ({said(error)}); give it more, or let it take less") from error
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ConfigError(f"{what} raised {said(error)}, which ends a process: raise an Exception") from error


def blames_sample(error: Exception) -> bool:
    """Whether what user code raised for a sample is a fault of that sample, and will be again tomorrow.

    Not so: what storage raises, memory that ran out, and our own errors. An OSError of storage has an errno, or is of a
    kind that only storage raises; a decoder's has none (Pillow: "image file is truncated", UnidentifiedImageError).
    HDF5 writes the errno of a failed read into its text.
    """
    if isinstance(error, OSError):
        kind = (type(error).__module__, type(error).__qualname__)
        return error.errno is None and kind in _DECODERS and "errno" not in one_line(error)
    return not isinstance(error, MemoryError | DistillogError)


def said(error: BaseException) -> str:
    """An exception in one line; a ValueError, the plain way to refuse a sample, speaks for itself."""
    text = one_line(error)[:_MAX_TEXT]
    if type(error) is ValueError and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def one_line(error: BaseException) -> str:
    """An exception's text in one line; "" where its own `__str__` fails."""
    try:
        return " ".join(str(error).split())
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""
