"""However many loaders share a request, what comes of it is the same, in the same order."""

from __future__ import annotations

import errno
import gc
import logging
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import open_dataset
from pipeline.datasets.base import ArrayDataset, Dataset, Ints, Samples
from pipeline.views import view_spec
from pipeline.views.fetch import Fetched, Fetcher
from schemas.records import ViewSpec

LOADERS = (2, 3, 8)


class Labelled:
    """Every 11th item cannot be read, every 13th is of another shape; labels are learnt by reading."""

    num_classes = 5
    thread_safe = True

    def __init__(self) -> None:
        self.readers: set[str] = set()

    def __len__(self) -> int:
        return 200

    def __getitem__(self, sample_id: int) -> tuple[dict[str, Any], int]:
        self.readers.add(threading.current_thread().name)
        time.sleep(0.0003)
        if sample_id % 11 == 5:
            raise ValueError(f"sample {sample_id} is cut short")
        return {"x": np.full(7 if sample_id % 13 == 3 else 4, sample_id, np.float32)}, sample_id % 5


made: list[Labelled] = []


def labelled() -> Labelled:
    made.append(Labelled())
    return made[-1]


def unsafe() -> Labelled:
    found = labelled()
    found.thread_safe = False
    return found


def jitter(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A view that has none of every 17th sample."""
    if int(sample["x"].flat[0]) % 17 == 2:
        raise ValueError("nothing to see")
    return {"x": (sample["x"] + rng.random(sample["x"].shape)).astype(np.float32)}


jitter.thread_safe = True  # type: ignore[attr-defined]


def twitch(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The same, by an author who does not say that threads may share it."""
    return jitter(sample, rng)


def photographs(folder: Path) -> Dataset:
    """Forty images of three sizes and modes in two classes, of which the seventh is cut short."""
    for number in range(40):
        place = folder / ("cats" if number % 3 else "dogs") / f"{number:02}.{'png' if number % 2 else 'jpg'}"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40 + number % 3 * 17, 61, 3), np.uint8)
        Image.fromarray(pixels).convert("L" if number % 5 == 0 else "RGB").save(place)
        if number == 7:
            place.write_bytes(place.read_bytes()[:300])
    return open_dataset(f"images:{folder}?size=24")


def fetched(dataset: Dataset, view: ViewSpec, loaders: int, ids: Ints, size: tuple[int, ...] | None) -> list[Fetched]:
    fetcher = Fetcher(dataset, view, loaders)
    return [fetcher.fetch(part, seed, size) for part, seed in ((ids, 3), (ids[::-1], 4), (ids[:1], 5), (ids[:0], 6))]


@pytest.mark.parametrize("loaders", LOADERS)
@pytest.mark.parametrize(
    ("uri", "view", "params", "size"),
    [
        ("digits?split=train", "affine", {"rotation": 15.0, "noise": 0.1}, (12, 12)),
        ("mnist1d?n=500", "signal", {"noise": 0.1}, None),
        ("photographs", "crop_flip", {"min_area": 0.3, "flip": 0.5}, (16, 16)),
        ("test_loaders:labelled", "none", {}, None),
        ("test_loaders:labelled", "test_loaders:jitter", {}, None),
    ],
)
def test_any_number_of_loaders_gives_the_same(
    uri: str, view: str, params: dict[str, Any], size: tuple[int, ...] | None, loaders: int, tmp_path: Path
) -> None:
    def opened() -> Dataset:
        return photographs(tmp_path) if uri == "photographs" else open_dataset(uri)

    spec, count = view_spec(view, params), opened().num_samples
    ids = np.random.default_rng(1).integers(0, count, 150)
    ids[[0, 20, 21, 149]] = (-1, count, 5, 2**40)
    alone, shared = (fetched(opened(), spec, number, ids, size) for number in (1, loaders))
    assert len(alone[0].faults) >= 3
    for one, other in zip(alone, shared, strict=True):
        assert other.kept_rows.tolist() == one.kept_rows.tolist()
        assert other.labels.tolist() == one.labels.tolist()
        assert other.faults == one.faults
        assert list(other.inputs) == list(one.inputs)
        for name, values in one.inputs.items():
            assert (other.inputs[name].dtype, other.inputs[name].shape) == (values.dtype, values.shape)
            assert other.inputs[name].tobytes() == values.tobytes()


