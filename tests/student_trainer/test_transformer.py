"""The student that is a transformer, and those of the package transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from schemas.errors import ConfigError
from student_trainer.export import export_student, save_weights
from student_trainer.learning.first_weights import begin_with
from student_trainer.learning.student_inputs import InputField
from student_trainer.learning.students import Network, build_student, num_parameters
from student_trainer.learning.weights import tensors_sha256
from student_trainer.run.student_settings import StudentSettings, WeightsSettings

LENGTH, TOKENS, CLASSES = 12, 40, 3


def network(classes: int = CLASSES, tokens: int = TOKENS, tokenizer: str = "ab" * 32) -> Network:
    inputs = tuple(InputField(name, (LENGTH,), "int64") for name in ("input_ids", "attention_mask"))
    return Network(inputs, classes, (), tokens, tokenizer)


def made(classes: int = CLASSES, seed: int = 0, **params: Any) -> nn.Module:
    settings = StudentSettings("transformer", params={"width": 16, "heads": 4, **params})
    return build_student(settings, network(classes), seed).eval()


def texts(lengths: tuple[int, ...] = (12, 5, 1, 0)) -> tuple[Tensor, Tensor]:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, TOKENS, (len(lengths), LENGTH)))
    mask = (torch.arange(LENGTH) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


@pytest.mark.parametrize("causal", [False, True])
def test_it_gives_classes_or_positions_beside_what_is_hidden(causal: bool) -> None:
    ids, mask = texts()
    classes = made(causal=causal)(ids, mask)
    assert {name: tuple(each.shape) for name, each in classes.items()} == {
        "logits": (4, CLASSES),
        "hidden": (4, LENGTH, 16),
        "pooled": (4, 16),
    }
    assert made(TOKENS, causal=causal, positions=True)(ids, mask)["logits"].shape == (4, LENGTH, TOKENS)
    assert set(made(0)(ids, mask)) == {"hidden", "pooled"}
    assert all(torch.isfinite(each).all() for each in classes.values())  # also of a text without a token


@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing(causal: bool) -> None:
    ids, mask = texts((5, 5))
    ids[1] = ids[0]
    ids[1, 5:] = 7
    outputs = made(causal=causal)(ids, mask)
    for name in ("logits", "pooled"):
        assert torch.equal(outputs[name][0], outputs[name][1])
    assert torch.equal(outputs["hidden"][0, :5], outputs["hidden"][1, :5])


def test_only_a_causal_one_does_not_see_what_follows() -> None:
    ids, mask = texts((12, 12))
    ids[1] = ids[0]
    ids[1, 8:] = (ids[1, 8:] + 1) % TOKENS
    for causal in (True, False):
        hidden = made(causal=causal)(ids, mask)["hidden"]
        assert torch.equal(hidden[0, :8], hidden[1, :8]) == causal
        assert not torch.equal(hidden[0, 8:], hidden[1, 8:])


def test_a_text_is_the_mean_of_its_tokens_and_a_causal_one_its_last() -> None:
    ids, mask = texts((5,))
    outputs = made()(ids, mask)
    assert torch.allclose(outputs["pooled"][0], outputs["hidden"][0, :5].mean(dim=0), atol=1e-6)
    outputs = made(causal=True)(ids, mask)
    assert torch.equal(outputs["pooled"][0], outputs["hidden"][0, 4])


def test_an_embedding_is_a_layer_of_the_mean_and_has_length_1() -> None:
    plain, embeds = made(0), made(0, embedding=6)
    assert num_parameters(embeds) - num_parameters(plain) == 16 * 6 + 6
    ids, mask = texts()
    outputs = embeds(ids, mask)
    assert set(outputs) == {"hidden", "pooled", "embedding"}
    layer = embeds.get_submodule("embed")
    expected = layer(outputs["pooled"])
    expected = expected / expected.norm(dim=1, keepdim=True)
    assert torch.allclose(outputs["embedding"][:3], expected[:3], atol=1e-6)
    assert torch.allclose(outputs["embedding"][:3].norm(dim=1), torch.ones(3))
    assert torch.equal(outputs["embedding"][3], torch.zeros(6))  # of a text without a token, and no NaN
    assert set(made(embedding=6)(ids, mask)) == {"logits", *outputs}


def test_tied_weights_are_the_tokens_and_learn_as_one() -> None:
    plain, tied = (made(TOKENS, positions=True, tied=each) for each in (False, True))
    assert num_parameters(plain) - num_parameters(tied) == TOKENS * 16
    before = tied.get_parameter("tokens.weight").clone()
    ids, mask = texts()
    optimizer = torch.optim.SGD(tied.parameters(), lr=0.1)
    tied(ids, mask)["logits"].square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, tied.get_parameter("tokens.weight"))
    assert tied.get_parameter("head.weight") is tied.get_parameter("tokens.weight")


def test_its_weights_are_those_of_the_seed_and_its_vocabulary_that_of_the_data() -> None:
    hashes = [tensors_sha256(made(seed=seed).state_dict()) for seed in (3, 3, 4)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert made().get_parameter("tokens.weight").shape == (TOKENS, 16)
    assert made(vocabulary=60).get_parameter("tokens.weight").shape == (60, 16)
    back = Network.from_dict(network().as_dict())
    assert back == network()
    assert "tokenizer" not in Network.of("image", (1, 8, 8), 10).as_dict()  # as checkpoints before have it


@pytest.mark.parametrize(
    ("classes", "params", "says"),
    [
        (CLASSES, {"width": 10}, "the width a multiple of the heads"),
        (CLASSES, {"layers": 0}, "layers 0"),
        (0, {"embedding": -1}, "embedding -1 at least 0"),
        (CLASSES, {"tied": True}, "tied needs positions = true and as many classes as tokens, not 3 of 40"),
        (CLASSES, {"widht": 8}, "did you mean 'width'"),
    ],
)
def test_a_transformer_that_makes_no_sense_is_one_line(classes: int, params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        made(classes, **params)


def test_it_is_for_token_ids_alone() -> None:
    settings = StudentSettings("transformer")
    with pytest.raises(ConfigError, match=r'takes inputs = \["input_ids", "attention_mask"\]'):
        build_student(settings, Network.of("image", (1, 8, 8), 10), 0)
    with pytest.raises(ConfigError, match="does not say how many tokens there are: set vocabulary"):
        build_student(settings, network(tokens=0), 0)


@pytest.mark.parametrize("tied", [False, True])
def test_it_begins_with_every_second_layer_of_another(tmp_path: Path, tied: bool) -> None:
    shape = {"positions": True, "tied": tied}
    large, small = made(TOKENS, layers=4, **shape), made(TOKENS, seed=1, layers=2, **shape)
    save_weights(large, {}, tmp_path / "large.safetensors")
    weights = WeightsSettings(str(tmp_path / "large.safetensors"), layers={"0": 0, "1": 2})
    begun = begin_with(small, weights)
    assert f"begins with {len(small.state_dict())} of" in begun.text
    there, here = large.state_dict(), small.state_dict()
    for name, values in here.items():
        source = name.replace("layers.1.", "layers.2.")
        assert torch.equal(values, there[source]), name


def test_an_output_called_as_the_exporter_calls_a_value_inside_is_exported(tmp_path: Path) -> None:
    """What a table of tokens gives is `embedding` to PyTorch's exporter: files had two values of that name."""
    model = made(0, embedding=6)
    ids, mask = texts((12, 5, 1, 7))
    inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    found = export_student(model, inputs, tmp_path / "x.onnx", outputs=("embedding", "pooled"))
    assert found.difference < 1e-5
    graph = onnx.load(tmp_path / "x.onnx").graph
    assert [each.name for each in graph.output] == ["embedding", "pooled"]
    names = [name for node in graph.node for name in node.output]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.startswith("served.")]


