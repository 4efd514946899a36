"""The example of spoken words: who speaks in the test, what is kept, and that all of it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import ConfigError, RunLocked

SCRIPT = Path(__file__).parents[2] / "examples" / "speech" / "speech.py"
sys.path.insert(0, str(SCRIPT.parent))

import speech  # noqa: E402
import spoken  # noqa: E402


def test_voices_of_the_test_are_none_of_training_nor_variants_of_theirs():
    pairs = [
        ("abc", "abc2"),
        ("Def", "def7"),
        ("anika", "anikaRobot"),
        ("m", "m1"),
        ("whisper", "whisperf"),
        ("x", "x3"),
    ]
    variants = [name for pair in pairs for name in pair]
    train, test = spoken.voices(variants, len(variants))
    assert sorted(train + test) == sorted(variants)
    assert train
    assert test
    assert all((first in test) == (second in test) for first, second in pairs)


def test_words_are_spoken_once_and_anew_where_one_of_them_is_damaged(tmp_path):
    folder = tmp_path / "words"
    first = spoken.speak(folder, ["yes", "no"], 8, 1)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.flac")}
    assert len(times) == 16
    assert spoken.speak(folder, ["yes", "no"], 8, 1) == first
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.flac")} == times
    next(iter(times)).write_bytes(b"damaged")
    spoken.speak(folder, ["yes", "no"], 8, 1)
    assert not [path for path in times if path.read_bytes() == b"damaged"]


def test_a_word_sounds_and_another_one_sounds_otherwise():
    synthesiser = spoken.Synthesiser()
    yes, no = (synthesiser.say(word, "en-us+f1", 170, 50) for word in ("yes", "no"))
    assert yes.dtype == np.int16
    assert 0.1 < len(yes) / spoken.RATE < 1.5
    assert abs(yes).max() > 2000
    assert len(yes) != len(no)


def test_a_folder_that_the_example_did_not_make_is_refused_and_a_second_call_in_one_too(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not made by this example"):
        speech.take(tmp_path, speech.MARKER)
    with speech.take(tmp_path / "own", speech.MARKER), pytest.raises(RunLocked, match="runs in it already"):
        speech.take(tmp_path / "own", speech.MARKER)


@pytest.mark.faults
@pytest.mark.short
@pytest.mark.timeout(300)
def test_one_command_ends_in_a_table_of_a_teacher_and_two_kinds_of_students(tmp_path):
    environment = {name: text for name, text in os.environ.items() if name != "KAFKA_BOOTSTRAP_SERVERS"}
    command = [sys.executable, SCRIPT, "--small", "--folder", tmp_path / "speech"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    figures = json.loads((tmp_path / "speech" / "report.json").read_text())
    assert not set(figures["recordings"]["train_voices"]) & set(figures["recordings"]["test_voices"])
    assert figures["teacher"]["accuracy"] > 0.4  # of four words
    sizes = {each["parameters"] for found in figures["students"].values() for each in found}
    assert all(10 * size < figures["teacher"]["parameters"] for size in sizes)
    for row in ("| teacher |", "| student with the teacher |", "| student without the teacher |"):
        assert sum(line.startswith(row) for line in done.stdout.splitlines()) == 1
    assert not list((tmp_path / "speech" / "broker").glob("*.pid"))
