from __future__ import annotations

import pytest

from schemas.errors import ConfigError
from schemas.names import check_name, did_you_mean


@pytest.mark.parametrize("name", ["a", "7", "digits", "ViT-L_14", "a" * 64])
def test_a_good_name_is_returned(name: str) -> None:
    assert check_name("stream", name) == name


@pytest.mark.parametrize("name", ["", ".", "a.b", "-a", "_a", "a b", "a/b", "ä", "a\n", "a" * 65, "٣"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="stream name"):
        check_name("stream", name)


def test_a_mistyped_name_gets_the_nearest_or_all() -> None:
    assert did_you_mean("flaot16", ["float16", "topk"]) == "did you mean 'float16'?"
    assert did_you_mean("zzz", ["topk", "float16"]) == "choose one of float16, topk"
    assert did_you_mean("zzz", []) == "there is none"
