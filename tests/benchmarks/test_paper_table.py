"""The paper's table and its pictures, of figures that are made up."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from benchmarks.paper import pictures, table
from benchmarks.paper.meter import Reading
from benchmarks.paper.turns import against, mean_and_deviation, ratios

RATIOS = {"median", "quartiles", "interval", "pairs", "values"}


def readings(seconds: float, idle: float = 0.0) -> list[Reading]:
    """Turns of 10 steps of some CPU seconds, the first a little slower."""
    return [Reading(10, 10 * seconds * slower, 10 * idle, 10 * (seconds + idle), 0) for slower in (1.01, 1, 1)]


@pytest.fixture
def figures() -> dict[str, Any]:
    pure = [*readings(0.03), *readings(0.03)[:1]]
    more = {}
    for cost in (1, 5):
        more[f"online_torch_r{cost}"] = ratios(readings(0.03 * (1.5 + cost)), pure)
        more[f"online_onnx_r{cost}"] = ratios(readings(0.03 * (1 + cost)), pure)
        more[f"live_remote_r{cost}"] = ratios(readings(0.03, 0.0006), pure)
        more[f"live_local_r{cost}"] = ratios(readings(0.03, 0.03 * (cost - 1)), pure)
    accuracies = {"none": [0.9, 0.92], "online_onnx_r5": [0.95, 0.96], "replay": [0.954, 0.955]}
    said = {key: mean_and_deviation(values) for key, values in accuracies.items()}
    return {
        "ratios": {
            "live_remote": more["live_remote_r5"],
            "live_local": more["live_local_r5"],
            "replay": ratios(readings(0.031), pure),
            "rpc": ratios(readings(0.0305), pure),
            "remote_over_online_r5": against(readings(0.03, 0.0006), readings(0.18)),
        },
        "more_ratios": more | {"remote_over_online_r1": against(readings(0.03), readings(0.06))},
        "rows": {key: {"peak_mib": 300.0} for key in (*more, "none", "replay", "rpc")},
        "teachers": {"5": dict.fromkeys(("forward_ms", "cost_in_onnx", "cost_in_torch", "accuracy"), 0.9)},
        "step_ms": 30.0,
        "over_teachers": {
            "service_ms": 150.0,
            "samples_per_s": {"1": 1700.0, "2": 3400.0, "4": 6800.0, "8": 8400.0},
            "pure_samples_per_s": 8500.0,
        },
        "accuracy": {key: {"mean": m, "deviation": d, "values": accuracies[key]} for key, (m, d) in said.items()}
        | {"steps": 100, "online": "online_onnx_r5"},
        "equal_weights": {"students": ["live_remote_r5", "replay"], "sha256": "0" * 64},
        "cores": "students on core 0",
    }


def test_ratios_count_idle_time_and_name_their_interval(figures: dict[str, Any]) -> None:
    remote, over = figures["ratios"]["live_remote"], figures["ratios"]["remote_over_online_r5"]
    assert set(remote) >= RATIOS
    assert set(over) >= RATIOS
    assert remote["median"] == pytest.approx(0.98, abs=0.005)
    assert remote["idle"] == pytest.approx(0.02, abs=0.001)
    assert over["median"] == pytest.approx(6 / 1.02)
    assert figures["more_ratios"]["online_onnx_r5"]["median"] == pytest.approx(1 / 6, rel=0.02)


def test_each_row_stands_beside_the_faster_runtime_of_its_cost(figures: dict[str, Any]) -> None:
    assert table.headline(figures) == 5
    assert table.online(figures, 5) == figures["more_ratios"]["online_onnx_r5"]["median"]
    assert [(key, cost) for key, cost, _ in table.by_cost(figures)] == [
        *((key, 1) for key in ("online_torch", "online_onnx", "live_local", "live_remote")),
        *((key, 5) for key in ("online_torch", "online_onnx", "live_local", "live_remote", "replay", "rpc")),
    ]
    printed = io.StringIO()
    table.show(figures, Console(file=printed, width=180))
    assert "replay: 0.9" in printed.getvalue()
    assert ">= 0.97 missed" in printed.getvalue()
    assert "equal to online within its spread met" in printed.getvalue()


def test_accuracy_beyond_the_spread_of_online_is_not_equal(figures: dict[str, Any]) -> None:
    figures["accuracy"]["replay"]["mean"] = 0.94
    assert not table.equally_accurate(figures["accuracy"])


def test_pictures_are_whole_svg_that_names_its_lines(figures: dict[str, Any], tmp_path: Path) -> None:
    drawn = [ElementTree.parse(path).getroot() for path in pictures.draw(figures, tmp_path)]
    for root in drawn:
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
            assert 0 <= float(circle.attrib["cx"]) <= pictures.WIDTH
            assert 0 <= float(circle.attrib["cy"]) <= pictures.HEIGHT
    texts = [{each.text for each in root.iter("{http://www.w3.org/2000/svg}text")} for root in drawn]
    assert "live" in texts[0]
    assert {"live", "in the loop, ONNX", "in the loop, PyTorch", "pure training"} <= texts[1]
