"""How many positions a view's field chooses at most: said by the view, held of each sample, carried on in a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.streams import fetcher

from pipeline.views import find_view
from schemas.errors import ConfigError

ONES = """
import numpy as np

def ones(sample, rng, count=3):
    chosen = np.zeros(64, np.int8)
    chosen[: rng.integers(0, int(count) + 1)] = 1
    return {**sample, "chosen": chosen}
ones.max_positions = {"chosen": 3}
ones.thread_safe = True

def more(sample, rng, count=6):
    return {**sample, "chosen": np.arange(64) < count, "others": np.arange(64) < 2}
more.thread_safe = True

def fewer(sample, rng):
    return {**sample, "chosen": sample["chosen"] * 0}
fewer.max_positions = {"chosen": 1, "others": 2}

def bare(sample, rng):
    return sample
bare.max_positions = {"chosn": 3}

def none(sample, rng):
    return sample
none.max_positions = {"chosen": 0}

def text(sample, rng):
    return sample
text.max_positions = {"chosen": "three"}

def yes(sample, rng):
    return sample
yes.max_positions = {"others": 2, "chosen": True}

def half(sample, rng):
    return sample
half.max_positions = {"chosen": 2.0}

def array(sample, rng):
    return sample
array.max_positions = {"chosen": np.int64(2)}
"""
IDS = np.arange(50)


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_positions.py").write_text(ONES)
    monkeypatch.syspath_prepend(str(tmp_path))


def views(name: str, **params: Any) -> Any:
    return fetcher("digits?split=train", name, **params)


def test_a_sample_that_chooses_more_positions_than_its_view_allows_is_a_fault_of_its_row() -> None:
    fetched = views("users_positions:ones", count=6).fetch(IDS, 7)
    counts = fetched.inputs["chosen"].sum(axis=1)
    assert counts.max() == 3
    assert 0 in counts
    assert 0 < len(fetched.faults) < 50
    assert len(fetched.kept_rows) + len(fetched.faults) == len(fetched.labels) + len(fetched.faults) == 50
    assert {reason.partition("chooses ")[2][1:] for _, reason in fetched.faults} == {
        " positions by field 'chosen', and its max_positions are 3"
    }
    whole = views("users_positions:ones", count=3).fetch(IDS, 7)
    assert not whole.faults


def test_who_chooses_too_much_is_the_same_with_any_number_of_loaders() -> None:
    one, three = views("users_positions:ones", count=6), views("users_positions:ones", count=6)
    three._loaders = type(three._loaders)(3)
    for _ in range(2):  # the first is read by one
        alone, shared = one.fetch(IDS, 7), three.fetch(IDS, 7)
        assert alone.faults == shared.faults
        assert all(np.array_equal(alone.inputs[name], shared.inputs[name]) for name in alone.inputs)
    three.close()


def test_views_in_a_row_are_held_at_their_end_to_what_the_last_of_them_says() -> None:
    joined = find_view("users_positions:ones+users_positions:more+users_positions:fewer")
    assert joined.max_positions == {"chosen": 1, "others": 2}
    assert not views("users_positions:ones+users_positions:more+users_positions:fewer").fetch(IDS, 0).faults
    assert find_view("users_positions:ones+users_positions:more").max_positions == {"chosen": 3}
    assert len(views("users_positions:ones+users_positions:more").fetch(IDS, 0).faults) == 50
    assert not views("users_positions:more+users_positions:ones").fetch(IDS, 0).faults


def test_views_of_our_own_say_nothing() -> None:
    assert not find_view("affine").max_positions


def test_a_field_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"bare: max_positions is of a field 'chosn': .*(have|known|image)"):
        views("users_positions:bare").fetch(IDS, 0)


@pytest.mark.parametrize(("name", "limit"), [("none", "0"), ("text", "'three'"), ("yes", "True"), ("half", "2.0")])
def test_limits_that_are_none_are_refused_by_their_field(name: str, limit: str) -> None:
    says = f"^view users_positions:{name}: max_positions of field 'chosen' is {limit}: .*a dict of whole numbers"
    with pytest.raises(ConfigError, match=says):
        views(f"users_positions:{name}")


def test_a_limit_may_be_a_number_of_an_array() -> None:
    assert find_view("users_positions:array").max_positions == {"chosen": 2}
