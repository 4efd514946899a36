"""The two loops over JPEG files that are held against each other show the same pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import images
from pipeline.datasets import open_dataset
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher


@pytest.mark.parametrize("size", images.SIZES)
def test_both_loops_show_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(images, "NUM_FILES", 6)
    images.write_photographs(tmp_path / "photographs")
    dataset = open_dataset(f"images:{tmp_path / 'photographs'}?size=224")
    fetcher = Fetcher(dataset, view_spec("crop_flip", images.VIEW))
    bare = images.bare_loop(images.parts_of(fetcher), size)
    ours = images.our_batch(fetcher, size, 0)
    assert bare.dtype == ours.dtype == np.float32
    assert bare.shape == ours.shape == (6, 3, size, size)
    assert np.array_equal(np.rint(ours * 255), bare)
