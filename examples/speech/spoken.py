"""Keywords spoken by eSpeak NG, as a folder of FLAC files; voices of the test set are none of those of training.

A voice is one of eSpeak's variants (a person's manner: pitch, formants, breath); each word is spoken in an accent of
English, at a speed and a pitch that are hashes of voice, word and take. The synthesiser's own noise differs from call
to call, so that words are spoken once and kept, with a hash of what was said.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from pipeline.hashing import hash_int, tag
from schemas.errors import ConfigError, DistillogError

RATE = 22_050
"""Points a second, eSpeak's."""
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
"""Those of Google's Speech Commands."""
ACCENTS = ("en-us", "en-us-nyc", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
SPEEDS = (120, 220)
"""Words a minute; a word lasts 0.2 to 0.8 s."""
PITCHES = (25, 75)
TEST_SHARE = 4
"""One family of voices of so many is for the test."""
CONTENTS = "recordings.json"

_SYNCHRONOUS, _UTF_8 = 2, 1
_SPEED, _PITCH = 1, 3
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(folder: Path, words: Sequence[str], num_voices: int, takes: int) -> dict[str, object]:
    """Write train/WORD/VOICE-TAKE.flac and test/..., unless they lie there whole; return what is there.

    `num_voices` are those of training and test together, the first by a hash. Raises ConfigError without the package
    espeakng-loader, DistillogError where a voice says nothing.
    """
    asked = {"words": list(words), "voices": num_voices, "takes": takes, "rate": RATE}
    found = _kept(folder, asked)
    if found:
        return found
    if folder.exists():
        shutil.rmtree(folder)
    synthesiser = Synthesiser()
    train, test = voices(synthesiser.variants, num_voices)
    for split, names in (("train", train), ("test", test)):
        for word in words:
            place = folder / split / word
            place.mkdir(parents=True)
            for voice in names:
                for take in range(takes):
                    draw = hash_int(tag("examples.speech"), tag(f"{voice}/{word}"), take)
                    accent = ACCENTS[draw % len(ACCENTS)]
                    speed, pitch = (low + (draw >> at) % (high - low + 1) for at, (low, high) in _DRAWN)
                    points = synthesiser.say(word, f"{accent}+{voice}", speed, pitch)
                    soundfile.write(place / f"{voice.replace(' ', '_')}-{take}.flac", points, RATE, subtype="PCM_16")
    contents = {"train_voices": train, "test_voices": test, "sha256": _hash(folder), **asked}
    # Last: what has this file is whole.
    (folder / CONTENTS).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    return contents


_DRAWN = ((8, SPEEDS), (24, PITCHES))


class Synthesiser:
    """The library of the wheel espeakng-loader, by ctypes. One of a process."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise ConfigError("the words are spoken by eSpeak NG: pip install espeakng-loader") from error
        data = espeakng_loader.get_data_path()
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        if self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), 0) != RATE:
            raise DistillogError(f"eSpeak NG does not begin with {RATE} points a second of {data}")
        self.variants = sorted(path.name for path in Path(data, "voices", "!v").iterdir())
        self._said: list[np.ndarray] = []
        # ctypes keeps no callback by itself.
        self._callback = _CALLBACK(self._heard)
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, word: str, voice: str, speed: int, pitch: int) -> np.ndarray:
        """Return [n] int16. Raises DistillogError where there is no such voice, or it says nothing."""
        self._said.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise DistillogError(f"eSpeak NG has no voice {voice}")
        self._library.espeak_SetParameter(_SPEED, speed, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        text = word.encode()
        self._library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF_8, None, None)
        self._library.espeak_Synchronize()
        points = np.concatenate([np.empty(0, np.int16), *self._said])
        if not points.any():
            raise DistillogError(f"eSpeak NG says nothing for {word!r} as {voice}")
        return points

    def _heard(self, points: ctypes._Pointer[ctypes.c_short], count: int, events: int | None) -> int:
        if points and count > 0:
            self._said.append(np.ctypeslib.as_array(points, (count,)).copy())
        return 0


def voices(variants: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """(those of training, those of the test), `count` in all; what are variants of one voice (f1, f2) stay together."""
    families = {name: name.lower().rstrip("0123456789") for name in variants}
    for name, family in families.items():
        longer = [other for other in families.values() if len(other) > 3 and family.startswith(other)]
        families[name] = min(longer, key=len, default=family)
    drawn = sorted(variants, key=lambda name: hash_int(tag("examples.speech.voice"), tag(name)))[:count]
    test = [name for name in drawn if not hash_int(tag("examples.speech.family"), tag(families[name])) % TEST_SHARE]
    return [name for name in drawn if name not in test], test


def _kept(folder: Path, asked: dict[str, object]) -> dict[str, object]:
    """What lies there, if it is all of what is asked for, else nothing."""
    try:
        contents: dict[str, object] = json.loads((folder / CONTENTS).read_bytes())
        whole = asked.items() <= contents.items() and contents["sha256"] == _hash(folder)
    except (OSError, ValueError, KeyError):
        return {}
    return contents if whole else {}


def _hash(folder: Path) -> str:
    """Hex SHA-256 over names and bytes of all recordings."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.flac")):
        raw = path.read_bytes()
        digest.update(f"{path.relative_to(folder)}\0{len(raw)}\0".encode() + raw)
    return digest.hexdigest()
