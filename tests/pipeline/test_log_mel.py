"""Log-mel features: the textbook's numbers, one order of sums or another, and what is drawn."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets.base import ArrayDataset
from pipeline.views import evaluation_view, find_view, view_spec
from pipeline.views.fetch import Fetcher
from pipeline.views.log_mel import _COSINE, _LOUDEST, _POINT, MAX_WINDOW, _tables
from pipeline.views.logarithm import ln, root
from pipeline.views.positions import what_is_chosen
from schemas.errors import ConfigError

SMALL = {"window": 100, "hop": 40, "mels": 12, "rate": 4000}
FRAMES = 1 + (1000 - 100) // 40


def waves(count: int = 8, length: int = 1000, seed: int = 0) -> Any:
    return (np.random.default_rng(seed).normal(size=(count, 1, length)) * 0.1).astype(np.float32)


def seen(values: Any, seed: int = 5, size: tuple[int, ...] | None = None, **params: Any) -> dict[str, Any]:
    spec = view_spec("log_mel", {**SMALL, **params})
    return find_view("log_mel").apply({"waveform": values}, np.arange(len(values)), seed, dict(spec.params), size)


def by_the_textbook(values: Any, window: int, hop: int, mels: int, rate: float) -> Any:
    """[N, M, T] by NumPy's FFT, logarithms and powers, in float64."""
    frames = np.lib.stride_tricks.sliding_window_view(values[:, 0].astype(np.float64), window, axis=1)[:, ::hop]
    power = np.abs(np.fft.rfft(frames * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)))) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 1400), mels + 2) / 2595) - 1)
    places = np.fft.rfftfreq(window, 1 / rate)
    bands = [np.interp(places, edges[band : band + 3], [0, 1, 0]) for band in range(mels)]
    return np.log(power @ np.array(bands).T + 1e-6).transpose(0, 2, 1)


@pytest.mark.parametrize(
    ("window", "hop", "mels", "rate"), [(100, 40, 12, 4000), (101, 7, 5, 8000), (512, 100, 40, 16000)]
)
def test_it_is_the_textbooks_log_mel(window, hop, mels, rate):
    found = seen(waves(), window=window, hop=hop, mels=mels, rate=rate)
    assert set(found) == {"log_mel"}
    wanted = by_the_textbook(waves(), window, hop, mels, rate)
    assert found["log_mel"].shape == (8, 1, *wanted.shape[1:])
    assert np.abs(found["log_mel"][:, 0] - wanted).max() < 2e-3


class Recordings(ArrayDataset):
    rate = 8000


@pytest.mark.parametrize("name", ["log_mel", "signal+log_mel"])
def test_another_rate_than_the_datasets_is_refused(name: str) -> None:
    data = Recordings("mine", {"waveform": waves()}, np.zeros(8, np.int64), 1)
    label = "log_mel." if "+" in name else ""
    params = {f"{label}{key}": value for key, value in SMALL.items()}
    with pytest.raises(ConfigError, match=r"view log_mel: rate is 4000, and dataset mine has 8000 points a second"):
        Fetcher(data, view_spec(name, params))
    fitting = Fetcher(data, view_spec(name, params | {f"{label}rate": 8000}))
    assert len(fitting.fetch(np.arange(8), 1).kept_rows) == 8


def half_as_fast(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {name: values[..., ::2] for name, values in sample.items()}


def test_behind_a_view_of_ones_own_the_rate_is_the_users_to_say() -> None:
    data = Recordings("mine", {"waveform": waves()}, np.zeros(8, np.int64), 1)
    params = {f"log_mel.{key}": value for key, value in SMALL.items()}
    found = Fetcher(data, view_spec(f"{__name__}:half_as_fast+log_mel", params)).fetch(np.arange(8), 1)
    assert found.inputs["log_mel"].shape == (8, 1, 12, 1 + (500 - 100) // 40)


def test_silence_is_the_floor():
    assert np.abs(seen(np.zeros((1, 1, 1000), np.float32))["log_mel"] - np.log(1e-6)).max() < 1e-6


@pytest.mark.parametrize("window", [16, 400, 1023, MAX_WINDOW])
def test_every_partial_sum_of_a_spectrum_is_a_whole_number_that_float64_holds(window):
    table = _tables(window, 1, 16_000).waves
    assert (table == np.rint(table)).all()
    assert abs(table).max() <= _COSINE
    assert abs(table).sum(axis=1).max() * _LOUDEST * _POINT < 2**53


def test_a_spectrum_has_the_same_bits_in_any_order_of_its_sums():
    table = _tables(400, 40, 16_000).waves
    points = np.rint(np.random.default_rng(0).uniform(-16, 16, (400, 50)) * _POINT)
    exact = table.astype(np.int64) @ points.astype(np.int64)
    order = np.random.default_rng(1).permutation(400)
    assert (table @ points == exact).all()
    assert (table[:, order] @ points[order] == exact).all()


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=50))
def test_our_logarithm_is_the_logarithm(values):
    array = np.array(values)
    assert np.allclose(ln(array), np.log(array), rtol=1e-15, atol=1e-16)


@given(st.floats(1.0, 1000.0, exclude_min=True), st.integers(1, 200))
def test_our_root_is_the_root(value, degree):
    assert root(value, degree) == pytest.approx(value ** (1 / degree), rel=1e-14)


