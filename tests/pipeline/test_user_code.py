"""What user code may raise and give: a fault of a row, a fault of the storage, or one line that says what is wrong."""

from __future__ import annotations

import errno
import gzip
import http.client
import io
import re
import sqlite3
import sys
import urllib.error
import zlib

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from pipeline.datasets import open_dataset
from pipeline.datasets.base import Field, Samples
from pipeline.datasets.fingerprint import fingerprint
from pipeline.user_code import blames_sample
from pipeline.views import evaluation_view, view_spec
from pipeline.views.fetch import Fetcher
from pipeline.views.patience import fetch_patiently
from pipeline.views.probe import check_probe, make_probe
from schemas.errors import BadSamples, ConfigError, DataUnavailable, ManifestMismatch

OF_THE_ROW = [
    ValueError("bad"),
    KeyError("boxes"),
    IndexError("list index out of range"),
    TypeError("None"),
    AssertionError(),
    zlib.error("Error -3 while decompressing data"),
    EOFError(),
    Image.DecompressionBombError("too many pixels"),
    UnidentifiedImageError("cannot identify image file"),
    OSError("image file is truncated (3 bytes not processed)"),
    OSError("broken data stream when reading image file"),
    gzip.BadGzipFile("Not a gzipped file"),
]
OF_THE_STORAGE = [
    OSError(errno.EIO, "Input/output error"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "a.png"),
    FileNotFoundError("a.png"),
    ConnectionResetError(),
    TimeoutError("timed out"),
    urllib.error.URLError("no answer"),
    OSError("Can't synchronously read data (file read failed: errno = 5, error message = 'Input/output error')"),
    DataUnavailable("away"),
]


class Things:
    """Twenty items of 4 numbers; number 7 is whatever a test wants, or raises it."""

    num_classes = 3

    def __init__(self, seventh=None, raised=None):
        self.seventh, self.raised = seventh, raised

    def __len__(self):
        return 20

    def __getitem__(self, sample_id):
        if sample_id == 7:
            if self.raised is not None:
                raise self.raised
            return self.seventh
        return np.full(4, sample_id, np.float32), sample_id % 3


class Blocks:
    """The same as a `Dataset`, which reads an order at once."""

    num_samples = 20
    fields = {"input": Field((4,), "float32")}  # noqa: RUF012

    def __init__(self, raised=None, samples=None, labels=None):
        self.raised, self.samples, self.given = raised, samples, labels

    def read(self, sample_ids):
        if self.samples is not None:
            return self.samples
        if self.raised is not None and 7 in sample_ids:
            raise self.raised
        values = np.repeat(sample_ids[:, None], 4, 1).astype(np.float32)
        return Samples({"input": values}, np.arange(len(sample_ids)))

    def labels(self, sample_ids):
        return sample_ids % 3 if self.given is None else self.given


