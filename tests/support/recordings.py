"""Small folders of recordings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 8_000


def points(count: int, seed: int = 0, channels: int = 1) -> Any:
    """[count, channels] int16"""
    return np.random.default_rng(seed).integers(-30_000, 30_000, (count, channels)).astype(np.int16)


def encoded(values: Any, kind: str = "WAV", subtype: str | None = "PCM_16", rate: int = RATE) -> bytes:
    """The bytes of a file of [count] or [count, channels] values."""
    out = io.BytesIO()
    soundfile.write(out, values, rate, format=kind, subtype=subtype)
    return out.getvalue()


def recordings(folder: Path, count: int = 6, length: int = 60) -> Path:
    """Write WAV and FLAC files of about `length` points, by turns of the classes "no" and "yes"; return the folder."""
    for number in range(count):
        place = folder / ("yes" if number % 2 else "no")
        place.mkdir(parents=True, exist_ok=True)
        kind = "FLAC" if number % 4 > 1 else "WAV"
        (place / f"{number:04d}.{kind.lower()}").write_bytes(
            encoded(points(length + 10 * (number % 3 - 1), number), kind)
        )
    return folder
