"""Views of texts: what is hidden of them, and what follows each token."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets.base import ArrayDataset, Vocabulary
from pipeline.views import evaluation_view, find_view, max_positions, view_spec
from pipeline.views.fetch import Fetcher
from schemas.errors import ConfigError

LENGTH, TOKENS, MASK = 24, 500, 4


class Texts(ArrayDataset):
    """Tokens 10 to 499 in words of one to three, between two special ones, and padded."""

    vocabulary = Vocabulary("ab" * 32, TOKENS, MASK)


def texts(count: int, seed: int = 0) -> Texts:
    draw = np.random.default_rng(seed)
    ids, words, mask = (np.zeros((count, LENGTH), np.int64) for _ in range(3))
    for row in range(count):
        size = int(draw.integers(0, LENGTH - 1))
        ids[row, 1 : 1 + size] = draw.integers(10, TOKENS, size)
        sizes = draw.integers(1, 4, size)
        words[row, 1 : 1 + size] = np.repeat(np.arange(1, size + 1), sizes)[:size]
        ids[row, 0], ids[row, 1 + size], mask[row, : size + 2] = 2, 3, 1
    fields = {"input_ids": ids, "attention_mask": mask, "words": words.astype(np.int32)}
    return Texts("texts", fields, np.full(count, -1))


def seen(dataset: Any, seed: int = 1, ids: Any = None, name: str = "masked", **params: Any) -> dict[str, Any]:
    fetched = Fetcher(dataset, view_spec(name, params)).fetch(
        np.arange(dataset.num_samples) if ids is None else np.array(ids, np.int64), seed
    )
    assert not fetched.faults
    return fetched.inputs


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**62), share=st.floats(0, 1), most=st.integers(1, 30), size=st.integers(1, 20))
def test_whole_words_are_taken_within_the_budget_and_labels_are_what_stood_there(
    seed: int, share: float, most: int, size: int
) -> None:
    dataset = texts(size, seed % 7)
    before = dataset.arrays
    after = seen(dataset, seed, share=share, most=most)
    assert set(after) == {"input_ids", "attention_mask", "masked", "labels"}
    taken = after["masked"] != 0
    assert np.array_equal(np.where(taken, before["input_ids"], -1), after["labels"])
    assert np.array_equal(after["input_ids"][~taken], before["input_ids"][~taken])
    for row in range(size):
        words, hidden = before["words"][row], taken[row]
        for word in np.unique(words):
            assert len(np.unique(hidden[words == word])) == 1  # all of it, or nothing
        assert not hidden[words == 0].any()
        budget = min(max(int(np.floor(share * (words > 0).sum() + 0.5)), 1), most)
        assert hidden.sum() <= budget
        sizes = [int((words == word).sum()) for word in np.unique(words[words > 0]) if not hidden[words == word][0]]
        assert all(hidden.sum() + each > budget for each in sizes), "a word that was left would have fitted"


@settings(max_examples=25, deadline=None)
@given(ids=st.lists(st.integers(0, 29), min_size=1, max_size=20), seed=st.integers(0, 2**62), cut=st.integers(0, 20))
@pytest.mark.parametrize("name", ["masked", "next_token"])
def test_a_view_of_texts_does_not_depend_on_its_batch(name: str, ids: list[int], seed: int, cut: int) -> None:
    dataset = texts(30)
    together = seen(dataset, seed, ids, name)
    parts = [seen(dataset, seed, part, name) for part in (ids[:cut], ids[cut:]) if part]
    for field, values in together.items():
        assert values.tobytes() == np.concatenate([part[field] for part in parts]).tobytes()


def test_of_a_hundred_tokens_eighty_are_hidden_ten_swapped_and_ten_stay() -> None:
    dataset = texts(2000)
    after = seen(dataset, share=0.4, most=LENGTH)
    taken = after["masked"] != 0
    now, was = after["input_ids"][taken], after["labels"][taken]
    count = len(now)
    assert count > 6000
    for share, wanted in (((now == MASK).mean(), 0.8), ((now == was).mean(), 0.1 + 0.1 / TOKENS)):
        assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / count) ** 0.5
    swapped = now[(now != MASK) & (now != was)]
    assert swapped.min() < 10 < TOKENS - 20 < swapped.max() < TOKENS
    covered = (dataset.arrays["words"] > 0).sum()
    assert 0.36 < count / covered <= 0.45


def test_another_seed_and_another_sample_hide_other_words() -> None:
    dataset = texts(40)
    dataset.arrays["input_ids"][:] = dataset.arrays["input_ids"][7]
    dataset.arrays["words"][:] = dataset.arrays["words"][7]
    one, other = (seen(dataset, seed)["masked"] for seed in (1, 2))
    assert (one != other).any(axis=1).mean() > 0.5
    assert (one[0] != one[1:]).any(axis=1).mean() > 0.5


def test_what_is_hidden_is_golden() -> None:
    after = seen(texts(50), 11)
    digest = hashlib.sha256(b"".join(after[name].astype("<i8").tobytes() for name in sorted(after))).hexdigest()
    assert digest[:16] == "867938a97a6c5882"


def test_the_next_token_is_that_of_the_text_alone() -> None:
    ids = np.array([[2, 10, 11, 3, 0, 0], [2, 3, 0, 0, 0, 0], [9, 9, 9, 9, 9, 9], [0, 0, 0, 0, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1] * 6, [0] * 6])
    words = np.zeros((4, 6), np.int32)
    dataset = ArrayDataset("t", {"input_ids": ids, "attention_mask": mask, "words": words}, np.full(4, -1))
    after = seen(dataset, name="next_token")
    assert after["labels"].tolist() == [
        [10, 11, 3, -1, -1, -1],
        [3, -1, -1, -1, -1, -1],
        [9, 9, 9, 9, 9, -1],
        [-1] * 6,
    ]
    assert np.array_equal(after["predicts"], after["labels"] >= 0)
    assert np.array_equal(after["input_ids"], ids)
    assert set(after) == {"input_ids", "attention_mask", "labels", "predicts"}


def test_records_have_room_for_the_most_that_the_parameters_allow() -> None:
    assert max_positions(view_spec("masked", {"most": 7})) == {"masked": 7}
    assert max_positions(view_spec("none+masked", {"masked.most": 9})) == {"masked": 9}
    assert max_positions(view_spec("next_token", {})) == {} == max_positions(view_spec("affine", {}))


def test_an_evaluation_hides_words_as_the_training_does() -> None:
    spec = view_spec("masked", {"share": 0.3, "most": 5})
    assert evaluation_view(spec) == spec
    assert evaluation_view(view_spec("next_token", {})) == view_spec("next_token", {})


def test_the_dataset_says_which_token_hides_and_how_many_there_are_unless_the_user_does() -> None:
    dataset = texts(300)
    assert (seen(dataset, share=1.0)["input_ids"] == MASK).sum() > 500
    own = seen(dataset, share=1.0, mask_id=1, vocab_size=8, most=LENGTH)
    changed = own["input_ids"][(own["masked"] != 0) & (own["input_ids"] != own["labels"])]
    assert (changed == 1).mean() > 0.8
    assert changed.max() < 8
    joined = seen(dataset, name="none+masked", **{"masked.share": 1.0})
    assert (joined["input_ids"] == MASK).sum() > 500


@pytest.mark.parametrize(
    ("vocabulary", "params", "says"),
    [
        (None, {}, "does not say how many tokens there are: give vocab_size"),
        (Vocabulary("", 90), {}, r"has no \[MASK\] or <mask>: give mask_id"),
        (Vocabulary("", 90), {"mask_id": 90}, "mask_id 90 is none of 90 tokens"),
        (Vocabulary("", 90, 3), {"share": 1.5}, "share is 1.5"),
        (Vocabulary("", 90, 3), {"most": 0}, "most is 0"),
    ],
)
def test_a_mask_that_cannot_be_had_is_one_line(vocabulary: Any, params: dict[str, Any], says: str) -> None:
    arrays = texts(3).arrays

    class Own(ArrayDataset):
        pass

    if vocabulary:
        Own.vocabulary = vocabulary  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=says):
        seen(Own("own", arrays, np.full(3, -1)), **params)


def test_views_of_texts_are_not_for_images() -> None:
    for name in ("masked", "next_token"):
        dataset = Texts("t", {"image": np.zeros((3, 1, 8, 8), np.float32)}, np.zeros(3, int))
        with pytest.raises(ConfigError, match=f"view {name} needs the fields input_ids and .*the dataset has image"):
            seen(dataset, name=name)
    assert find_view("masked").evaluation is not None
