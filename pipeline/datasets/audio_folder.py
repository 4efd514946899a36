"""A folder of recordings, WAV and FLAC: one subfolder a class, sorted by name; those directly in it are unlabelled.

L: points of a waveform.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Dataset, Field, Ints, Samples
from pipeline.datasets.folder import FilesByClass, files_by_class, open_folder
from pipeline.datasets.params import Params
from schemas.errors import ConfigError

SUFFIXES = (".flac", ".wav")
FORMATS = ("FLAC", "RF64", "WAV", "WAVEX")
"""By content. Others, MP3 and Ogg among them, decode to other bits with another version of their library."""
SUBTYPES = ("ALAW", "DOUBLE", "FLOAT", "PCM_16", "PCM_24", "PCM_32", "PCM_S8", "PCM_U8", "ULAW")
"""Of the same reason: a WAV file may hold GSM or ADPCM."""

_LOOKED_AT = 8
"""Files whose rate is looked at when a folder is opened, where a line to the user is cheap."""
_RIFF_HEAD = 8
_SIZE_NOT_KNOWN = (0, 0xFFFFFFFF)
"""What who writes to a pipe puts for the size of a WAV file."""


@dataclass(frozen=True, slots=True, eq=False)
class AudioFolder(FilesByClass):
    """Recordings decoded as they are read: of a long one its middle, a short one in the middle of silence."""

    rate: int
    """Points a second, of every file."""
    length: int
    """L"""

    @property
    def fields(self) -> dict[str, Field]:
        """One: "waveform" [1, L] float32, whose full scale is -1 to 1."""
        return {"waveform": Field((1, self.length), "float32")}

    def read(self, sample_ids: Ints) -> Samples:
        """The waveform of each recording."""
        need_soundfile()
        waves = np.zeros((len(sample_ids), 1, self.length), np.float32)
        rows, faults = self.decoded(sample_ids, lambda row, place, raw: _put(waves[place, 0], raw, self.rate))
        return Samples({"waveform": waves[: len(rows)]}, rows, faults)


def audio_folder(path: str, params: dict[str, str]) -> Dataset:
    """`audio:/data/words?split=train&rate=16000&length=16000`, from `/data/words/train/<class>/<file>`.

    Raises ConfigError for a missing or empty folder, a link that leads out of it, files of another rate, and as
    `need_soundfile`.
    """
    taken = Params("audio", params)
    split = taken.text("split", "")
    rate = taken.number("rate", 16_000, 1_000, 384_000)
    length = taken.number("length", 16_000, 1, 1 << 25)
    taken.done()
    need_soundfile()
    root, folder = open_folder("audio", path, split)
    files, labels, names = files_by_class(root, folder, SUFFIXES)
    if not files:
        raise ConfigError(f"no recordings in {folder} or its subfolders (known: {' '.join(SUFFIXES)})")
    uri = f"audio:{path}?" + (f"split={split}&" if split else "") + f"rate={rate}&length={length}"
    opened = AudioFolder(uri, folder, files, labels, names, rate, length)
    _refuse_other_rates(opened)
    return opened


def need_soundfile() -> None:
    """Raise ConfigError where the library is not there that decodes recordings."""
    try:
        import soundfile  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: the package without its libsndfile
        raise ConfigError("dataset audio needs soundfile: pip install 'distillog[audio]'") from error


def _refuse_other_rates(opened: AudioFolder) -> None:
    """A mistaken `rate` is told at once; single files of another rate are faults of their rows."""
    found: dict[int, str] = {}
    for sample_id in range(0, len(opened.files), -(-len(opened.files) // _LOOKED_AT)):
        try:
            with _opened(opened.raw(sample_id)) as recording:
                found.setdefault(int(recording.samplerate), opened.files[sample_id])
        except ValueError:
            continue
    if found and opened.rate not in found:
        rate, file = next(iter(found.items()))
        raise ConfigError(
            f"dataset audio: {opened.folder / file} has {rate:,} points a second and not {opened.rate:,}: give "
            f"rate={rate}, or resample the files once, beforehand"
        )


def _put(out: npt.NDArray[np.float32], raw: bytes, rate: int) -> None:
    """Write a recording's middle L points into `out` [L] of zeros, or all of a shorter one into the middle of it.

    Channels are averaged in their order, in float64. Raises ValueError for what is no such recording.
    """
    with _opened(raw) as recording:
        if recording.samplerate != rate:
            raise ValueError(f"has {recording.samplerate:,} points a second and not {rate:,}: resample it")
        count = min(len(out), recording.frames)
        if not count:
            raise ValueError("holds no sound")
        try:
            recording.seek((recording.frames - count) // 2)
            points = recording.read(count, dtype="float32", always_2d=True)
        except RuntimeError as error:
            raise _refused(error) from None
    if len(points) != count:
        raise ValueError("is cut off")
    mixed = points[:, 0]
    if points.shape[1] > 1:
        total = np.zeros(count)
        for channel in points.T:
            total += channel
        mixed = (total / points.shape[1]).astype(np.float32)
    if not np.isfinite(mixed).all():
        raise ValueError("holds a point that is not finite")
    start = (len(out) - count) // 2
    out[start : start + count] = mixed


def _opened(raw: bytes) -> Any:
    """A recording, as soundfile has it. Raises ValueError for what is none that decodes to the same bits anywhere."""
    import soundfile

    if not raw:
        raise ValueError("the file is empty")
    size = int.from_bytes(raw[4:_RIFF_HEAD], "little")
    # Of a WAV file that is cut off, libsndfile gives what is there, without a word.
    if raw[:4] == b"RIFF" and size not in _SIZE_NOT_KNOWN and size > len(raw) - _RIFF_HEAD:
        raise ValueError(f"is cut off: {len(raw):,} bytes of {size + _RIFF_HEAD:,}")
    try:
        opened = soundfile.SoundFile(io.BytesIO(raw))
    except RuntimeError as error:
        raise _refused(error) from None
    if opened.format not in FORMATS or opened.subtype not in SUBTYPES:
        with opened:
            raise ValueError(f"is {opened.format} of {opened.subtype}: give FLAC, or WAV of plain numbers")
    return opened


def _refused(error: RuntimeError) -> ValueError:
    """Without the address of memory that soundfile's own text has in it."""
    return ValueError(f"cannot be decoded: {getattr(error, 'error_string', error)}")
