"""The demo's figures: from scores to the report, and from the report to one table and a few sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

Report = Mapping[str, Any]

SCORES = ("accuracy", "nll", "ece", "kl", "agreement")
"""Of each student, over its seeds: `<score>_mean` and `<score>_std`."""
COLUMNS = {
    "teacher": "teacher",
    "student": "student",
    "argmax": "of its argmax",
    "baseline": "hard labels alone",
    "ceiling": "all labels",
}
"""Key in the report -> the head of its column."""


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def summary(scores: Sequence[Mapping[str, float]], parameters: int) -> dict[str, Any]:
    """Mean and spread over the models of one kind; `scores` as `student_trainer.evaluate` gives them."""
    found: dict[str, Any] = {"parameters": parameters, "models": len(scores)}
    for name in SCORES:
        key = "agreement_top1" if name == "agreement" else name
        if all(key in one for one in scores):
            found[f"{name}_mean"], found[f"{name}_std"] = spread([one[key] for one in scores])
    found["accuracies"] = [one["accuracy"] for one in scores]
    return found


def gain(report: Report) -> dict[str, float]:
    """Where the student's accuracy over the baseline's comes from; shares of 1, the two parts add up to the total."""
    student, argmax, baseline = (report[name]["accuracy_mean"] for name in ("student", "argmax", "baseline"))
    return {"total": student - baseline, "unlabelled_views": argmax - baseline, "softness": student - argmax}


def gain_line(report: Report) -> str:
    """Return the sentence on where the gain comes from."""
    parts = gain(report)
    student, argmax = report["student"], report["argmax"]
    return (
        f"Gain over the hard labels alone: {points(parts['total'])}. The unlabelled views (the teacher's argmax against "
        f"the hard labels) give {points(parts['unlabelled_views'])}, the softness (soft targets against the argmax) "
        f"{points(parts['softness'])}; NLL {student['nll_mean']:.3f}, of the argmax {argmax['nll_mean']:.3f}."
    )


def spread_line(report: Report) -> str:
    """Return the sentence on what the spread is of, and what it leaves out."""
    seeds = report["seeds"]
    return (
        f"Mean ± spread over {len(seeds)} seeds of the student: seed {seeds[0]} learned live, the others replayed the "
        "same log. The teacher and its labelled images are the same for all: the spread leaves theirs out."
    )


def kill_line(report: Report) -> str:
    """Return the sentence on the kill."""
    kill, log = report["kill"], report["log"]
    return (
        f"Worker {kill['worker']} was killed (SIGKILL) at sequence {kill['sequence']} of {log['orders']}, holding "
        f"{kill['partitions']} of {log['partitions']} partitions; sessions last {kill['session_timeout_s']:g} s. The "
        f"first of these was labelled on, by another worker, {_seconds(kill['first_label_s'])} after the kill, the last "
        f"{_seconds(kill['all_labels_s'])} after it."
    )


def points(share: float) -> str:
    """Return a difference of accuracies in points, signed."""
    return f"{100 * share:+.1f} points"


def _percent(mean: float, std: float | None) -> str:
    return f"{100 * mean:.1f} %" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f} %"


def _plain(mean: float, std: float | None) -> str:
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def _score(name: str, form: Callable[[float, float | None], str]) -> Callable[[Report], str]:
    def cell(model: Report) -> str:
        if f"{name}_mean" not in model:
            return ""
        return form(model[f"{name}_mean"], model[f"{name}_std"] if model["models"] > 1 else None)

    return cell


def _onnx(key: str, form: str) -> Callable[[Report], str]:
    return lambda model: form.format(model["onnx"][key]) if "onnx" in model else ""


ROWS: dict[str, Callable[[Report], str]] = {
    "accuracy": _score("accuracy", _percent),
    "kept of the teacher's": lambda model: f"{100 * model['kept']:.1f} %" if "kept" in model else "",
    "NLL": _score("nll", _plain),
    "calibration error": _score("ece", _plain),
    "agreement with teacher": _score("agreement", _percent),
    "parameters": lambda model: f"{model['parameters']:,}",
    "ONNX file, bytes": _onnx("file_bytes", "{:,}"),
    "1 sample, ms: p50": _onnx("p50_ms", "{:.4f}"),
    "1 sample, ms: p95": _onnx("p95_ms", "{:.4f}"),
    "samples/s, one core": _onnx("samples_per_s", "{:,.0f}"),
}
"""Head of a row -> the cell of a model."""


def log_rows(report: Report) -> dict[str, str]:
    """Figures of the log and the live run: head of a row -> its one value."""
    return {
        "labels published": f"{report['log']['labels']:,}",
        "lost": f"{report['lost']:,}",
        "duplicates dropped": f"{report['log']['duplicate_labels']:,}",
        "student's longest wait": _seconds(report["live"]["longest_wait_s"]),
        "kill to next label": _seconds(report["kill"]["first_label_s"]),
    }


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def table(report: Report) -> Table:
    """Return the one table."""
    made = Table(title="Handwritten digits: 500 test images, used once", caption_justify="left")
    made.add_column()
    for head in COLUMNS.values():
        made.add_column(head, justify="right")
    for name, cell in ROWS.items():
        made.add_row(name, *(cell(report[model]) for model in COLUMNS), end_section=name == list(ROWS)[-1])
    for name, value in log_rows(report).items():
        made.add_row(name, "", value)
    return made


def sentences(report: Report) -> list[str]:
    """Return what is said below the table."""
    student, teacher = report["student"], report["teacher"]
    ratio = teacher["parameters"] / student["parameters"]
    replayed = "the same" if report["replay_identical"] else "NOT the same"
    return [
        f"The student has {ratio:.1f} times fewer parameters than the teacher and keeps {100 * student['kept']:.1f} % "
        "of its accuracy.",
        gain_line(report),
        spread_line(report),
        f"{kill_line(report)} Replaying the log gave {replayed} weights as the live run, bit for bit.",
    ]


def print_report(report: Report, console: Console) -> None:
    """Print the table and the sentences."""
    console.print(table(report))
    for sentence in sentences(report):
        console.print(sentence, highlight=False)
