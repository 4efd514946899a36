"""Files that a user names to be written: none of a run's own lies there, and none of another kind than what comes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.user_files import refuse_irregular
from schemas.errors import CannotWrite, ConfigError
from student_trainer.run.folder import OWN


def _is_onnx(head: bytes) -> bool:
    """A ModelProto: field 1 is the version of its format, a byte, and what follows is a field of that message."""
    return head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42")


KINDS: dict[str, Callable[[bytes], bool]] = {
    "ONNX": _is_onnx,
    "safetensors": lambda head: head[8:9] == b"{",
    "HTML": lambda head: head.lower().startswith(b"<!doctype html"),
    "SVG": lambda head: head.startswith((b"<svg", b"<?xml")),
}
"""What is written -> whether a file that begins so is of that kind."""
_HEAD = 16
"""Bytes of a file that tell its kind."""


def refuse_targets(*targets: tuple[str, Path]) -> None:
    """Look, before any of them is written, whether files of a user's own may be: links in their folders are followed.

    Args:
        targets: what is to be written (a key of KINDS), and where.

    Raises:
        CannotWrite: a folder, a pipe or a device lies at one of them, one of a run's own files, or a file of another
            kind, which would be lost.
        ConfigError: two are the same.
    """
    seen: set[Path] = set()
    for kind, path in targets:
        refuse_irregular(path, CannotWrite)
        place = path.parent.resolve() / path.name
        for each in (place, *place.parents):
            if each.name in OWN and each.with_name("run.toml").is_file():
                raise CannotWrite(f"{path}: {each.name} in {each.parent} is the run's own; give another path")
        if place in seen:
            raise ConfigError(f"{path}: is given for two files, of which one would be lost; give each its own path")
        seen.add(place)
        _refuse_other(kind, path)


def _refuse_other(kind: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotWrite(f"{path}: what lies there cannot be looked at: {error.strerror}; give another path") from None
    if head and not KINDS[kind](head):
        raise CannotWrite(
            f"{path}: what lies there is no {kind} file, and would be lost; move it away, or give another path"
        )
