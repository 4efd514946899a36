"""Files of every kind and state as recordings: what is heard of them, and what is a fault of its row."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recordings import RATE, encoded, points, recordings

from pipeline.datasets import open_dataset
from pipeline.datasets.base import Dataset, Samples
from schemas.errors import ConfigError


def dataset_of(folder: Path, *files: bytes, length: int = 40) -> Dataset:
    folder.mkdir(exist_ok=True)
    for number, raw in enumerate(files):
        (folder / f"{number}.wav").write_bytes(raw)
    return open_dataset(f"audio:{folder}?rate={RATE}&length={length}")


def heard(folder: Path, *files: bytes, length: int = 40) -> Samples:
    dataset = dataset_of(folder, *files, length=length)
    return dataset.read(np.arange(dataset.num_samples))


def test_subfolders_are_classes_and_files_beside_them_unlabelled(tmp_path):
    folder = recordings(tmp_path / "words")
    (folder / "stray.wav").write_bytes(encoded(points(5)))
    (folder / "empty").mkdir()
    dataset = open_dataset(f"audio:{folder}?rate={RATE}&length=60")
    assert dataset.class_names == ("no", "yes")
    assert dataset.labels(np.arange(7)).tolist() == [-1, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "WAVEX", "RF64"])
def test_sixteen_bits_come_as_they_are_over_2_to_the_15(tmp_path, kind):
    values = points(40)[:, 0]
    found = heard(tmp_path, encoded(values, kind)).fields["waveform"]
    assert found.dtype == np.float32
    assert found.tobytes() == (values / np.float32(2**15)).astype(np.float32).tobytes()


@pytest.mark.parametrize(("count", "first", "zeros"), [(40, 0, 0), (46, 3, 0), (47, 3, 0), (30, 0, 5), (1, 0, 19)])
def test_a_long_file_is_cut_to_its_middle_and_a_short_one_lies_in_the_middle_of_silence(tmp_path, count, first, zeros):
    values = points(count)[:, 0]
    found = heard(tmp_path, encoded(values)).fields["waveform"][0, 0] * 2**15
    there = values[first : first + 40]
    assert found[zeros : zeros + len(there)].tolist() == there.tolist()
    assert not found[:zeros].any()
    assert not found[zeros + len(there) :].any()


def test_channels_are_averaged(tmp_path):
    values = points(40, channels=3)
    found = heard(tmp_path, encoded(values)).fields["waveform"][0, 0]
    assert found.tolist() == ((values / 2**15).sum(axis=1) / 3).astype(np.float32).tolist()


def cut_off(raw: bytes) -> bytes:
    return raw[: len(raw) - 10]


FAULTY = {
    "the file is empty": b"",
    r"is cut off: 114 bytes of 124": cut_off(encoded(points(40))),
    "cannot be decoded: ": cut_off(encoded(points(40), "FLAC")),
    "cannot be decoded: Format not recognised": b"no recording at all",
    "has 16,000 points a second and not 8,000: resample it": encoded(points(40), rate=16_000),
    "holds no sound": encoded(points(0)),
    "is WAV of IMA_ADPCM: give FLAC, or WAV of plain numbers": encoded(points(4000), subtype="IMA_ADPCM"),
    "is AIFF of PCM_16": encoded(points(40), "AIFF"),
    "holds a point that is not finite": encoded(np.full(40, np.nan), subtype="FLOAT"),
}


@pytest.mark.parametrize("reason", FAULTY)
def test_what_cannot_be_heard_is_a_fault_of_its_row_with_the_files_name(tmp_path, reason):
    good = encoded(points(40))
    found = heard(tmp_path, good, FAULTY[reason], good)
    ((row, why),) = found.faults
    assert row == 1
    assert re.match(rf"1\.wav: .*{reason}", why)
    assert "0x" not in why
    assert found.kept_rows.tolist() == [0, 2]
    assert found.fields["waveform"][0].tobytes() == found.fields["waveform"][1].tobytes()


def test_a_wav_file_whose_writer_did_not_know_its_size_is_heard(tmp_path):
    raw = bytearray(encoded(points(40)))
    raw[4:8] = struct.pack("<I", 0xFFFFFFFF)
    assert not heard(tmp_path, bytes(raw)).faults


def test_a_folder_of_another_rate_is_refused_at_once_and_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"0\.wav has 44,100 points a second and not 8,000: give rate=44100"):
        dataset_of(tmp_path, encoded(points(40), rate=44_100))


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.wav").write_bytes(encoded(points(40)))
    folder = recordings(tmp_path / "words")
    (folder / "no" / "more.wav").symlink_to(tmp_path / "secret.wav")
    with pytest.raises(ConfigError, match="leads outside"):
        open_dataset(f"audio:{folder}?rate={RATE}")


def test_a_folder_without_recordings_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no recordings in .* \(known: \.flac \.wav\)"):
        open_dataset(f"audio:{tmp_path}")


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["WAV", "FLAC"]),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=5),
)
def test_broken_bytes_are_heard_in_full_or_a_fault_and_twice_the_same(tmp_path_factory, kind, flips):
    raw = bytearray(encoded(points(40), kind))
    for place, bits in flips:
        raw[place % len(raw)] ^= bits
    folder = tmp_path_factory.mktemp("broken")
    dataset = dataset_of(folder, encoded(points(40)), bytes(raw))
    first, again = (dataset.read(np.arange(2)) for _ in range(2))
    assert len(first.kept_rows) + len(first.faults) == 2
    assert first.faults == again.faults
    assert first.fields["waveform"].tobytes() == again.fields["waveform"].tobytes()
    assert np.isfinite(first.fields["waveform"]).all()
