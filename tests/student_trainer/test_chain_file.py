"""A chain's file: what each step changes of it, and who teaches whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import ConfigError
from student_trainer.run.chain import load_chain

BASE = """
source = "stream"

[data]
stream = "birds"

[[teachers]]
name = "large"

[student]
name = "mlp"
hidden = [64]
dropout = 0.1

[train]
batch_size = 32
seed = 5

[[losses]]
name = "forward_kl"
"""


def written(folder: Path, text: str, base: str = BASE) -> Path:
    path = folder / "chain.toml"
    path.write_text(base + text)
    return path


def test_each_step_learns_from_the_one_before_with_a_seed_of_its_own(tmp_path: Path) -> None:
    steps = '[[chain]]\nname = "middle"\n[[chain]]\nname = "small"\n[[chain]]\nname = "least"\ntrain = {seed = 5}\n'
    middle, small, least = load_chain(written(tmp_path, steps), ["train.batch_size=16"])
    assert [each.name for each in (middle, small, least)] == ["middle", "small", "least"]
    assert [each.teachers[0].name for each in (middle, small, least)] == ["large", "middle", "small"]
    assert [each.train.seed for each in (middle, small, least)] == [5, 6, 5]
    assert {each.train.batch_size for each in (middle, small, least)} == {16}


def test_a_step_changes_tables_key_by_key_but_another_student_begins_anew(tmp_path: Path) -> None:
    steps = """
[[chain]]
name = "narrow"
student = {hidden = [8]}
train = {steps = 7}
[[chain]]
name = "other"
student = {name = "cnn"}
teachers = [{name = "large"}, {name = "narrow", weight = 2.0}]
losses = [{name = "reverse_kl"}]
"""
    narrow, other = load_chain(written(tmp_path, steps))
    assert (narrow.student.params, narrow.train.steps) == ({"hidden": [8], "dropout": 0.1}, 7)
    assert (other.student.name, other.student.params, other.train.steps) == ("cnn", {}, 0)
    assert [(each.name, each.weight) for each in other.teachers] == [("large", 1.0), ("narrow", 2.0)]
    assert [each.name for each in other.losses] == ["reverse_kl"]


@pytest.mark.parametrize(
    ("steps", "base", "says"),
    [
        ("", BASE, r"has no \[\[chain\]\]"),
        ("chain = 3\n", "", r"has no \[\[chain\]\]"),
        ("[[chain]]\n", BASE, "chain]] 0: 'name' is missing"),
        ('[[chain]]\nname = "a"\n[[chain]]\nname = "a"\n', BASE, "two steps are called 'a'"),
        ('[[chain]]\nname = "large"\n', BASE + '[[chain]]\nname = "x"\n', "'large' is a teacher already"),
        ('[[chain]]\nname = "large"\n[[chain]]\nname = "x"\n', BASE, "'large' is a teacher already"),
        ('[[chain]]\nname = "a"\nsource = "dataset"\n', BASE, "leave out `source` and `data`"),
        ('[[chain]]\nname = "a"\nsteps = 3\n', BASE, "chain]] a: key 'steps' is unknown"),
        ('[[chain]]\nname = "a"\n', BASE.replace('"stream"\n', '"dataset"\n', 1), "learn from a stream"),
        ('[[chain]]\nname = "a/b"\n', BASE, "name 'a/b'"),
        ('[[chain]]\nname = "a"\n[[chain]]\nname = "b"\ntrain = 3\n', BASE, "chain]] b: train must be a table"),
    ],
)
def test_what_is_no_chain_is_refused_in_one_line(tmp_path: Path, steps: str, base: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        load_chain(written(tmp_path, steps, base))
    assert "\n" not in str(refused.value)