@pytest.fixture
def made(monkeypatch, tmp_path):
    """`made(thing)` opens it as the dataset that a user's factory returns."""
    (tmp_path / "users_factory.py").write_text("thing = None\ndef make(): return thing()\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def opened(thing):
        import users_factory

        users_factory.thing = thing if callable(thing) else lambda: thing
        return open_dataset("users_factory:make")

    return opened


def kind(error):
    return f"{type(error).__name__}: {error}"[:60]


@pytest.mark.parametrize("thing", [Things, Blocks])
@pytest.mark.parametrize("error", OF_THE_ROW, ids=kind)
def test_what_user_code_raises_for_a_sample_is_a_fault_of_its_row(made, thing, error):
    samples = made(thing(raised=error)).read(np.array([3, 7, 9]))
    assert samples.kept_rows.tolist() == [0, 2]
    assert samples.fields["input"][:, 0].tolist() == [3, 9]
    ((row, reason),) = samples.faults
    assert row == 1
    assert "\n" not in reason
    assert str(error).strip("'") in reason
    assert type(error) is ValueError or type(error).__name__ in reason


@pytest.mark.parametrize("thing", [Things, Blocks])
@pytest.mark.parametrize("error", OF_THE_STORAGE, ids=kind)
def test_what_storage_raises_is_no_fault_of_a_row(made, thing, error):
    with pytest.raises(type(error)):
        made(thing(raised=error)).read(np.array([3, 7, 9]))


class Strange(BaseException):
    """Of a user's own, beside Exception."""


class Wordless(RuntimeError):
    def __str__(self):
        raise RuntimeError("no str")


class WordlessStorage(OSError):
    def __str__(self):
        sys.exit("no str")


ENDS = [SystemExit(0), SystemExit("bye"), GeneratorExit(), Strange("odd"), MemoryError(), MemoryError("8 GB")]


def mute(sample, rng):
    """A view that raises what a test wants."""
    raise mute.raised


class RawBlocks(Blocks):
    """One whose stored bytes cannot be had for some IDs."""

    def __init__(self, raised, ids=(7,)):
        super().__init__()
        self.refused, self.ids = raised, ids

    def raw(self, sample_id):
        if sample_id in self.ids:
            raise self.refused
        return bytes([sample_id % 256])


def of_user_code(made, error):
    """what is called -> the call, of all user code that a dataset or view has"""
    seven = np.array([7])
    mute.raised = error
    view = view_spec(f"{__name__}:mute", {})
    return {
        r"make\(\)": lambda: made(raising(error)),
        r"make\(\) ": lambda: made(thing(__len__=raising(error))),
        r"__getitem__\(0\)": lambda: made(thing(__getitem__=raising(error))),
        r"__getitem__\(7\)": lambda: made(Things(raised=error)).read(seven),
        r"__getitem__\(7\) ": lambda: made(Things(raised=error)).labels(seven),
        r"read\(\)": lambda: made(Blocks(raised=error)).read(seven),
        r"labels\(\)": lambda: made(reader(labels=raising(error))).labels(seven),
        r"raw\(7\)": lambda: made(RawBlocks(error)).raw(7),
        r"mute, for sample 7": lambda: Fetcher(made(Things(np.zeros(4, np.float32))), view).fetch(seven, 0),
    }


@pytest.mark.parametrize("error", ENDS, ids=kind)
def test_what_would_end_a_process_is_one_line_that_names_whose_code_raised_it(made, error):
    expected = DataUnavailable if isinstance(error, MemoryError) else ConfigError
    for place, call in of_user_code(made, error).items():
        with pytest.raises(expected, match=rf"{place.strip()} r.*{type(error).__name__}.*{error}") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_ctrl_c_passes_through_user_code(made):
    for call in of_user_code(made, KeyboardInterrupt()).values():
        with pytest.raises(KeyboardInterrupt):
            call()


def test_code_that_exits_while_it_is_imported_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "users_exit.py").write_text("import sys\nsys.exit(0)")
    monkeypatch.syspath_prepend(str(tmp_path))
    for opened in (open_dataset, lambda name: view_spec(name, {})):
        with pytest.raises(ConfigError, match="users_exit:make raised SystemExit: 0"):
            opened("users_exit:make")
    with pytest.raises(ConfigError, match=r"exit\(\) raised SystemExit"):
        open_dataset("builtins:exit")


@pytest.mark.parametrize("thing", [Things, Blocks])
def test_an_exception_without_a_text_is_named_by_its_kind(made, thing):
    samples = made(thing(raised=Wordless())).read(np.array([3, 7, 9]))
    assert samples.faults == ((1, "Wordless"),)
    fetcher = Fetcher(made(thing(raised=WordlessStorage(errno.EIO, "away"))), view_spec("none", {}))
    with pytest.raises(DataUnavailable, match="tried for 0 s"):
        fetch_patiently(fetcher, np.array([7]), 0, seconds=0.0)