class Slow(ArrayDataset):
    """Some samples take long, and some cannot be had now."""

    away: frozenset[int] = frozenset()
    meeting: threading.Barrier | None = None

    def read(self, sample_ids: Ints) -> Samples:
        if self.meeting is not None:
            self.meeting.wait(20)
        if 0 in sample_ids:
            time.sleep(0.3)
        for sample_id in sample_ids.tolist():
            if sample_id in self.away:
                raise OSError(errno.EIO, f"Input/output error at {sample_id}")
        return super().read(sample_ids)


def slow(**attributes: Any) -> Fetcher:
    kind = type("Slow", (Slow,), attributes)
    fetcher = Fetcher(kind("mount", {"x": np.arange(64.0)}, np.arange(64)), view_spec("none", {}), loaders=4)
    kind.away, kind.meeting = frozenset(), None
    fetcher.fetch(np.arange(1, 2), 0)  # the first request is not shared out
    for name, value in attributes.items():
        setattr(kind, name, value)
    return fetcher


def test_a_slow_loader_reorders_nothing() -> None:
    got = slow().fetch(np.arange(64), 0)
    assert got.inputs["x"].tolist() == got.labels.tolist() == got.kept_rows.tolist() == list(range(64))


def test_what_storage_raises_first_in_the_order_of_the_rows_is_raised_and_the_next_request_is_whole() -> None:
    fetcher = slow(away=frozenset({2, 9, 63}))
    with pytest.raises(OSError, match="error at 2"):
        fetcher.fetch(np.arange(64), 0)
    type(fetcher.dataset).away = frozenset()  # type: ignore[attr-defined]
    assert fetcher.fetch(np.arange(64), 0).kept_rows.tolist() == list(range(64))


def test_loaders_read_side_by_side() -> None:
    fetcher = slow(meeting=threading.Barrier(4))  # nobody gets past it alone
    assert fetcher.fetch(np.arange(64), 0).kept_rows.tolist() == list(range(64))
    assert fetcher.busy > 0


@pytest.mark.parametrize(
    ("uri", "view", "says"),
    [
        ("test_loaders:unsafe", "test_loaders:jitter", "dataset test_loaders:unsafe: no `thread_safe = True`"),
        ("test_loaders:labelled", "test_loaders:twitch", "view test_loaders:twitch: no `thread_safe = True`"),
        ("test_loaders:labelled", "test_loaders:jitter+test_loaders:twitch", "no `thread_safe = True`"),
    ],
)
def test_code_of_a_user_is_run_by_one_loader_unless_it_says_that_it_is_thread_safe(
    uri: str, view: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    def readers(uri: str, view: str) -> set[str]:
        fetcher = Fetcher(open_dataset(uri), view_spec(view, {}), loaders=4)
        made[-1].readers.clear()
        for _ in range(3):
            fetcher.fetch(np.arange(200), 0)
        return made[-1].readers

    with caplog.at_level(logging.WARNING):
        assert len(readers("test_loaders:labelled", "test_loaders:jitter")) > 1
        assert caplog.text == ""
        assert readers(uri, view) == {threading.current_thread().name}
    assert says in caplog.text
    assert "one loader reads, not 4" in caplog.text


def test_the_threads_of_loaders_end_with_them(eventually: Any) -> None:
    def threads() -> int:
        return sum(thread.name.startswith("views-") for thread in threading.enumerate())

    gc.collect()
    eventually(lambda: threads() == 0)
    fetcher = slow()
    fetcher.fetch(np.arange(64), 0)
    assert threads() == 3
    del fetcher
    gc.collect()
    eventually(lambda: threads() == 0)


def test_closed_loaders_end_their_threads_and_what_is_asked_for_then_is_the_same() -> None:
    before = set(threading.enumerate())
    dataset, ids = ArrayDataset("a", {"x": np.arange(50.0)}, np.zeros(50, np.int64)), np.arange(50)
    fetcher = Fetcher(dataset, view_spec("none", {}), 3)
    whole = [fetcher.fetch(ids, 0) for _ in range(2)][-1]
    fetcher.close()
    fetcher.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
    assert set(threading.enumerate()) <= before
    assert np.array_equal(fetcher.fetch(ids, 0).inputs["x"], whole.inputs["x"])


def test_numbers_of_another_byte_order_come_as_this_machines_own() -> None:
    values = np.random.default_rng(0).random((20, 1, 8, 8))
    own, other = (ArrayDataset("x", {"x": values.astype(kind)}, np.zeros(20, int)) for kind in ("=f4", ">f4"))
    given = [Fetcher(each, view_spec("none", {})).fetch(np.arange(20), 0).inputs["x"] for each in (own, other)]
    assert given[1].dtype.isnative
    assert given[1].tobytes() == given[0].tobytes()
