"""Datasets by URI, their fingerprints and label budgets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.recordings import recordings
from support.small_texts import table_file, text_files
from support.user_data import Endless

from pipeline.datasets import DATASETS, Dataset, open_dataset
from pipeline.datasets.base import may_have
from pipeline.datasets.fingerprint import fingerprint
from pipeline.datasets.labels import label_budget
from pipeline.datasets.uri import absolute
from pipeline.hashing import hash64, tag
from schemas.errors import ConfigError

USER_MODULE = """
import errno
import numpy as np

class Pairs:
    class_names = ("even", "odd")
    def __init__(self, length):
        self.length = length
    def __len__(self):
        return self.length
    def __getitem__(self, index):
        if index == 3:
            raise ValueError("sample 3 is broken")
        if index == 5:
            return np.zeros(9), 1
        return np.full(4, index, np.float32), index % 2

class Away(Pairs):
    def __getitem__(self, index):
        if index:
            raise OSError(errno.ESTALE, "the mount is away")
        return super().__getitem__(index)

def pairs(length="8"):
    return Pairs(int(length))

def away():
    return Away(8)

def nothing():
    return 7

not_callable = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "users_own_data.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def npy(tmp_path) -> Path:
    folder = tmp_path / "npy" / "train"
    folder.mkdir(parents=True)
    np.save(folder / "image.npy", np.arange(20 * 12, dtype=np.float32).reshape(20, 3, 2, 2))
    np.save(folder / "token.npy", np.arange(20, dtype=np.int32))
    np.save(folder / "labels.npy", np.arange(20) % 4 - 1)
    return folder


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    for number in range(6):
        place = folder / ("cat" if number % 2 else "ant")
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.full((10 + number, 12, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "stray.png")
    return folder


@pytest.fixture
def texts(tmp_path, monkeypatch) -> dict[str, str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table = table_file(tmp_path / "table")
    np.save(tmp_path / "ids.npy", np.arange(60) % 15)
    return {
        "text": f"text:{text_files(tmp_path / 'books')}?length=24",
        "text_table": f"text_table:{table}?label=label&length=24",
        "tokens": f"tokens:{tmp_path / 'ids.npy'}?length=8&tokenizer={table.parent / 'tokenizer.json'}",
    }


@pytest.fixture
def uris(npy, images, user_module, texts, tmp_path) -> dict[str, str]:
    return texts | {
        "audio": f"audio:{recordings(tmp_path / 'audio')}?rate=8000&length=60",
        "digits": "digits?split=test",
        "mnist1d": "mnist1d?split=test&n=50",
        "npy": f"npy:{npy.parent}?split=train",
        "images": f"images:{images}?size=8",
        "user": "users_own_data:pairs",
    }


def test_only_a_folder_of_this_machine_becomes_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("images:./photos?size=64&channels=1") == f"images:{tmp_path}/photos?size=64&channels=1"
    assert absolute("audio:words?rate=8000") == f"audio:{tmp_path}/words?rate=8000"
    assert absolute("npy:../x") == f"npy:{tmp_path}/../x"  # as it was written: a link may lie on the way
    for uri in (f"npy:{tmp_path}/x", "digits?split=test", "my.module:make?root=./x", "images:", "nothing:at/all"):
        assert absolute(uri) == uri


@pytest.mark.parametrize("name", [*DATASETS, "user"])
def test_a_read_does_not_depend_on_its_batch(name, uris):
    dataset = open_dataset(uris[name])
    ids = np.array([4, 0, 2, 2, 1])
    together = dataset.read(ids)
    assert together.kept_rows.tolist() == [0, 1, 2, 3, 4]
    assert not together.faults
    assert set(together.fields) == set(dataset.fields)
    for field_name, field in dataset.fields.items():
        array = together.fields[field_name]
        assert array.shape == (5, *field.shape)
        assert array.dtype == np.dtype(field.dtype)
        alone = [dataset.read(ids[i : i + 1]).fields[field_name] for i in range(5)]
        assert array.tobytes() == np.concatenate(alone).tobytes()


@pytest.mark.parametrize("name", [*DATASETS, "user"])
def test_labels_are_classes_or_unlabelled(name, uris):
    dataset = open_dataset(uris[name])
    labels = dataset.labels(np.arange(dataset.num_samples))
    assert labels.dtype == np.int64
    assert labels.min() >= -1
    assert labels.max() < dataset.num_classes
    assert len(dataset.class_names) in (0, dataset.num_classes)


@pytest.mark.parametrize("name", [*DATASETS, "user"])
def test_the_fingerprint_is_that_of_the_content(name, uris):
    first = fingerprint(open_dataset(uris[name]))
    assert first == fingerprint(open_dataset(uris[name]))
    assert len(bytes.fromhex(first.removeprefix("v2:"))) == 32


GOLDEN = {
    "digits?split=train": "8cca9cd79fa402236b13a5a8db0b26d091784f4a34298b3e680bdade4ae3e61e",
    "digits?split=test": "7fb1eecf15d8dff31553a7b177358466145d81e5a5aa0b040d42f13b6f654836",
    "mnist1d?n=5000": "d712e89ecd5cb3b57806dd63bf93da44c31267b8c7438bde6859a492198b61e2",
    "mnist1d?split=test&n=100&seed=3": "45e2d5158be691ac666a72205e59fe791b7fbe064f0f99bd57d7b6f2ace5f5ae",
}
GOLDEN_LARGE = {
    "mnist1d?n=100000": (
        "v2:5fc7a1135f5bcc20a7bf65cebe4e4dbe800ee315afaae3ba4be00d4c663a5880",
        "17396ee37247083b0801b70b0e04519092d824897eddcc97fd42163f7ac83c48",
    ),
}


@pytest.mark.parametrize("uri", GOLDEN)
def test_fingerprints_of_small_data_are_golden_and_hash_what_the_first_form_did(uri):
    dataset = open_dataset(uri)
    assert fingerprint(dataset) == f"v2:{GOLDEN[uri]}"
    assert fingerprint(dataset, like="0" * 64) == GOLDEN[uri]


@pytest.mark.parametrize("uri", GOLDEN_LARGE)
def test_fingerprints_of_large_data_are_golden_in_both_forms(uri):
    dataset = open_dataset(uri)
    assert (fingerprint(dataset), fingerprint(dataset, like="0" * 64)) == GOLDEN_LARGE[uri]


def test_digits_are_split_without_overlap_and_by_class():
    train, test = open_dataset("digits?split=train"), open_dataset("digits?split=test")
    assert (train.num_samples, test.num_samples) == (1297, 500)
    for dataset, least in ((train, 125), (test, 47)):
        counts = np.bincount(dataset.labels(np.arange(dataset.num_samples)))
        assert counts.min() >= least
    pixels = [d.read(np.arange(d.num_samples)).fields["image"] for d in (train, test)]
    seen = {image.tobytes() for image in pixels[0]}
    assert not any(image.tobytes() in seen for image in pixels[1])
    assert pixels[0].min() == 0
    assert pixels[0].max() == 1


def test_mnist1d_is_the_same_at_any_length_and_far_index():
    short, long = open_dataset("mnist1d?n=10"), open_dataset(f"mnist1d?n={2**40}")
    ids = np.arange(10)
    assert short.read(ids).fields["signal"].tobytes() == long.read(ids).fields["signal"].tobytes()
    assert np.isfinite(long.read(np.array([2**40 - 1])).fields["signal"]).all()
    for other in ("mnist1d?n=10&seed=1", "mnist1d?n=10&split=test"):
        assert (short.read(ids).fields["signal"] != open_dataset(other).read(ids).fields["signal"]).mean() > 0.99


def test_mnist1d_is_hard_for_a_linear_model():
    train, test = open_dataset("mnist1d?n=4000"), open_dataset("mnist1d?split=test&n=1000")
    signals, labels = train.read(np.arange(4000)).fields["signal"][:, 0], train.labels(np.arange(4000))
    inputs = np.concatenate([signals, np.ones((4000, 1))], 1)
    weights = np.linalg.lstsq(inputs, np.eye(10)[labels], rcond=None)[0]
    seen = np.concatenate([test.read(np.arange(1000)).fields["signal"][:, 0], np.ones((1000, 1))], 1)
    accuracy = ((seen @ weights).argmax(1) == test.labels(np.arange(1000))).mean()
    assert 0.2 < accuracy < 0.5


def test_npy_folder_maps_its_fields(npy):
    (npy / "classes.txt").write_text("a\nb\nc\n")
    dataset = open_dataset(f"npy:{npy.parent}?split=train")
    assert set(dataset.fields) == {"image", "token"}
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.labels(np.array([0, 1, 6])).tolist() == [-1, 0, 1]
    assert dataset.read(np.array([3])).fields["token"].tolist() == [3]


def test_npy_files_without_labels_are_unlabelled(npy):
    (npy / "labels.npy").unlink()
    dataset = open_dataset(f"npy:{npy}")
    assert dataset.num_classes == 0
    assert dataset.labels(np.arange(20)).tolist() == [-1] * 20


@pytest.mark.parametrize("change", ["remove", "replace"])
def test_npy_files_that_vanish_or_change_are_an_io_error(npy, change):
    dataset = open_dataset(f"npy:{npy}")
    (npy / "token.npy").rename(npy / "token.old")
    if change == "replace":
        np.save(npy / "token.npy", np.zeros(20, np.int32))
    with pytest.raises(OSError, match="token"):
        dataset.read(np.array([0]))


def change_pixel(npy):
    array = np.load(npy / "image.npy")
    array[7, 1, 0, 1] += 1
    np.save(npy / "image.npy", array)


def change_label(npy):
    labels = np.load(npy / "labels.npy")
    labels[19] = 0
    np.save(npy / "labels.npy", labels)


def change_class_name(npy):
    (npy / "classes.txt").write_text("a\nb\nd")


def change_field_name(npy):
    (npy / "token.npy").rename(npy / "tokens.npy")


def change_dtype(npy):
    np.save(npy / "token.npy", np.load(npy / "token.npy").view(np.uint32))


def test_the_labels_of_endless_data_are_hashed_at_some_positions_and_both_ends():
    whole = Endless(10**9)
    first = fingerprint(whole)
    assert first.startswith("v2:")
    assert 65_536 < whole.asked < 80_000

    class Shifted(Endless):
        wrong = range(0)

        def labels(self, sample_ids):
            labels = super().labels(sample_ids)
            inside = (sample_ids >= self.wrong.start) & (sample_ids < self.wrong.stop)
            return np.where(inside, (labels + 1) % 10, labels)

    for wrong in (range(1), range(10**9 - 1, 10**9), range(4_000, 4_100), range(5 * 10**8, 5 * 10**8 + 10**6)):
        other = Shifted(10**9)
        other.wrong = wrong
        assert fingerprint(other) != first, wrong


@pytest.mark.parametrize("change", [change_pixel, change_label, change_class_name, change_field_name, change_dtype])
def test_the_fingerprint_sees_every_change(npy, change):
    (npy / "classes.txt").write_text("a\nb\nc")
    before = fingerprint(open_dataset(f"npy:{npy}"))
    change(npy)
    assert fingerprint(open_dataset(f"npy:{npy}")) != before


def test_image_folder_names_its_classes_after_subfolders(images):
    dataset = open_dataset(f"images:{images}?size=8")
    assert dataset.class_names == ("ant", "cat")
    assert dataset.labels(np.arange(7)).tolist() == [-1, 0, 0, 0, 1, 1, 1]
    values = dataset.read(np.arange(7)).fields["image"][:, 0, 4, 4].tolist()
    assert values == [0, 0, 80, 160, 40, 120, 200]
    grey = open_dataset(f"images:{images}?size=8&channels=1")
    assert grey.fields["image"].shape == (1, 8, 8)


BROKEN = {
    "empty": lambda raw: b"",
    "cut": lambda raw: raw[: len(raw) // 2],
    "not an image": lambda raw: b"hello" * 100,
    "flipped": lambda raw: raw[:40] + bytes(byte ^ 255 for byte in raw[40:60]) + raw[60:],
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_image_is_a_fault_of_its_row(images, damage):
    file = images / "ant" / "2.png"
    file.write_bytes(BROKEN[damage](file.read_bytes()))
    samples = open_dataset(f"images:{images}?size=8").read(np.array([0, 2, 4, 2]))
    assert samples.kept_rows.tolist() == [0, 2]
    assert len(samples.fields["image"]) == 2
    assert [row for row, _ in samples.faults] == [1, 3]
    assert "ant/2.png" in samples.faults[0][1]


def test_a_missing_image_is_an_io_error(images):
    dataset = open_dataset(f"images:{images}?size=8")
    (images / "ant" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.png"):
        dataset.read(np.array([0, 2]))


def test_the_fingerprint_sees_a_changed_image(images):
    before = fingerprint(open_dataset(f"images:{images}?size=8"))
    Image.fromarray(np.ones((9, 9), np.uint8)).save(images / "stray.png")
    assert fingerprint(open_dataset(f"images:{images}?size=8")) != before


def test_a_users_items_become_a_dataset(user_module):
    dataset = open_dataset("users_own_data:pairs?length=6")
    samples = dataset.read(np.arange(6))
    assert samples.kept_rows.tolist() == [0, 1, 2, 4]
    assert samples.fields["input"][:, 0].tolist() == [0, 1, 2, 4]
    assert [row for row, _ in samples.faults] == [3, 5]
    assert samples.faults[0][1] == "sample 3 is broken"
    assert dataset.labels(np.arange(5)).tolist() == [0, 1, 0, -1, 0]
    assert dataset.class_names == ("even", "odd")


def test_the_class_count_of_a_users_items_is_known_by_their_labels():
    assert open_dataset("support.colours:colours").num_classes == 6
    assert open_dataset("support.colours:colours?only=2").num_classes == 3
    assert open_dataset("support.colours:colours?labelled=0").num_classes == 0
    assert may_have(open_dataset("support.colours:colours?only=2"), 4)  # of a class that no sample shows
    assert not may_have(open_dataset("support.colours:colours"), 5)


def test_a_users_io_error_passes_through(user_module):
    with pytest.raises(OSError, match="mount is away"):
        open_dataset("users_own_data:away").read(np.array([0, 1]))


def test_a_users_factory_may_return_a_dataset(tmp_path, monkeypatch):
    (tmp_path / "users_whole_data.py").write_text(
        "from pipeline.datasets import open_dataset\ndef make(n): return open_dataset(f'mnist1d?n={n}')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    dataset: Dataset = open_dataset("users_whole_data:make?n=5")
    assert dataset.num_samples == 5


WRONG = {
    "digit": "did you mean 'digits'",
    "digits?split=trian": "did you mean 'train'",
    "digits?splt=train": "did you mean 'split'",
    "digits?split=train&split=test": "twice",
    "digits?split": "name=value",
    "digits:/somewhere": "takes no path",
    "mnist1d?n=0": "whole number",
    "mnist1d?n=many": "whole number",
    "npy:": "needs a folder",
    "npy:/no/such/folder": "no folder",
    "nyp:/some/folder": "did you mean 'npy'",
    "no_such_module_anywhere:factory": "no module",
    "users_own_data:missing": "missing",
    "users_own_data:not_callable": "not callable",
    "users_own_data:nothing": "__getitem__",
    "users_own_data:pairs?size=3": "size",
    "users_own_data:pairs?length=0": "empty",
}


@pytest.mark.parametrize("uri", WRONG)
def test_a_wrong_uri_is_refused_in_one_line(uri, user_module):
    with pytest.raises(ConfigError, match=WRONG[uri]) as caught:
        open_dataset(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["..", "../secret", "train/../../secret", "/"])
@pytest.mark.parametrize("kind", ["npy", "images"])
def test_a_split_outside_the_folder_is_refused(npy, kind, split):
    (npy.parent.parent / "secret").mkdir()
    with pytest.raises(ConfigError, match="leads outside"):
        open_dataset(f"{kind}:{npy.parent}?split={split}")


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_link_out_of_the_folder_is_refused(npy, images, tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    np.save(outside / "secret.npy", np.zeros(20))
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(outside / "secret.png")
    if link == "file":
        os.symlink(outside / "secret.npy", npy / "secret.npy")
        os.symlink(outside / "secret.png", images / "ant" / "secret.png")
    else:
        os.symlink(outside, npy.parent / "link")
        os.symlink(outside, images / "dog")
    with pytest.raises(ConfigError, match="leads outside"):
        open_dataset(f"images:{images}")
    with pytest.raises(ConfigError, match="leads outside"):
        open_dataset(f"npy:{npy.parent}?split={'train' if link == 'file' else 'link'}")


UNUSABLE = {
    "pickled": (np.array([{}] * 20, object), "pickled"),
    "text": (np.array(["a"] * 20), "no array of numbers"),
    "scalar": (np.array(3.0), "no array of numbers"),
    "shorter": (np.zeros(19), "differ in length"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_array_is_refused_by_name(npy, name):
    array, reason = UNUSABLE[name]
    np.save(npy / "extra.npy", array, allow_pickle=True)
    with pytest.raises(ConfigError, match=reason):
        open_dataset(f"npy:{npy}")


@settings(deadline=None)
@given(
    st.lists(st.integers(-1, 4), min_size=1, max_size=80).filter(lambda labels: max(labels) >= 0),
    st.data(),
    st.integers(0, 2**63 - 1),
)
def test_a_label_budget_is_shared_by_the_classes(labels, data, seed):
    column = np.array(labels, np.int64)
    budget = data.draw(st.integers(1, int((column >= 0).sum())))
    ids = label_budget([column], budget, seed)
    assert len(np.unique(ids)) == len(ids) == budget
    assert (np.diff(ids) > 0).all()
    assert (column[ids] >= 0).all()
    got, there = np.bincount(column[ids], minlength=5), np.bincount(column[column >= 0], minlength=5)
    for one in range(5):
        assert got[one] == there[one] or got[one] >= got.max() - 1
    smaller = label_budget([column], max(1, budget // 2), seed)
    assert set(smaller.tolist()) <= set(ids.tolist())


def all_at_once(labels, budget, seed):
    """The budget of one column of all labels, as it was first written."""
    ids = np.flatnonzero(labels >= 0)
    draws = hash64(seed, tag("label_budget"), ids)
    order = np.lexsort((draws, labels[ids]))
    ordered = labels[ids][order]
    rank = np.arange(len(ids)) - np.searchsorted(ordered, ordered)
    return np.sort(ids[order[np.lexsort((draws[order], rank))[:budget]]])


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 400), st.lists(st.integers(0, 400), max_size=12))
def test_a_label_budget_does_not_depend_on_the_blocks(seed, num_classes, size, cuts):
    draw = np.random.default_rng(seed)
    shares = draw.random(num_classes + 1) ** 4
    labels = draw.choice(num_classes + 1, size, p=shares / shares.sum()) - 1
    if draw.random() < 0.3:
        labels = np.sort(labels)  # classes that come one after the other
    budget = int(draw.integers(1, max(2, (labels >= 0).sum())))
    assume((labels >= 0).sum() >= budget)
    blocks = np.split(labels, sorted(min(cut, size) for cut in cuts))
    assert label_budget(blocks, budget, seed).tolist() == all_at_once(labels, budget, seed).tolist()


def test_label_budgets_are_golden_and_differ_by_seed():
    labels = [open_dataset("digits").labels(np.arange(1297))]
    assert label_budget(labels, 12, 5).tolist() == [194, 305, 445, 593, 673, 723, 811, 1007, 1211, 1246, 1266, 1275]
    assert np.bincount(labels[0][label_budget(labels, 100, 0)]).tolist() == [10] * 10
    assert label_budget(labels, 100, 0).tolist() != label_budget(labels, 100, 1).tolist()


@pytest.mark.parametrize("budget", [0, -1, 4])
def test_a_budget_that_does_not_fit_is_refused(budget):
    with pytest.raises(ConfigError, match="3 labels"):
        label_budget([np.array([0, -1]), np.array([1, 2])], budget, 0)
