"""The short form of `make chaos`: the same code, a few faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

pytestmark = [pytest.mark.kafka, pytest.mark.faults]


@pytest.mark.short
@pytest.mark.timeout(400)
def test_nothing_is_lost_and_the_weights_are_those_of_an_undisturbed_run_whatever_dies(tmp_path: Path) -> None:
    soak(tmp_path, "--seed", "3354", "--faults", "7", "--every", "3", "--takeovers", "0")


@pytest.mark.timeout(900)
def test_the_same_holds_for_three_brokers_of_which_one_dies_for_good(tmp_path: Path) -> None:
    soak(tmp_path, "--seed", "1", "--faults", "15", "--every", "8", "--takeovers", "1", "--brokers", "3")


def soak(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chaos", *arguments, "--minutes", "14", "--output", folder],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=880,
    )
    print(done.stdout, done.stderr)
    report = json.loads((folder / "report.json").read_text())
    assert done.returncode == 0
    assert report["passed"]
    assert report["lost"] == 0
    assert report["identical"]
    assert report["probations"] > 0
    assert report["faults"] == int(arguments[arguments.index("--faults") + 1])
