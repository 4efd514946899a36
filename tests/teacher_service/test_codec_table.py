"""The table of what codecs do to a teacher's own outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.models import classifier
from support.more_outputs import with_outputs
from support.texts import language_model

from pipeline.cli import main
from schemas.codecs import CODECS, CodecSpec
from schemas.errors import ConfigError, TeacherRejected
from teacher_service.models import codec_table as module
from teacher_service.models.codec_table import CodecFigures, codec_table, measure
from teacher_service.models.declared import Declared, DeclaredOutput

LOGITS = np.random.default_rng(0).normal(0, 4, (40, 100)).astype(np.float32)
IDS = np.arange(40)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.001)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_outputs(classifier(tmp_path_factory.mktemp("model") / "m.onnx"), "hidden")


def of(codec: str, *temperatures: float, values: Any = LOGITS) -> CodecFigures:
    return measure(values, CodecSpec.parse(codec), temperatures or (1.0,), IDS[: len(values)])


def log_softmax(values: Any, temperature: float) -> Any:
    scaled = values.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


def test_what_keeps_all_in_full_loses_nothing() -> None:
    found = of("float32", 1.0, 4.0)
    assert (found.kl, found.top1, found.tail_error, found.error) == ({1.0: 0.0, 4.0: 0.0}, 1.0, 0.0, None)
    assert 400 < found.bytes_per_sample < 410
    assert min(found.encoded_per_s, found.decoded_per_s) > 0


def test_fewer_bits_lose_more() -> None:
    found = [of(codec) for codec in ("float16", "int8", "int4")]
    for figures in ([each.kl[1.0] for each in found], [each.tail_error for each in found]):
        assert 0 < figures[0] < figures[1] < figures[2]
    assert [each.bytes_per_sample for each in found] == sorted((each.bytes_per_sample for each in found), reverse=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_what_top_k_leaves_out_has_equal_parts_of_the_exact_tail(temperature: float) -> None:
    dense = log_softmax(LOGITS, temperature)
    kept = np.argsort(-dense, axis=1)[:, :7]
    outside = np.exp(dense)
    np.put_along_axis(outside, kept, 0.0, axis=1)
    expected = np.repeat(np.log(outside.sum(axis=1, keepdims=True) / 93), 100, axis=1)
    np.put_along_axis(expected, kept, np.take_along_axis(dense, kept, axis=1), axis=1)
    kl = (np.exp(dense) * (dense - expected)).sum(axis=1).mean()
    found = of(f"topk:k=7,temperatures={temperature}", temperature)
    assert found.kl[temperature] == pytest.approx(kl, rel=1e-3)
    assert found.tail_error == pytest.approx(0, abs=1e-6)
    assert found.top1 == 1


def test_what_a_codec_does_not_tell_is_not_there() -> None:
    assert of("topk:k=7,temperatures=2", 1.0, 2.0).kl[1.0] is None
    assert of("sampled:n=9", 1.0, 2.0).kl == {1.0: None, 2.0: None}
    assert of("sampled:n=9").top1 is None
    assert of("topk:k=100").tail_error is None


def test_each_codec_is_tried_if_none_is_named() -> None:
    assert {CodecSpec.parse(text).name for text in module.CODECS} == set(CODECS)


def test_features_have_an_error_and_nothing_of_classes(model: Path) -> None:
    outputs = (DeclaredOutput("y", "logits"), DeclaredOutput("hidden", "hidden", "features"))
    logits, hidden = codec_table(model, "digits?split=train", Declared(outputs), num_samples=40, temperatures=(4, 1, 4))
    assert [list(each.kl) for each in logits.codecs] == [[1, 4]] * 8
    assert (logits.codecs[-1].codec, logits.codecs[-1].top1) == (CodecSpec("head", 32), 1)
    assert [each.codec.name for each in hidden.codecs] == ["float32", "float16", "int8", "int4"]
    errors = [each.error for each in hidden.codecs]
    assert errors[0] == 0
    assert errors == sorted(errors)
    assert all((each.kl, each.top1, each.tail_error) == ({}, None, None) for each in hidden.codecs)


def test_a_model_without_a_linear_layer_at_its_end_has_no_head(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx", nan_above=0.9)
    (found,) = codec_table(path, "digits?split=train", num_samples=40)
    assert "head" not in [each.codec.name for each in found.codecs]
    with pytest.raises(TeacherRejected, match=r"node that gives 'holed' \(Where\) is no linear layer"):
        codec_table(path, "digits?split=train", num_samples=40, codecs=["head"])


def test_positions_are_rows(tmp_path: Path) -> None:
    path = language_model(tmp_path / "m.onnx")
    declared = Declared((DeclaredOutput("scores", "logits", positions="masked"),), inputs={"tokens": "input_ids"})
    (found,) = codec_table(path, "support.texts:sentences", declared, view="support.texts:masked", num_samples=20)
    assert (found.num_samples, found.num_rows > 20) == (20, True)
    assert found.codecs[0].kl == {1.0: 0.0}


def test_what_does_not_fit_is_one_line(model: Path) -> None:
    declared = Declared((DeclaredOutput("hidden", "hidden", "features"),))
    with pytest.raises(ConfigError, match=r"'hidden'.* this output has none"):
        codec_table(model, "digits?split=train", declared, codecs=["topk:k=3"])
    with pytest.raises(ConfigError, match=r"between 0\.001 and 1000"):
        codec_table(model, "digits?split=train", declared, temperatures=[0.0])
    with pytest.raises(ConfigError, match="beyond what int8 holds: leave that codec out"):
        measure(np.full((2, 2), 3.3e38, np.float32), CodecSpec("int8"), (1.0,), IDS[:2], classes=False)


def test_the_command_prints_a_table_and_json(model: Path) -> None:
    arguments = ["codecs", str(model), "--dataset", "digits?split=train", "--output", "logits=y", "--samples", "30"]
    plain = CliRunner().invoke(
        main, [*arguments, "--codec", "int8", "--codec", "topk:k=2,bits=8", "--temperature", "1"]
    )
    assert plain.exit_code == 0, plain.output
    title, header, *rows = plain.stdout.splitlines()
    assert title == "logits = y: logits, 10 classes: 30 samples"
    assert header.split() == [
        "codec",
        "bytes/sample",
        "encoded/s",
        "decoded/s",
        *["KL", "at", "T=1"],
        "top-1",
        "tail",
        "error",
    ]
    assert [row.split()[0] for row in rows] == ["int8", "topk:k=2,bits=8,temperatures=1"]
    said = CliRunner().invoke(main, [*arguments, "--json"])
    (output,) = json.loads(said.stdout)["outputs"]
    assert (output["output"], output["samples"], output["rows"], len(output["codecs"])) == ("logits", 30, 30, 8)
    assert output["codecs"][0]["kl"] == {"1": 0.0}
    refused = CliRunner().invoke(main, [*arguments, "--codec", "float17"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "did you mean 'float16'" in refused.stderr