def test_a_shift_is_by_whole_points_and_lets_silence_in():
    click = np.zeros((40, 1, 1000), np.float32)
    click[:, :, 500] = 1.0
    energy = np.exp(seen(click, shift=0.2)["log_mel"][:, 0]).sum(axis=1)
    places = energy.argmax(axis=1) * SMALL["hop"]
    assert places.min() >= 200
    assert places.max() <= 700
    assert len(set(places.tolist())) > 5


def test_masks_are_stretches_of_frames_and_bands_at_the_samples_mean():
    plain, masked = (
        seen(waves(200), **params)["log_mel"][:, 0] for params in ({}, {"time_mask": 0.3, "mel_mask": 0.5})
    )
    hidden = masked != plain
    frames, bands = hidden.all(axis=1), hidden.all(axis=2)
    assert (hidden == (frames[:, None, :] | bands[:, :, None])).all()
    for found, most in ((frames, int(0.3 * FRAMES)), (bands, 6)):
        counts = found.sum(axis=1)
        assert counts.max() <= 2 * most
        assert counts.max() > most
        assert counts.min() == 0
    means = plain.mean(axis=(1, 2))[:, None, None]
    assert np.abs(np.where(hidden, masked - means, 0)).max() < 1e-4


def test_a_masked_sample_does_not_depend_on_how_many_frames_are_computed_at_once(monkeypatch):
    params = {"shift": 0.1, "noise": 0.1, "time_mask": 0.3, "mel_mask": 0.3}
    together = seen(waves(), **params)["log_mel"]
    monkeypatch.setattr(sys.modules["pipeline.views.log_mel"], "_CHUNK_FRAMES", 1)
    assert seen(waves(), **params)["log_mel"].tobytes() == together.tobytes()


def test_an_evaluation_keeps_what_features_are_and_draws_nothing():
    drawn = {"shift": 0.1, "noise": 0.1, "time_mask": 0.3, "mel_mask": 0.3}
    spec = evaluation_view(view_spec("log_mel", {**SMALL, **drawn, "stride": 4}))
    assert spec == view_spec("log_mel", {**SMALL, "stride": 4})
    assert seen(waves(), 1)["log_mel"].tobytes() == seen(waves(), 2)["log_mel"].tobytes()
    beside = evaluation_view(
        view_spec("signal+log_mel", {"signal.shift": 0.1, "log_mel.mels": 9, "log_mel.noise": 0.1})
    )
    assert (beside.params["signal.shift"], beside.params["log_mel.mels"], beside.params["log_mel.noise"]) == (0, 9, 0)


@pytest.mark.parametrize("stride", [1, 3, 4, 100])
def test_a_field_of_the_strided_length_says_where_the_recording_lies(stride):
    values = np.zeros((2, 1, 1000), np.float32)
    values[0, :, 300:400] = 0.5
    heard = seen(values, stride=stride, noise=0.1)["heard"]
    assert (heard.dtype, heard.shape) == (np.uint8, (2, -(-FRAMES // stride)))
    inside = [bool(values[0, 0, at * 40 : at * 40 + 100].any()) for at in range(FRAMES)]
    assert heard[0].tolist() == [any(inside[at : at + stride]) for at in range(0, FRAMES, stride)]
    assert not heard[1].any()


@pytest.mark.parametrize("loaders", [1, 3])
def test_loaders_give_positions_of_another_length_than_the_waveforms(loaders):
    values = waves(9)
    values[:, :, 200:] = 0
    dataset = ArrayDataset("memory", {"waveform": values}, np.full(9, -1))
    fetcher = Fetcher(dataset, view_spec("log_mel", {**SMALL, "stride": 4, "shift": 0.1}), loaders)
    fetcher.fetch(np.arange(9), 1)  # the first is read by one loader
    fetched = fetcher.fetch(np.arange(9), 1)
    fetcher.close()
    assert fetched.inputs["log_mel"].shape == (9, 1, 12, FRAMES)
    assert fetched.inputs["heard"].shape == (9, 6)
    assert 1 <= what_is_chosen(fetched.inputs["heard"] != 0).counts.min() < 6


@pytest.mark.parametrize(
    ("params", "size", "text"),
    [
        ({"window": 2000}, None, "a window of 2000 points is longer than the waveform, 1000"),
        ({"mels": 60}, None, "60 bands are too many for a window of 100 points at rate 4000: none of its frequencies"),
        ({}, (12, 12), r"gives \[12, 23\] \(bands, frames\), not \[12, 12\]"),
        ({"hop": 0}, None, "hop is 0: give a number from 1 to 4096"),
        ({"stride": 1.5}, None, "stride is 1.5: give a whole number"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(params, size, text):
    with pytest.raises(ConfigError, match=text):
        seen(waves(), 1, size, **params)


@pytest.mark.parametrize("fields", [{"image": np.zeros((1, 1, 8, 8), np.float32)}, {"waveform": waves(1).repeat(2, 1)}])
def test_other_fields_than_one_waveform_are_refused(fields):
    with pytest.raises(ConfigError, match=r"needs one float field \[1, length\], the dataset has"):
        find_view("log_mel").apply(fields, np.arange(1), 1, dict(view_spec("log_mel", SMALL).params), None)
