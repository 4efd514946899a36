from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from chaos.waits import longest_wait


def write(run: Path, lines: list[tuple[float, float, float]], torn: str = "") -> None:
    """Lines of metrics: when, seconds waited in all, seconds of the longest wait but the first."""
    text = [
        json.dumps({"timing": {"time": time, "waited_s": waited, "longest_wait_s": longest}}) + "\n"
        for time, waited, longest in lines
    ]
    (run / "metrics.jsonl").write_text("".join(text) + torn)


BEFORE = (90.0, 50.0, 50.0)
"""Of the process before, up to the checkpoint."""


def test_a_process_that_ended_by_itself_has_the_longest_wait_that_it_says(tmp_path: Path) -> None:
    write(tmp_path, [(101.0, 1.0, 0.0), (106.0, 5.0, 4.0), (107.0, 5.5, 4.0)])
    assert longest_wait(tmp_path, 100.0, None, first=True) == 4.0


def test_the_first_wait_of_a_process_counts_but_for_the_very_first_one(tmp_path: Path) -> None:
    write(tmp_path, [BEFORE, (107.0, 6.0, 0.0), (108.0, 6.5, 0.5)])
    assert longest_wait(tmp_path, 100.0, None, first=False) == 6.0
    assert longest_wait(tmp_path, 100.0, None, first=True) == 0.5


def test_a_wait_that_a_kill_cut_short_counts_from_the_last_step(tmp_path: Path) -> None:
    write(tmp_path, [BEFORE, (101.0, 1.0, 0.0), (103.0, 2.0, 1.0)], torn='{"timing": {"ti')
    assert longest_wait(tmp_path, 100.0, 112.0, first=False) == 9.0


@pytest.mark.parametrize(("trains_since", "seconds"), [(104.0, 8.0), (95.0, 0.0), (None, 0.0)])
def test_one_that_was_killed_before_its_first_step_waited_since_it_trains(
    tmp_path: Path, trains_since: float | None, seconds: float
) -> None:
    write(tmp_path, [BEFORE])
    if trains_since is not None:
        (tmp_path / "run.json").write_text("{}")
        os.utime(tmp_path / "run.json", (trains_since, trains_since))
    assert longest_wait(tmp_path, 100.0, 112.0, first=False) == seconds
