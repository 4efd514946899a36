"""What a student begins with: weights of a safetensors file, by names and layers, and what of it is the seed's."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.students import Reader
from torch import Tensor, nn
from train_runs import digits_run

from schemas.errors import ConfigError
from student_trainer.learning.first_weights import begin_with
from student_trainer.learning.trainee import weights_sha256
from student_trainer.run.student_settings import WeightsSettings

LAYERS = {"0": 0, "1": 2, "2": 4}


def reader(depth: int, num_classes: int = 3, seed: int = 0) -> Reader:
    torch.manual_seed(seed)
    return Reader(num_classes, 20, 4, depth)


def written(path: str | Path, tensors: dict[str, Tensor]) -> str:
    save_file({name: values.clone() for name, values in tensors.items()}, path)
    return str(path)


def deep(path: str | Path, rename: dict[str, str] | None = None, seed: int = 1) -> tuple[str, dict[str, Tensor]]:
    """A file of six layers, under other names where asked."""
    weights = {}
    for name, values in reader(6, seed=seed).state_dict().items():
        for old, new in (rename or {}).items():
            name = name.replace(old, new)
        weights[name] = values
    return written(path, weights), weights


def test_all_weights_of_a_file_are_taken_by_their_names(tmp_path: Path) -> None:
    path, there = deep(tmp_path / "w.safetensors")
    student = reader(6)
    begin_with(student, WeightsSettings(path))
    assert all(torch.equal(values, there[name]) for name, values in student.state_dict().items())


def test_layers_are_taken_from_the_numbered_stack_of_the_file(tmp_path: Path) -> None:
    path, there = deep(tmp_path / "w.safetensors")
    student = reader(3)
    begin_with(student, WeightsSettings(path, layers=LAYERS))
    for name, values in student.state_dict().items():
        source = name
        for own, theirs in ((2, 4), (1, 2)):
            source = source.replace(f"layers.{own}.", f"layers.{theirs}.") if f"layers.{own}." in name else source
        assert torch.equal(values, there[source]), name


def test_names_say_where_the_file_has_the_beginnings_of_the_students(tmp_path: Path) -> None:
    rename = {"encoder.layers": "bert.encoder.layer", "embeddings": "bert.words", "classifier": "head"}
    path, there = deep(tmp_path / "w.safetensors", rename)
    student = reader(3)
    begin_with(student, WeightsSettings(path, LAYERS, {theirs: own for theirs, own in rename.items()}))
    own = student.state_dict()
    assert torch.equal(own["encoder.layers.2.0.bias"], there["bert.encoder.layer.4.0.bias"])
    assert torch.equal(own["embeddings.weight"], there["bert.words.weight"])
    assert torch.equal(own["classifier.weight"], there["head.weight"])


def test_a_beginning_that_all_of_the_files_names_have_is_said_by_an_empty_one(tmp_path: Path) -> None:
    path = written(tmp_path / "w.safetensors", {f"model.{n}": v for n, v in reader(2, seed=1).state_dict().items()})
    student = reader(2)
    begin_with(student, WeightsSettings(path, names={"": "model"}))
    assert weights_sha256(student) == weights_sha256(reader(2, seed=1))
    stripped = written(tmp_path / "s.safetensors", dict(reader(2, seed=2).state_dict()))
    whole = nn.ModuleDict({"model": reader(2)})
    begin_with(whole, WeightsSettings(stripped, {"0": 1, "1": 0}, {"model": ""}))
    assert torch.equal(whole["model"].encoder.layers[0][0].weight, load_file(stripped)["encoder.layers.1.0.weight"])


def test_a_layer_that_is_named_by_itself_is_not_renumbered(tmp_path: Path) -> None:
    path, there = deep(tmp_path / "w.safetensors")
    student = reader(3)
    begin_with(student, WeightsSettings(path, LAYERS, {"encoder.layers.1.0": "encoder.layers.5.0"}))
    own = student.state_dict()
    assert torch.equal(own["encoder.layers.1.0.weight"], there["encoder.layers.5.0.weight"])
    assert torch.equal(own["encoder.layers.1.2.weight"], there["encoder.layers.2.2.weight"])


def test_of_two_stacks_in_both_names_say_which(tmp_path: Path) -> None:
    def two(depth: int) -> nn.Module:
        return nn.ModuleDict({part: nn.ModuleList(nn.Linear(2, 2) for _ in range(depth)) for part in ("left", "right")})

    path = written(tmp_path / "w.safetensors", dict(two(4).state_dict()))
    student = two(2)
    with pytest.raises(ConfigError, match=r"layers: both have left, right; .*names = "):
        begin_with(student, WeightsSettings(path, {"0": 0, "1": 3}))
    begin_with(student, WeightsSettings(path, {"0": 0, "1": 3}, {"left": "right"}))
    there = load_file(path)
    assert torch.equal(student.state_dict()["left.1.weight"], there["right.3.weight"])
    assert torch.equal(student.state_dict()["right.1.weight"], there["right.1.weight"])


def test_what_the_file_has_not_keeps_the_seeds_weights_where_that_is_asked_for(tmp_path: Path) -> None:
    path, there = deep(tmp_path / "w.safetensors", {"classifier": "head"})
    with pytest.raises(ConfigError, match=r"has no classifier.weight for the student's classifier.weight \(and 1 more"):
        begin_with(reader(6), WeightsSettings(path))
    student = reader(6)
    begin_with(student, WeightsSettings(path, partial=True))
    assert torch.equal(student.classifier.weight, reader(6).classifier.weight)
    assert torch.equal(student.embeddings.weight, there["embeddings.weight"])

    # A layer that is left out of `layers` is none of the file's.
    with pytest.raises(ConfigError, match=r"has no layer for the student's encoder\.layers\.1\.0\.weight"):
        begin_with(reader(3), WeightsSettings(deep(tmp_path / "v.safetensors")[0], {"0": 0, "2": 5}))


def test_what_is_fresh_keeps_the_seeds_weights_and_all_else_must_be_there(tmp_path: Path) -> None:
    path, there = deep(tmp_path / "w.safetensors")
    other = reader(6, num_classes=7)  # of another task
    begin_with(other, WeightsSettings(path, fresh=("classifier",)))
    assert torch.equal(other.classifier.weight, reader(6, num_classes=7).classifier.weight)
    assert torch.equal(other.embeddings.weight, there["embeddings.weight"])

    other = reader(3)
    begin_with(other, WeightsSettings(path, LAYERS, fresh=("encoder.layers.1",)))
    assert torch.equal(other.encoder.layers[1][0].weight, reader(3).encoder.layers[1][0].weight)
    assert torch.equal(other.encoder.layers[2][0].weight, there["encoder.layers.4.0.weight"])
    with pytest.raises(ConfigError, match=r"has no embeddings\.weight "):
        begin_with(reader(6), WeightsSettings(deep(path, {"embeddings": "words"})[0], fresh=("classifier",)))


def test_a_line_says_how_much_was_taken_and_what_is_the_seeds(tmp_path: Path) -> None:
    path, _ = deep(tmp_path / "w.safetensors")
    assert begin_with(reader(6), WeightsSettings(path)).text == f"begins with 27 of 27 tensors from {path}"
    text = begin_with(reader(6), WeightsSettings(path, fresh=("classifier",))).text
    assert text == f"begins with 25 of 27 tensors from {path}; the seed's are classifier.weight, classifier.bias"
    text = begin_with(reader(7), WeightsSettings(path, partial=True)).text
    assert text.endswith(
        "; the seed's are encoder.layers.6.0.weight, encoder.layers.6.0.bias, encoder.layers.6.2.weight, ..."
    )


def test_what_is_frozen_is_the_files_or_said_to_be_fresh(tmp_path: Path) -> None:
    path, _ = deep(tmp_path / "w.safetensors", {"embeddings": "words"})
    with pytest.raises(ConfigError, match=r"has nothing for embeddings\.weight, which \[student\] frozen keeps"):
        begin_with(reader(6), WeightsSettings(path, partial=True), ["embeddings", "encoder"])
    begin_with(reader(6), WeightsSettings(path, partial=True), ["encoder"])
    begin_with(reader(6), WeightsSettings(path, fresh=("embeddings",)), ["embeddings"])


def test_tied_weights_need_one_of_their_names(tmp_path: Path) -> None:
    def tied(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.ModuleDict({"into": nn.Linear(3, 3, bias=False), "out": nn.Linear(3, 3, bias=False)})
        model["out"].weight = model["into"].weight
        return model

    path = written(tmp_path / "w.safetensors", {"into.weight": tied(1)["into"].weight.detach()})
    student = tied(0)
    begin_with(student, WeightsSettings(path))
    assert weights_sha256(student) == weights_sha256(tied(1))


def test_numbers_of_other_widths_become_the_students(tmp_path: Path) -> None:
    there = {name: values.to(torch.bfloat16) for name, values in reader(2, seed=1).state_dict().items()}
    student = reader(2)
    begin_with(student, WeightsSettings(written(tmp_path / "w.safetensors", there)))
    assert student.embeddings.weight.dtype == torch.float32
    assert torch.equal(student.embeddings.weight, there["embeddings.weight"].float())


def spoilt(changes: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**reader(2, seed=1).state_dict(), **changes}


@pytest.mark.parametrize(
    ("tensors", "settings", "says"),
    [
        (spoilt({"classifier.bias": torch.zeros(5)}), {}, r"classifier\.bias is \[5\], not \[3\]$"),
        (
            spoilt({"classifier.bias": torch.zeros(5), "classifier.weight": torch.zeros(5, 4)}),
            {"partial": True},
            r"classifier\.weight is \[5, 4\], not \[3, 4\] \(and 1 more\)",
        ),
        (spoilt({"classifier.bias": torch.zeros(3, dtype=torch.int64)}), {}, r"torch\.int64, not torch\.float32"),
        (spoilt({"classifier.bias": torch.tensor([0, torch.nan, 0])}), {}, r"classifier\.bias holds NaN"),
        ({"x": torch.zeros(2)}, {"partial": True}, r"has no embeddings\.weight .*begins with x$"),
        ({}, {}, r"begins with nothing$"),
        (spoilt({}), {"names": {"encodr.layers": "x"}}, r"has no 'encodr\.layers': did you mean 'encoder\.layers"),
        (
            spoilt({}),
            {"names": {"encoder.layers": "encodr.layers"}, "partial": True},
            r"names: the file has no 'encodr\.layers': did you mean 'encoder\.layers'",
        ),
        (
            spoilt({}),
            {"names": {"encoder": "x"}},
            r"has no 'x': choose one of classifier, embeddings, encoder$",
        ),
        (
            spoilt({}),
            {"names": {"encoder": "embeddings"}, "partial": True},
            r"has nothing for the student's 'encoder' in 'embeddings': for encoder\.layers\.0\.0\.weight there is no "
            r"embeddings\.layers\.0\.0\.weight$",
        ),
        (spoilt({}), {"fresh": ("clasifier",)}, r"fresh: the student has no 'clasifier': did you mean 'classifier'"),
        (spoilt({}), {"fresh": ("classifier", "embeddings", "encoder")}, r"has no layer for the student's"),
        (spoilt({}), {"layers": {"0": 2}}, r"layers: the file has no layer 2 in encoder\.layers, but 0, 1"),
        (spoilt({}), {"layers": {"7": 0}}, r"layers: the student has no layer 7 in encoder\.layers, but 0, 1"),
        ({"head": torch.zeros(2)}, {"layers": {"0": 0}}, r"none is in both; .*the file no numbered layers"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, tensors: dict[str, Tensor], settings: dict[str, Any], says: str
) -> None:
    path, student = written(tmp_path / "w.safetensors", tensors), reader(2)
    with pytest.raises(ConfigError, match=says):
        begin_with(student, WeightsSettings(path, **settings))
    assert weights_sha256(student) == weights_sha256(reader(2))


def form(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: str, shape: list[int], end: int) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


HOSTILE = {
    "empty": b"",
    "short": b"\x01\x02",
    "no header": struct.pack("<Q", 0),
    "endless header": struct.pack("<Q", 1 << 62) + b"{}",
    "header longer than the file": struct.pack("<Q", 5000) + b"{}",
    "no JSON": form(b"{{{{"),
    "no UTF-8": form(b"\xff\xfe"),
    "deep JSON": form(b"[" * 100_000),
    "a list": form([1, 2]),
    "an unknown dtype": form(entry("F99", [1], 4), b"1234"),
    "truncated": form(entry("F32", [100], 400), b"1234"),
    "more than it says": form(entry("F32", [1], 4), b"12345678"),
    "another shape than its bytes": form(entry("F32", [7], 4), b"1234"),
    "a negative shape": form(entry("F32", [-1], 4), b"1234"),
    "a shape beyond 64 bits": form(entry("F32", [1 << 40, 1 << 40], 4), b"1234"),
    "offsets backwards": form({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"),
    "a pickle": b"\x80\x04\x95" + b"x" * 100,
    "a zip": b"PK\x03\x04" + b"x" * 100,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_is_no_safetensors_file_is_one_line(tmp_path: Path, what: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(HOSTILE[what])
    with pytest.raises(ConfigError, match=r"w\.safetensors: is no safetensors file: ") as refused:
        begin_with(reader(2), WeightsSettings(str(tmp_path / "w.safetensors")))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_where_nothing_can_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        begin_with(reader(2), WeightsSettings(str(tmp_path / "w.safetensors")))
    with pytest.raises(ConfigError, match="there is no run"):
        begin_with(reader(2), WeightsSettings(str(tmp_path)))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"path": "w", "layer": {}}, r"\[weights\]: key 'layer' is unknown: did you mean 'layers'"),
        ({"layers": {}}, "'path' is missing"),
        ({"path": ""}, "path is missing"),
        ({"path": "w", "fresh": [""]}, "fresh has an empty name"),
        ({"path": "w", "fresh": ["head"], "names": {"head": "x"}}, "'head' is in names and in fresh"),
        ({"path": "w", "layers": {"one": 1}}, "'one' is no number of a layer"),
        ({"path": "w", "layers": {"0": "1"}}, "layers.0 must be an integer"),
        (3, "weights must be a table"),
    ],
)
def test_settings_of_weights_that_make_no_sense_are_one_line(weights: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        digits_run(student={"weights": weights})


def test_running_statistics_that_are_not_finite_are_refused_by_name_and_a_mask_of_infinities_is_taken(
    tmp_path: Path,
) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    good, bad = Normed().state_dict(), Normed().state_dict()
    bad["norm.running_mean"] = torch.full((2,), torch.nan)
    for name, tensors in (("good", good), ("bad", bad)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    begin_with(Normed(), WeightsSettings(str(tmp_path / "good.safetensors")))
    with pytest.raises(ConfigError, match=r"norm\.running_mean holds NaN or infinity"):
        begin_with(Normed(), WeightsSettings(str(tmp_path / "bad.safetensors")))
