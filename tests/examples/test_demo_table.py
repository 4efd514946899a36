from __future__ import annotations

import io
from typing import Any

import pytest
import table
from rich.console import Console


def model(accuracy: float, **more: Any) -> dict[str, Any]:
    scores = {"accuracy": accuracy, "nll": 0.25, "ece": 0.02, "kl": 0.1, "agreement_top1": 0.97}
    return table.summary([scores, {**scores, "accuracy": accuracy + 0.01}], 4_810) | {"kept": 0.99} | more


@pytest.fixture
def report() -> dict[str, Any]:
    speed = {"file_bytes": 24_558, "p50_ms": 0.004, "p95_ms": 0.005, "samples_per_s": 1e6, "threads": 1}
    teacher = table.summary([{"accuracy": 0.95, "nll": 0.1, "ece": 0.03}], 62_250)
    return {
        "lost": 0,
        "seeds": [0, 1],
        "times_smaller": 62_250 / 4_810,
        "teacher": teacher | {"onnx": speed},
        "student": model(0.94, onnx=speed),
        "argmax": model(0.935),
        "baseline": model(0.91),
        "ceiling": model(0.97),
        "log": {"labels": 259_400, "orders": 1_200, "partitions": 16, "duplicate_labels": 512},
        "live": {"longest_wait_s": 2.5},
        "kill": {
            "worker": "worker-1",
            "sequence": 300,
            "partitions": 8,
            "first_label_s": 2.25,
            "all_labels_s": 3.0,
            "session_timeout_s": 2,
        },
        "replay_identical": True,
    }


def printed(report: dict[str, Any], width: int = 80) -> str:
    out = io.StringIO()
    table.print_report(report, Console(file=out, width=width))
    return out.getvalue()


def test_a_spread_is_the_sample_standard_deviation_and_0_of_one_value():
    assert table.spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert table.spread([0.9]) == (0.9, 0.0)


def test_a_summary_has_mean_and_spread_of_every_score_that_all_models_have(report: dict[str, Any]):
    student = report["student"]
    assert student["accuracy_mean"] == pytest.approx(0.945)
    assert student["accuracy_std"] == pytest.approx(0.01 / 2**0.5)
    assert student["agreement_mean"] == pytest.approx(0.97)
    assert (student["parameters"], student["models"]) == (4_810, 2)
    assert "agreement_mean" not in report["teacher"]


def test_the_parts_of_the_gain_add_up_to_it(report: dict[str, Any]):
    parts = table.gain(report)
    assert parts["total"] == pytest.approx(0.03)
    assert parts["unlabelled_views"] + parts["softness"] == pytest.approx(parts["total"])


def test_the_gain_line_says_where_it_comes_from_with_signs(report: dict[str, Any]):
    assert "+3.0 points. Of it +2.5 points by the unlabelled views" in table.gain_line(report)
    report["argmax"] = model(0.95)
    assert "-1.0 points by softness" in table.gain_line(report)


def test_the_spread_line_says_that_the_teachers_is_left_out(report: dict[str, Any]):
    assert "the spread leaves theirs out" in table.spread_line(report)


def test_every_row_of_the_table_stands_on_one_line_of_80_columns(report: dict[str, Any]):
    lines = printed(report).splitlines()
    assert max(map(len, lines)) <= 80
    for row in (*table.ROWS, *table.log_rows(report)):
        assert sum(line.startswith(row + " ") for line in lines) == 1, row


def test_the_table_shows_means_with_spreads_but_for_the_lone_teacher(report: dict[str, Any]):
    (line,) = (line for line in printed(report).splitlines() if line.startswith("accuracy"))
    assert line.split("  ")[-5:][0].strip() == "95.0"
    assert "94.5 ± 0.7" in line


@pytest.mark.parametrize(("row", "value"), [("lost", "0"), ("labels published", "259,400"), ("longest wait", "2.5 s")])
def test_the_figures_of_the_log_are_in_the_table(report: dict[str, Any], row: str, value: str):
    assert table.log_rows(report)[row] == value


def test_weights_that_a_replay_did_not_give_again_are_said_aloud(report: dict[str, Any]):
    report["replay_identical"] = False
    assert "NOT the same weights" in printed(report)
