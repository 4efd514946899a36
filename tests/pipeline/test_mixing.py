"""Views of two samples: the partner and its share are known without a pixel, and the mix is what they say."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import beta, chisquare, kstest

from pipeline.datasets import open_dataset
from pipeline.datasets.base import ArrayDataset, Samples
from pipeline.hashing import uniform
from pipeline.views import evaluation_view, view_spec
from pipeline.views.fetch import Fetcher
from pipeline.views.mixing import QUANTILES, beta_quantiles
from schemas.errors import ConfigError

ALPHAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 2.0, 8.0, 64.0)


def fetcher_of(dataset: Any, name: str, params: dict[str, Any], **more: Any) -> Fetcher:
    return Fetcher(open_dataset(dataset) if isinstance(dataset, str) else dataset, view_spec(name, params), **more)


def in_memory(**fields: Any) -> ArrayDataset:
    count = len(next(iter(fields.values())))
    return ArrayDataset("memory", fields, np.arange(count) % 3)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_quantiles_are_those_of_the_beta_distribution(alpha: float) -> None:
    wanted = beta.ppf(np.arange(QUANTILES + 1) / (2 * QUANTILES), alpha, alpha)
    assert abs(beta_quantiles(alpha) - wanted).max() <= 2.0**-25 + 1e-12


def test_quantiles_have_the_same_bits_on_every_machine() -> None:
    digest = hashlib.sha256(b"".join(beta_quantiles(alpha).astype("<f8").tobytes() for alpha in ALPHAS))
    assert digest.hexdigest()[:16] == "df6e4acaf834c78a"


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.4, 1.0, 2.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha: float) -> None:
    ids = np.arange(20_000)
    found = fetcher_of("digits", "mixup", {"alpha": alpha}).mixture(ids, 5)
    assert found is not None
    share = found[1].share
    assert (share >= 0).all()
    assert (share <= 1).all()
    # Where a share is as good as 0 or 1 the table has one step.
    clear = share[(share > 1e-3) & (share < 1 - 1e-3)]
    low, high = beta.cdf([1e-3, 1 - 1e-3], alpha, alpha)
    assert kstest((beta.cdf(clear, alpha, alpha) - low) / (high - low), "uniform").pvalue > 1e-3
    exact = beta.ppf(uniform(5, ids, "mixup", 2)[:, 1], alpha, alpha)
    assert np.quantile(abs(share - exact), 0.98) < 1e-4


def test_partners_are_drawn_from_all_samples_alike_and_say_nothing_of_shares() -> None:
    for name in ("mixup", "cutmix"):
        found = fetcher_of("digits", name, {"alpha": 1.0}).mixture(np.arange(100_000), 9)
        assert found is not None
        counts = np.bincount(found[0], minlength=1297)
        assert len(counts) == 1297
        assert chisquare(counts).pvalue > 1e-3
        assert abs(np.corrcoef(found[0], found[1].share)[0, 1]) < 0.02


@settings(max_examples=40, deadline=None)
@given(
    ids=st.lists(st.integers(0, 1296), min_size=1, max_size=30),
    seed=st.integers(0, 2**63 - 1),
    partners=st.none() | st.lists(st.integers(0, 1296), min_size=1, max_size=9, unique=True).map(sorted),
    name=st.sampled_from(["mixup", "cutmix"]),
    probability=st.sampled_from([0.3, 1.0]),
)
def test_what_a_sample_is_mixed_with_depends_on_its_id_and_the_seed_alone(
    ids: list[int], seed: int, partners: list[int] | None, name: str, probability: float
) -> None:
    allowed = None if partners is None else np.array(partners)
    fetcher = fetcher_of("digits", name, {"alpha": 0.4, "probability": probability}, partners=allowed)
    together = fetcher.mixture(np.array(ids), seed)
    assert together is not None
    for row, sample_id in enumerate(ids):
        alone = fetcher.mixture(np.array([sample_id]), seed)
        assert alone is not None
        assert (alone[0][0], alone[1].share[0]) == (together[0][row], together[1].share[row])
        others = set(range(1297)) if partners is None else set(partners)
        assert together[0][row] in (others if together[1].share[row] < 1 else {sample_id})
    assert fetcher.fetch(np.array(ids), seed).kept_rows.tolist() == list(range(len(ids)))


@pytest.mark.parametrize("size", [None, (20, 24)])
@pytest.mark.parametrize("uri", ["digits", "photos"])
@pytest.mark.parametrize("before", ["", "crop_flip+", "crop_flip+affine+"])
def test_both_are_seen_as_themselves_and_then_summed(
    before: str, uri: str, size: tuple[int, int] | None, tmp_path: Any
) -> None:
    if uri == "photos":
        (tmp_path / "photos").mkdir()
        for number in range(12):
            pixels = (np.arange(50 * 70 * 3) * (number + 3) // 40 % 256).reshape(50, 70, 3).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        uri = f"images:{tmp_path}/photos?size=32"
    params = {"crop_flip.min_area": 0.4, "crop_flip.flip": 0.5} if before else {}
    params |= {"affine.rotation": 20.0} if "affine" in before else {}
    label = "mixup." if before else ""
    mixing = fetcher_of(uri, f"{before}mixup", {**params, f"{label}alpha": 1.0})
    alone = fetcher_of(
        uri,
        before.strip("+") or "none",
        params if "affine" in before else {key.removeprefix("crop_flip."): value for key, value in params.items()},
    )
    ids = np.arange(12)
    found = mixing.mixture(ids, 7)
    assert found is not None
    own, partner = (alone.fetch(each, 7, size).inputs["image"] for each in (ids, found[0]))
    seen, share = mixing.fetch(ids, 7, size).inputs["image"], found[1].share[:, None, None, None]
    wanted = share * own + (1 - share) * partner
    assert seen.shape == own.shape
    assert seen.dtype == own.dtype
    assert abs(seen - wanted).max() <= (0.51 if seen.dtype == np.uint8 else 1e-6)
    assert mixing.fetch(ids, 7, size, mix=False).inputs["image"].tobytes() == own.tobytes()
    if seen.dtype == np.uint8:
        whole = np.floor(share * 65536 + 0.5).astype(np.int64)
        assert np.array_equal(seen, (own * whole + partner * (65536 - whole) + 32768) >> 16)


def test_a_box_of_the_partner_covers_what_its_share_says_at_every_size() -> None:
    levels = np.arange(40, dtype=np.float32)[:, None, None, None]
    fetcher = fetcher_of(in_memory(image=np.broadcast_to(levels, (40, 2, 9, 13))), "cutmix", {"alpha": 1.0})
    ids = np.arange(40)
    partner, mixture = fetcher.mixture(ids, 3) or (None, None)
    assert partner is not None
    assert mixture is not None
    assert mixture.box is not None
    top, left, bottom, right = mixture.box
    assert (mixture.box >= 0).all()
    assert (mixture.box <= 1).all()
    assert np.allclose(1 - mixture.share, (bottom - top) * (right - left))
    assert mixture.share.std() > 0.1
    for size in (None, (3, 5), (40, 28)):
        seen = fetcher.fetch(ids, 3, size).inputs["image"]
        height, width = seen.shape[2:]
        wanted = mixture.share * ids + (1 - mixture.share) * partner
        assert np.allclose(seen.mean(axis=(1, 2, 3)), wanted, atol=1e-4)
        for row in range(40):
            rows = slice(int(np.ceil(top[row] * height)), int(bottom[row] * height))
            columns = slice(int(np.ceil(left[row] * width)), int(right[row] * width))
            assert np.allclose(seen[row, :, rows, columns], partner[row], atol=1e-4)
            outside = np.ones((height, width), bool)
            outside[int(top[row] * height) : int(np.ceil(bottom[row] * height)), :] = False
            assert np.allclose(seen[row][:, outside], row, atol=1e-4)


def test_boxes_have_sides_of_the_root_of_what_is_drawn_around_a_point_anywhere() -> None:
    found = fetcher_of("digits", "cutmix", {"alpha": 1.0}).mixture(np.arange(20_000), 1)
    assert found is not None
    assert found[1].box is not None
    top, left, bottom, right = found[1].box
    tall, wide = bottom - top, right - left
    whole = (top > 0) & (bottom < 1) & (left > 0) & (right < 1)
    assert np.allclose(tall[whole], wide[whole])
    drawn = np.sqrt(1 - uniform(1, np.arange(20_000), "cutmix", 2)[:, 1])
    assert np.allclose(tall[whole], drawn[whole], atol=1e-9)
    assert (tall <= drawn + 1e-12).all()
    assert 0.1 < (top == 0).mean() < 0.5


def test_signals_and_numbers_are_summed_in_their_own_dtype() -> None:
    fields = {
        "wave": np.random.default_rng(0).random((20, 1, 7)),
        "level": np.arange(20, dtype=np.float16),
        "far": np.arange(20, dtype=">f4"),
    }
    fetcher = fetcher_of(in_memory(**fields), "mixup", {"alpha": 1.0})
    found, seen = fetcher.mixture(np.arange(20), 4), fetcher.fetch(np.arange(20), 4).inputs
    assert found is not None
    assert {name: each.dtype.str for name, each in seen.items()} == {"wave": "<f8", "level": "<f2", "far": "<f4"}
    share = found[1].share
    assert np.allclose(seen["far"], share * np.arange(20) + (1 - share) * found[0], atol=1e-5)
    one, other = fields["wave"][:, 0, 0], fields["wave"][found[0], 0, 0]
    assert np.allclose(seen["wave"][:, 0, 0], share * one + (1 - share) * other, atol=1e-15)


def test_a_mix_of_two_classes_has_no_label_and_one_of_a_class_has_it() -> None:
    fetcher = fetcher_of("digits", "mixup", {"alpha": 0.4, "probability": 0.7})
    ids = np.arange(400)
    found, fetched = fetcher.mixture(ids, 2), fetcher.fetch(ids, 2)
    assert found is not None
    own, partner = fetcher.dataset.labels(ids), fetcher.dataset.labels(found[0])
    assert np.array_equal(fetched.labels, np.where(own == partner, own, -1))
    alone = found[1].share == 1
    assert 0.2 < alone.mean() < 0.4
    assert np.array_equal(fetched.labels[alone], own[alone])
    assert np.array_equal(fetched.inputs["image"][alone], fetcher.dataset.read(ids[alone]).fields["image"])
    assert np.array_equal(fetcher.fetch(ids, 2, mix=False).labels, own)


class Faulty(ArrayDataset):
    """IDs that 5 divides cannot be decoded."""

    def read(self, sample_ids: Any) -> Samples:
        bad = sample_ids % 5 == 0
        fields = {name: array[sample_ids[~bad]] for name, array in self.arrays.items()}
        return Samples(fields, np.flatnonzero(~bad), tuple((int(row), "broken") for row in np.flatnonzero(bad)))


@pytest.mark.parametrize("loaders", [1, 3])
def test_a_sample_whose_partner_cannot_be_decoded_is_a_fault_that_names_it(loaders: int) -> None:
    images = np.arange(50 * 4, dtype=np.float32).reshape(50, 1, 2, 2)
    dataset = Faulty("faulty", {"image": images}, np.arange(50))
    fetcher = fetcher_of(dataset, "mixup", {"alpha": 1.0}, loaders=loaders)
    ids = np.concatenate([np.arange(50), [50, -1]])
    fetcher.fetch(ids, 6)
    fetched, found = fetcher.fetch(ids, 6), fetcher.mixture(ids, 6)
    assert found is not None
    reasons = dict(fetched.faults)
    assert reasons.keys() | set(fetched.kept_rows.tolist()) == set(range(52))
    for row, sample_id in enumerate(ids[:50].tolist()):
        if sample_id % 5 == 0:
            assert reasons[row] == "broken"
        elif found[0][row] % 5 == 0:
            assert reasons[row] == f"is mixed with sample {found[0][row]}: broken"
        else:
            assert row in fetched.kept_rows
    assert reasons[50] == "no sample 50 in faulty"
    share = found[1].share[fetched.kept_rows]
    wanted = share * 4 * ids[fetched.kept_rows] + (1 - share) * 4 * found[0][fetched.kept_rows]
    assert np.allclose(fetched.inputs["image"][:, 0, 0, 0], wanted, atol=1e-4)
    assert not len(fetcher.fetch(np.array([0, 5]), 6).kept_rows)


@pytest.mark.parametrize("processes", [False, True])
def test_loaders_show_the_same_mix_also_of_chosen_partners(processes: bool) -> None:
    partners = np.arange(0, 1297, 13)
    params = {"affine.rotation": 10.0, "cutmix.alpha": 1.0}
    one = fetcher_of("digits", "affine+cutmix", params, partners=partners)
    several = fetcher_of("digits", "affine+cutmix", params, partners=partners, loaders=2, processes=processes)
    ids = np.arange(90)[::-1].copy()
    try:
        several.fetch(ids[:1], 8)
        whole = several.fetch(ids, 8, (12, 12))
        alone = several.fetch(ids, 8, (12, 12), mix=False)
    finally:
        several.close()
    assert whole.inputs["image"].tobytes() == one.fetch(ids, 8, (12, 12)).inputs["image"].tobytes()
    assert alone.inputs["image"].tobytes() == one.fetch(ids, 8, (12, 12), mix=False).inputs["image"].tobytes()
    assert alone.inputs["image"].tobytes() != whole.inputs["image"].tobytes()


def test_an_evaluation_mixes_nothing_and_so_do_the_defaults() -> None:
    spec = view_spec("crop_flip+cutmix", {"crop_flip.flip": 0.5, "cutmix.alpha": 1.0})
    for view in (evaluation_view(spec), view_spec("mixup", {}), view_spec("mixup", {"alpha": 1.0, "probability": 0})):
        fetcher = Fetcher(open_dataset("digits"), view)
        assert not fetcher.mixes
        assert fetcher.mixture(np.arange(9), 1) is None
        assert np.array_equal(fetcher.fetch(np.arange(9), 1).labels, fetcher.dataset.labels(np.arange(9)))
    assert Fetcher(open_dataset("digits"), spec).mixes


REFUSED = {
    ("digits", "mixup+crop_flip"): "mixup mixes samples as the other views show them: name it last",
    ("digits", "cutmix+mixup"): "cutmix mixes samples as the other views show them: name it last",
    ("memory", "masked+mixup"): "masked chooses positions of each sample, of which there is no mix",
    ("memory", "mixup"): r"mixes floats and images of bytes, and field 'input_ids' is int64 \[5\]: .* have no sum",
    ("mnist1d?n=9", "cutmix"): r"cutmix is for images .*, and field 'signal' is \[1, 40\]; use mixup",
}


@pytest.mark.parametrize(("uri", "name"), REFUSED)
def test_what_cannot_be_mixed_is_refused_in_one_line(uri: str, name: str) -> None:
    last = name.rpartition("+")[2]
    params = {f"{last}.alpha" if "+" in name else "alpha": 1.0}
    dataset = in_memory(input_ids=np.arange(15).reshape(3, 5)) if uri == "memory" else open_dataset(uri)
    with pytest.raises(ConfigError, match=REFUSED[uri, name]) as caught:
        Fetcher(dataset, view_spec(name, params if not name.endswith("crop_flip") else {})).fetch(np.arange(3), 1)
    assert "\n" not in str(caught.value)


def test_parameters_out_of_their_range_are_refused() -> None:
    for key, value in (("alpha", -0.1), ("alpha", 65), ("probability", 1.1)):
        with pytest.raises(ConfigError, match=f"{key} is {value}: give a number from 0 to"):
            view_spec("mixup", {key: value})