@pytest.mark.faults
@pytest.mark.short
@pytest.mark.parametrize("params", [{"tied": True, "positions": True}, {"causal": True, "positions": True}, {}])
def test_its_exported_file_gives_the_same(tmp_path: Path, params: dict[str, Any]) -> None:
    model = made(TOKENS, **params)
    ids, mask = texts((12, 5, 1, 0, 7))
    inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    found = export_student(model, inputs, tmp_path / "x.onnx", outputs=("logits", "hidden", "pooled"))
    assert found.difference < 1e-5


def test_a_model_of_transformers_is_a_student(tmp_path: Path) -> None:
    model = build_student(StudentSettings("support.small_bert:bert", params={"layers": 4}), network(TOKENS), 0).eval()
    ids, mask = texts((12, 5))
    outputs = model(input_ids=ids, attention_mask=mask)
    assert outputs.logits.shape == (2, LENGTH, TOKENS)
    save_weights(model, {}, tmp_path / "bert.safetensors")
    small = build_student(StudentSettings("support.small_bert:bert", params={"layers": 2}), network(TOKENS), 1)
    weights = WeightsSettings(str(tmp_path / "bert.safetensors"), layers={"0": 0, "1": 2})
    begin_with(small, weights)
    assert torch.equal(
        small.state_dict()["bert.encoder.layer.1.output.dense.weight"],
        model.state_dict()["bert.encoder.layer.2.output.dense.weight"],
    )
