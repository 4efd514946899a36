from __future__ import annotations

import os
from pathlib import Path

import pytest

from schemas.errors import ConfigError
from student_trainer.run.settings import RunSettings, load_run, run_settings

RUN = """
name = "r"
source = "dataset"
losses = [{name = "cross_entropy"}]
[data]
dataset = "digits?split=train"
view = {name = "affine", rotation = 15.0}
[student]
name = "mlp"
hidden = [16, 16]
[train]
batch_size = 32
steps = 10
"""


def load(tmp_path: Path, *overrides: str, text: str = RUN) -> RunSettings:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return load_run(path, overrides)


def test_a_run_file_becomes_settings(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.student.params == {"hidden": [16, 16]}
    assert settings.data.view.params == {"rotation": 15.0}
    assert settings.train.batch_size == 32
    assert settings.schedule.name == "constant"


def test_settings_written_as_toml_load_as_the_same_settings(tmp_path: Path) -> None:
    settings = load(
        tmp_path, 'data.dataset=npy:/with "quotes", ünïcode and \\', "data.labelled=5", "optimizer.lr=1e-07"
    )
    assert load(tmp_path, text=settings.as_toml()) == settings
    assert run_settings(settings.as_dict()) == settings


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.steps=7", ("train", "steps"), 7),
        ("optimizer.lr=1", ("optimizer", "lr"), 1.0),
        ("train.device=cpu", ("train", "device"), "cpu"),
        ('student.name="cnn"', ("student", "name"), "cnn"),
        ("data.view=none", ("data", "view", "name"), "none"),
        ("student.size=[4, 4]", ("student", "size"), (4, 4)),
        ("losses.0.weight=0.5", ("losses", 0, "weight"), 0.5),
    ],
)
def test_an_override_replaces_a_value(tmp_path: Path, override: str, key: tuple[str | int, ...], value: object) -> None:
    found: object = load(tmp_path, override)
    for part in key:
        found = found[part] if isinstance(part, int) else getattr(found, part)  # type: ignore[index]
    assert found == value


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.batch_sise=3", "[train]: key 'batch_sise' is unknown: did you mean 'batch_size'?"),
        ("evalution.every=3", "key 'evalution' is unknown: did you mean 'evaluation'?"),
        ("train.batch_size=0", "[train]: batch_size must be at least 1, is 0"),
        ("train.batch_size=1.5", "[train]: batch_size must be an integer, is 1.5"),
        ("train.batch_size=true", "[train]: batch_size must be an integer, is True"),
        ("train.precision=fp32", "[train]: precision 'fp32' is unknown"),
        ("losses=[]", "[[losses]] is empty"),
        ("losses.0.temperature=0", "[losses.0]: temperature must be positive, is 0.0"),
        ("losses.3.weight=0", "is a list of 1"),
        ("source=stream", "[data] stream is missing"),
        ("source=files", '[data] files is missing; source = "files" needs their folder'),
        ("train.steps=0", "[train] steps or [data] epochs must say how long it trains"),
        ("name=a.b", "run name 'a.b'"),
        ("train=3", "train must be a table, is 3"),
        ("train.steps", "write it as section.key=value"),
    ],
)
def test_a_bad_value_is_one_line_with_file_and_key(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, override)
    text = str(caught.value)
    assert says in text
    assert "\n" not in text
    assert "run.toml" in text or "--set" in text


NUMBERS = (
    "data.order_size", "data.epochs", "data.seed", "data.labelled", "data.label_seed", "data.view.rotation",
    "student.dropout", "student.hidden.0", "student.size.0", "losses.0.weight", "losses.0.temperature",
    "optimizer.lr", "optimizer.weight_decay", "optimizer.betas.1", "schedule.warmup",
    "train.batch_size", "train.steps", "train.passes", "train.threads", "train.seed", "train.log_every",
    "train.prefetch", "evaluation.every", "evaluation.batch_size", "evaluation.view.noise", "checkpoint.every",
    "checkpoint.keep", "starve.warning", "starve.timeout",
)  # fmt: skip


@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_is_taken_that_is_not_finite_or_over_64_bits(tmp_path: Path, key: str) -> None:
    there = ("student.size=[8, 8]", "optimizer.betas=[0.9, 0.99]", "schedule.name=constant")
    view = 'evaluation.view={name = "affine", noise = 0.0}'
    for value in ("nan", "inf", "-inf", "1e400", "9223372036854775808", f"-{'9' * 400}", "9" * 5000):
        assert key.split(".")[-1] in one_line(tmp_path, *there, view, f"{key}={value}"), value


@pytest.mark.parametrize(
    "override",
    [
        "train.threads=100000",
        "student.size=[0]",
        "student.size=[8, -8]",
        "student.size=[100000, 100000]",
        "starve.timeout=1e10",
        "losses.0.temperature=-1",
        "teachers=[{name = 't', weight = nan}]",
    ],
)
def test_a_number_out_of_its_range_is_refused(tmp_path: Path, override: str) -> None:
    assert override.partition("=")[0].split(".")[-1] in one_line(tmp_path, override)


def one_line(tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, *overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 6000
    return text


def test_a_file_that_is_missing_or_no_toml_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        load_run(tmp_path / "nowhere.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path, tmp_path / "pipe.toml"):
        with pytest.raises(ConfigError, match=f"{path}: is no regular file"):
            load_run(path)
    with pytest.raises(ConfigError, match=r"run\.toml: is not TOML"):
        load(tmp_path, text="name = ")
    for value in ("9" * 5000, "[" * 50_000):
        with pytest.raises(ConfigError, match=r"run\.toml: is not TOML"):
            load(tmp_path, text=f"name = {value}")
        with pytest.raises(ConfigError, match=r"--set student\.hidden: "):
            load(tmp_path, f"student.hidden={value}")


def test_the_hash_changes_with_any_setting(tmp_path: Path) -> None:
    assert load(tmp_path).sha256() == load(tmp_path).sha256()
    assert load(tmp_path).sha256() != load(tmp_path, "data.view.rotation=16.0").sha256()
