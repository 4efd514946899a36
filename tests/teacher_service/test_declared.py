"""What is said of a model from Python: a value of another type is refused by its name, before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.codecs import CodecSpec
from schemas.errors import ConfigError
from teacher_service.models.declared import Declared, DeclaredOutput, Scaling

WRONG_OUTPUTS: dict[str, list[Any]] = {
    "output": ["", None, 3],
    "name": [None, 1],
    "kind": [None, "logitz", ("logits",)],
    "axis": [True, 1.0, "1"],
    "codec": [3, b"float16", ("float16",)],
    "positions": [5, None],
    "class_map": [[0, 1, 2], "", np.arange(300), 0],
    "reduction": [1, None],
}

WRONG: dict[str, list[Any]] = {
    "outputs": [("topic",), "topic", DeclaredOutput("topic"), None, 3],
    "kind": ["logitz", 3, ""],
    "inputs": [["x"], {"image": 3}, {1: "x"}, None],
    "scaling": [Scaling(), {"image": 0.5}, None],
    "general": [0.5, None],
    "layout": ["NCHW", 1],
    "channel_order": ["rgb", None],
    "batch": ["8", 8.0, True],
}

WRONG_SCALINGS: dict[str, list[Any]] = {
    "scale": ["1/255", True, (1.0,)],
    "mean": [0.5, ("0.5",), "0.5", None],
    "std": [1, (True,), {1.0}],
}


def cases(wrong: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(key, value) for key, values in wrong.items() for value in values]


def refused(kind: type, key: str, value: Any, **others: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{kind.__name__}: {key} is .*: give ") as caught:
        kind(**{**others, key: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(("key", "value"), cases(WRONG_OUTPUTS))
def test_a_value_of_an_output_of_another_type_is_refused(key: str, value: Any) -> None:
    refused(DeclaredOutput, key, value, output="y")


@pytest.mark.parametrize(("key", "value"), cases(WRONG))
def test_a_value_of_a_declaration_of_another_type_is_refused(key: str, value: Any) -> None:
    refused(Declared, key, value)


@pytest.mark.parametrize(("key", "value"), cases(WRONG_SCALINGS))
def test_a_value_of_a_scaling_of_another_type_is_refused(key: str, value: Any) -> None:
    refused(Scaling, key, value)


def test_a_codec_may_be_given_as_text() -> None:
    spec = CodecSpec("topk", 10)
    assert DeclaredOutput("y", codec="topk:k=10") == DeclaredOutput("y", codec=spec)
    assert DeclaredOutput("y", codec="topk:k=10").codec_spec == spec
    with pytest.raises(ConfigError, match="unknown codec 'float61': did you mean 'float16'"):
        DeclaredOutput("y", codec="float61")


def test_lists_paths_and_numbers_of_arrays_do_as_well() -> None:
    one = DeclaredOutput("y", axis=np.int64(1), class_map=Path("map.txt"))  # type: ignore[arg-type]
    assert Declared([one]).outputs == (one,)  # type: ignore[arg-type]
    scaling = Scaling(np.float32(0.5), [1, np.float64(2)])  # type: ignore[arg-type]
    assert scaling == Scaling(0.5, (1.0, 2.0))
    assert hash(scaling) == hash(Scaling(0.5, (1.0, 2.0)))