def test_a_file_that_pillow_finds_cut_short_is_a_fault_of_its_row_and_a_missing_one_is_not(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    for suffix in ("png", "jpg", "bmp", "tif", "webp", "gif"):
        whole = tmp_path / f"whole.{suffix}"
        Image.fromarray(pixels).save(whole)
        for length in (0, 10, 40, whole.stat().st_size // 2):
            cut = io.BytesIO(whole.read_bytes()[:length])
            with pytest.raises(Exception) as caught:  # noqa: PT011
                Image.open(cut).load()
            assert blames_sample(caught.value), (suffix, length, caught.value)
    with pytest.raises(OSError, match="absent") as caught:
        Image.open(tmp_path / "absent.png")
    assert not blames_sample(caught.value)


class Hiccup(Things):
    """Storage of which each sample of `bad` fails in these ways, one a try, before it can be read."""

    def __init__(self, *raised, bad=(7,)):
        super().__init__()
        self.ways = {sample_id: list(raised) for sample_id in bad}
        self.tries = []

    def __getitem__(self, sample_id):
        self.tries.append(sample_id)
        if self.ways.get(sample_id):
            raise self.ways[sample_id].pop(0)
        return np.full(4, sample_id, np.float32), sample_id % 3


class BlockHiccup(Hiccup):
    """The same as a `Dataset`; the first failure is that of the read of all."""

    num_samples = 20
    fields = {"input": Field((4,), "float32")}  # noqa: RUF012

    def __init__(self, *raised, bad=(7,)):
        super().__init__(raised[0], *raised, bad=bad)

    def read(self, sample_ids):
        values = np.stack([self[sample_id][0] for sample_id in sample_ids.tolist()])
        return Samples({"input": values}, np.arange(len(sample_ids)))

    def labels(self, sample_ids):
        return sample_ids % 3


LOST = http.client.IncompleteRead(b"", 10)
LOCKED = sqlite3.OperationalError("disk I/O error")


@pytest.mark.parametrize("thing", [Hiccup, BlockHiccup])
@pytest.mark.parametrize(
    "raised", [(LOST,), (LOCKED,), (RuntimeError("no answer"),), (OSError("lost"),), (LOST, LOCKED)]
)
def test_a_sample_that_can_be_read_a_moment_later_is_no_fault(made, thing, raised):
    samples = made(thing(*raised)).read(np.array([3, 7, 9]))
    assert samples.faults == ()
    assert samples.fields["input"][:, 0].tolist() == [3, 7, 9]


@pytest.mark.parametrize("thing", [Hiccup, BlockHiccup])
def test_a_sample_that_fails_twice_in_one_way_is_a_fault_and_few_of_a_request_are_tried_again(made, thing):
    items = thing(*[LOST] * 9, bad=range(5, 17))
    samples = made(items).read(np.arange(20))
    assert [row for row, _ in samples.faults] == list(range(5, 17))
    assert samples.faults[0][1].startswith("IncompleteRead")
    assert len(items.tries) <= 20 + 8 + 7


def test_where_more_fail_than_are_tried_again_and_a_second_look_helped_it_is_the_storage(made):
    fetcher = Fetcher(made(Hiccup(LOST, bad=range(5, 17))), view_spec("none", {}))
    with pytest.raises(ConnectionError, match=r"IncompleteRead.*; others were read a moment later"):
        fetcher.fetch(np.arange(20), 0)
    assert fetch_patiently(fetcher, np.arange(20), 0).faults == ()


@pytest.mark.parametrize("thing", [Hiccup, BlockHiccup])
def test_storage_that_shows_itself_at_the_second_look_is_no_fault(made, thing):
    with pytest.raises(ConnectionResetError):
        made(thing(LOST, ConnectionResetError())).read(np.array([3, 7, 9]))


@pytest.mark.parametrize(
    "error", [ValueError("bad"), KeyError("boxes"), zlib.error("Error -3"), UnidentifiedImageError()]
)
def test_what_is_plainly_of_the_sample_is_believed_at_once(made, error):
    items = Hiccup(error)
    assert [row for row, _ in made(items).read(np.array([3, 7, 9])).faults] == [1]
    assert items.tries[1:] == [3, 7, 9]


def test_a_file_that_pillow_finds_cut_short_is_believed_at_once(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("a second look"))
    samples = open_dataset("support.user_data:files?count=1200&cut=700").read(np.array([699, 700, 701]))
    assert [row for row, _ in samples.faults] == [1]


def test_labels_that_can_be_learnt_a_moment_later_are_learnt(made):
    assert made(Hiccup(LOST)).labels(np.array([7, 8])).tolist() == [1, 2]
    raised = [LOST]
    blocks = reader(labels=lambda self, ids: ids % 3 if not raised else raising(raised.pop())())
    assert made(blocks).labels(np.array([7, 8])).tolist() == [1, 2]


def test_a_label_that_could_not_be_learnt_is_said_and_learnt_when_it_can_be(made, caplog):
    items = made(Hiccup(ValueError("bad")))
    assert items.labels(np.array([7, 8])).tolist() == [-1, 2]
    assert "sample 7 counts as unlabelled: bad" in caplog.text
    assert items.labels(np.array([7, 8])).tolist() == [1, 2]


def test_a_view_that_fails_for_a_moment_is_tried_again(made, monkeypatch):
    ways = [LOST]

    def hiccup(sample, rng):
        sample["input"] += rng.random()
        return sample if not ways else raising(ways.pop())()

    monkeypatch.setattr(sys.modules[__name__], "hiccup", hiccup, raising=False)
    fetcher = Fetcher(made(Things(np.zeros(4, np.float32))), view_spec(f"{__name__}:hiccup", {}))
    first, again = fetcher.fetch(np.arange(3), 5), fetcher.fetch(np.arange(3), 5)
    assert first.kept_rows.tolist() == [0, 1, 2]
    assert first.inputs["input"].tobytes() == again.inputs["input"].tobytes()


def test_stored_bytes_that_cannot_be_had_are_counted_and_said(made, caplog):
    good = fingerprint(made(RawBlocks(LOST, ())))
    assert not caplog.records
    assert fingerprint(made(RawBlocks(KeyError("gone")))) != good
    assert "1 of 20 samples cannot be read or decoded, the last because of: " in caplog.text
    assert "sample 7 cannot be read: KeyError: 'gone'" in caplog.text


def test_a_fingerprint_without_the_stored_bytes_of_more_than_one_in_a_hundred_is_refused(made):
    fingerprint(made(RawBlocks(KeyError("gone"), range(5, 15))))
    with pytest.raises(BadSamples, match=r"bytes of more than 10 of 20 samples cannot be read, the last.*'gone'"):
        fingerprint(made(RawBlocks(KeyError("gone"), range(5, 16))))


WRONG_ITEMS = {
    "nothing": (None, "NoneType"),
    "an object": (object(), "object"),
    "a generator": ((x for x in range(4)), "generator"),
    "objects": (np.array([{}, None, 3, 4], object), "object"),
    "text": (np.array(["a"] * 4), "<U1"),
    "no field": ({}, "without fields"),
    "a field without a name": ({3: np.zeros(4, np.float32)}, "names"),
    "another shape": (np.zeros(5, np.float32), "the first sample"),
    "another dtype": (np.zeros(4), "the first sample"),
    "no axis": (np.float32(3), "the first sample"),
    "ragged": ([[1.0], [1.0, 2.0]], "inhomogeneous"),
    "three parts": ((np.zeros(4, np.float32), 1, 2), "tuple of 3"),
    "a label of text": ((np.zeros(4, np.float32), "cat"), "'cat' is no whole number"),
    "half a label": ((np.zeros(4, np.float32), 1.5), "1.5 is no whole number"),
    "no label": ((np.zeros(4, np.float32), None), "None is no whole number"),
    "a label too high": ((np.zeros(4, np.float32), 3), "label 3 is none of 3 classes"),
    "a label too low": ((np.zeros(4, np.float32), -2), "label -2 is none of 3 classes"),
}


@pytest.mark.parametrize("name", WRONG_ITEMS)
def test_an_item_that_is_none_is_a_fault_of_its_row(made, name):
    item, reason = WRONG_ITEMS[name]
    dataset = made(Things(item))
    samples = dataset.read(np.arange(20))
    assert [row for row, _ in samples.faults] == [7]
    assert reason in samples.faults[0][1]
    assert len(samples.fields["input"]) == 19
    assert dataset.labels(np.array([6, 7, 8])).tolist() == [0, -1, 2]


class Photos(Things):
    """As they were taken: each of another height."""

    def __getitem__(self, sample_id):
        return {"image": np.zeros((3, 40 + sample_id, 60), np.uint8)}


def test_images_of_unequal_size_are_refused_with_the_reason_when_a_stream_is_made(made):
    with pytest.raises(BadSamples) as refused:
        make_probe(Fetcher(made(Photos()), view_spec("none", {})))
    said = re.fullmatch(
        r"dataset users_factory:make: sample (\d+) is image uint8 \[3, (\d+), 60\], the first sample image uint8 "
        r"\[3, 40, 60\]: give all in one shape and dtype; of 64 samples that were tried, \d are fit",
        str(refused.value),
    )
    assert said
    assert int(said[2]) == 40 + int(said[1])


def test_a_buffer_that_items_share_is_copied(made):
    class Shared(Things):
        def __getitem__(self, sample_id):
            self.buffer[:] = sample_id
            return self.buffer

        buffer = np.zeros(4, np.float32)

    assert made(Shared()).read(np.array([1, 2, 3])).fields["input"][:, 0].tolist() == [1, 2, 3]


def test_more_items_than_there_are_are_faults_of_their_rows(made):
    class Short(Things):
        items = list(np.zeros((18, 4), np.float32))  # noqa: RUF012

        def __getitem__(self, sample_id):
            return self.items[sample_id]

    samples = made(Short()).read(np.arange(20))
    assert [row for row, _ in samples.faults] == [18, 19]
    assert "IndexError" in samples.faults[0][1]


def thing(**attributes):
    return type("Thing", (Things,), attributes)()


def reader(**attributes):
    return type("Reader", (Blocks,), attributes)()


def raising(error):
    def raised(*_):
        raise error

    return raised


NO_DATASET = {
    "a factory that raises": (raising(KeyError("root")), "failed: KeyError: 'root'"),
    "a length that raises": (thing(__len__=raising(RuntimeError("no index"))), "RuntimeError: no index"),
    "a length below zero": (thing(__len__=lambda self: -1), "should return >= 0"),
    "no item that can be read": (thing(__getitem__=raising(KeyError("x"))), "none of the first samples .* KeyError"),
    "labels of floats": (thing(labels=np.zeros(20)), "labels is float64"),
    "labels of text": (thing(labels=["cat"] * 20), "labels is <U3"),
    "too few labels": (thing(labels=np.zeros(19, int)), r"shape \(19,\)"),
    "labels out of range": (thing(labels=np.arange(20)), "labels go from 0 to 19, for 3 classes"),
    "labels below -1": (thing(labels=np.full(20, -2)), "labels go from -2"),
    "labels of a method": (thing(labels=lambda self: 3), "labels is object"),
    "a text of class names": (thing(class_names="abc"), "text 'abc'"),
    "too many class names": (thing(class_names=["a"] * 4), "num_classes is 3, with 4 class_names"),
    "half a class": (thing(num_classes=2.5), "whole number"),
    "a reader of nothing": (reader(num_samples=0), "empty"),
    "a reader of many": (reader(num_samples="many"), "TypeError"),
    "a reader without fields": (reader(fields={}), "no fields"),
    "a reader of other fields": (reader(fields={"input": (4,)}), "name -> Field"),
    "a reader of objects": (reader(fields={"input": Field((4,), "no dtype")}), "name -> Field"),
}


@pytest.mark.parametrize("name", NO_DATASET)
def test_what_is_no_dataset_is_refused_in_one_line(made, name):
    thing, reason = NO_DATASET[name]
    with pytest.raises(ConfigError, match=reason) as caught:
        made(thing)
    assert "\n" not in str(caught.value)


FOUR = np.zeros((1, 4), np.float32)
NO_SAMPLES = {
    "nothing": ((), "gave a tuple"),
    "other fields": (Samples({"other": FOUR}, np.arange(1)), r"\['other'\]"),
    "another dtype": (Samples({"input": FOUR.astype(float)}, np.arange(1)), r"float64 \[1, 4\]"),
    "another shape": (Samples({"input": FOUR[:, :3]}, np.arange(1)), r"float32 \[1, 3\]"),
    "too many rows": (Samples({"input": np.zeros((2, 4), np.float32)}, np.arange(1)), r"float32 \[2, 4\]"),
    "rows that do not rise": (Samples({"input": FOUR[[0, 0]]}, np.array([1, 0])), "rising"),
    "rows that nobody asked for": (Samples({"input": FOUR}, np.array([5])), "rising"),
}


@pytest.mark.parametrize("name", NO_SAMPLES)
def test_a_read_that_gives_no_samples_is_refused_in_one_line(made, name):
    samples, reason = NO_SAMPLES[name]
    with pytest.raises(ConfigError, match=f"users_factory:make.*{reason}") as caught:
        made(Blocks(samples=samples)).read(np.array([1, 2]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [np.zeros(2), np.zeros(3, int), None, np.array([0, -2]), np.array([0, 9])])
def test_labels_that_are_none_are_refused_in_one_line(made, labels):
    dataset = made(reader(num_classes=3, labels=lambda self, ids: labels))
    with pytest.raises(ConfigError, match="users_factory:make: labels"):
        dataset.labels(np.array([1, 2]))
    raises = made(reader(labels=raising(KeyError("x"))))
    with pytest.raises(ConfigError, match="KeyError"):
        raises.labels(np.array([1]))


def test_a_row_that_a_read_leaves_out_has_a_reason(made):
    samples = made(Blocks(samples=Samples({"input": FOUR}, np.array([1])))).read(np.array([4, 5, 6]))
    assert [row for row, _ in samples.faults] == [0, 2]
    assert "without a reason" in samples.faults[0][1]


def test_one_sample_of_1200_that_cannot_be_decoded_is_left_out(caplog):
    dataset = open_dataset("support.user_data:files?count=1200&cut=700")
    assert fingerprint(dataset) == fingerprint(open_dataset("support.user_data:files?count=1200&cut=700"))
    assert fingerprint(dataset) != fingerprint(open_dataset("support.user_data:files?count=1200&cut=-1"))
    assert "1 of 1200 samples cannot be read or decoded" in caplog.text
    make_probe(Fetcher(dataset, view_spec("none", {})))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_package", "needs a missing package"),
        ("def f(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("make = 3", "not callable"),
        ("other = 3", "AttributeError"),
    ],
)
@pytest.mark.parametrize("open_one", [open_dataset, lambda name: view_spec(name, {})])
def test_code_that_cannot_be_imported_is_refused_in_one_line(tmp_path, monkeypatch, code, reason, open_one):
    module = f"users_broken_{abs(hash((code, open_one)))}"
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=f"{module}:make.*{reason}") as caught:
        open_one(f"{module}:make")
    assert "\n" not in str(caught.value)


VIEWS = """
import numpy as np

def broken(sample, rng):
    if sample["image"].sum() > 20:
        raise KeyError("crop")
    return sample

def away(sample, rng):
    raise OSError(5, "Input/output error")

def nothing(sample, rng):
    return None

def objects(sample, rng):
    return {"image": None}

def unlike(sample, rng):
    return {"image": sample["image"][..., : 4 + int(sample["image"].sum()) % 2]}

def padded(sample, rng, *, width=0):
    return {"flat": np.pad(sample["image"].ravel(), (0, width))}

def needy(sample, rng, *, width):
    return sample

def normalised(sample, rng, mean=0.0, noise=0.1):
    return {"image": sample["image"] - mean + noise * rng.random(sample["image"].shape)}
normalised.evaluation = {"noise": 0.0}

def odd(sample, rng):
    return sample
odd.version = "one"

def strange(sample, rng):
    return sample
strange.evaluation = 3
"""


@pytest.fixture
def views(tmp_path, monkeypatch):
    (tmp_path / "users_views.py").write_text(VIEWS)
    monkeypatch.syspath_prepend(str(tmp_path))


def fetch(name, **params):
    return Fetcher(open_dataset("digits"), view_spec(f"users_views:{name}", params)).fetch(np.arange(90), 3)


def test_a_view_that_raises_for_some_samples_leaves_their_rows_out(views):
    fetched = fetch("broken")
    whole = open_dataset("digits").read(np.arange(90)).fields["image"]
    good = whole.sum(axis=(1, 2, 3)) <= 20
    assert 0 < good.sum() < 90
    assert fetched.kept_rows.tolist() == np.flatnonzero(good).tolist()
    assert fetched.inputs["image"].tobytes() == whole[good].tobytes()
    assert len(fetched.labels) == good.sum()
    assert [row for row, _ in fetched.faults] == np.flatnonzero(~good).tolist()
    assert fetched.faults[0][1] == "view users_views:broken: KeyError: 'crop'"


def test_a_view_that_raises_for_all_samples_is_named_when_a_stream_is_made(views):
    for name, reason in (("needy", "width"), ("nothing", "NoneType"), ("objects", "object")):
        fetcher = Fetcher(open_dataset("digits"), view_spec(f"users_views:{name}", {}))
        with pytest.raises(BadSamples, match=f"users_views:{name}: .*{reason}"):
            make_probe(fetcher)


def test_a_view_whose_storage_is_away_is_tried_again(views):
    with pytest.raises(OSError, match="Input/output"):
        fetch("away")


def test_a_view_of_another_shape_than_most_is_a_fault_of_its_row(views):
    fetcher = Fetcher(open_dataset("digits"), view_spec("users_views:unlike", {}))
    sums = open_dataset("digits").read(np.arange(90)).fields["image"].sum(axis=(1, 2, 3))
    wide = sums.astype(int) % 2 == 1
    fetched = fetcher.fetch(np.flatnonzero(wide), 3)  # of one shape, which it is held to from here on
    assert not fetched.faults
    fetched = fetcher.fetch(np.arange(90), 3)
    assert fetched.kept_rows.tolist() == np.flatnonzero(wide).tolist()
    assert fetched.inputs["image"].shape[1:] == (1, 8, 5)
    assert len(fetched.labels) == wide.sum()
    assert fetched.faults[0][1] == (
        "view users_views:unlike: gives image float32 [1, 8, 4] for this sample, image float32 [1, 8, 5] for others"
    )
    resized = fetcher.fetch(np.arange(90), 3, (6, 6))
    assert (len(resized.inputs["image"]), resized.inputs["image"].shape[2:]) == (wide.sum(), (6, 6))


def test_a_view_of_another_shape_than_when_the_stream_was_made_is_refused(views):
    def fetcher(width):
        return Fetcher(open_dataset("digits"), view_spec("users_views:padded", {"width": width}))

    probe = make_probe(fetcher(0))
    check_probe(fetcher(0), probe)
    with pytest.raises(ManifestMismatch, match=r"users_views:padded: sample .* has 65 values here"):
        check_probe(fetcher(1), probe)


@pytest.mark.parametrize("name", ["odd", "strange"])
def test_a_view_with_odd_attributes_is_refused_in_one_line(views, name):
    with pytest.raises(ConfigError, match=f"users_views:{name}"):
        view_spec(f"users_views:{name}", {})


def test_a_users_view_says_what_of_it_stays_in_an_evaluation(views):
    seen = evaluation_view(view_spec("users_views:normalised", {"mean": 0.5}))
    assert (seen.name, seen.params) == ("users_views:normalised", {"mean": 0.5, "noise": 0.0})
    with pytest.raises(ConfigError, match=r"set \[evaluation\] view.*broken\.evaluation = ") as caught:
        evaluation_view(view_spec("users_views:broken", {}))
    assert "\n" not in str(caught.value)


def test_a_fingerprint_names_its_algorithm_and_an_older_one_is_still_computed():
    digits = open_dataset("digits?split=train")
    assert fingerprint(digits).startswith("v2:")
    old = "8cca9cd79fa402236b13a5a8db0b26d091784f4a34298b3e680bdade4ae3e61e"
    assert fingerprint(digits, like=old) == old
    with pytest.raises(ManifestMismatch, match="newer Distillog"):
        fingerprint(digits, like="v3:" + old)
