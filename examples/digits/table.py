"""The demo's figures: from scores to the report, and from the report to one table and a few sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Report = Mapping[str, Any]

BATCH = 500
"""Samples at once when throughput is measured: the test images."""

SCORES = ("accuracy", "nll", "ece", "kl", "agreement")
"""Of each student, over its seeds: `<score>_mean` and `<score>_std`."""
COLUMNS = {
    "teacher": "teacher",
    "student": "student,\ndistilled",
    "argmax": "student of\nits argmax",
    "baseline": "student of\nhard labels",
    "ceiling": "student of\nall labels",
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
    parts = {name: points(share) for name, share in gain(report).items()}
    student, argmax = report["student"], report["argmax"]
    return (
        f"Gain over the hard labels alone: {parts['total']}. Of it {parts['unlabelled_views']} by the unlabelled views "
        f"(the teacher's argmax against the hard labels), {parts['softness']} by softness (soft targets against the "
        f"argmax); NLL {student['nll_mean']:.3f}, with the argmax {argmax['nll_mean']:.3f}."
    )


def spread_line(report: Report) -> str:
    """Return the sentence on what the spread is of, and what it leaves out."""
    seeds = report["seeds"]
    return (
        f"± is the spread over {len(seeds)} seeds of the student: seed {seeds[0]} learned live, the others replayed "
        "the same log. Teacher and labelled images are the same for all: the spread leaves theirs out."
    )


def kill_line(report: Report) -> str:
    """Return the sentence on the kill."""
    kill, log = report["kill"], report["log"]
    return (
        f"{kill['worker']} was killed (SIGKILL) at sequence {kill['sequence']} of {log['orders']}, holding "
        f"{kill['partitions']} of {log['partitions']} partitions, with sessions of {kill['session_timeout_s']:g} s. "
        f"Others labelled the first of these on after {_seconds(kill['first_label_s'])}, the last "
        f"after {_seconds(kill['all_labels_s'])}; the student waited {_seconds(report['live']['longest_wait_s'])} "
        "at the longest."
    )


def points(share: float) -> str:
    """Return a difference of accuracies in points, signed."""
    return f"{100 * share:+.1f} points"


def _percent(mean: float, std: float | None) -> str:
    return f"{100 * mean:.1f}" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f}"


def _plain(mean: float, std: float | None) -> str:
    return f"{mean:.3f}" if std is None else f"{mean:.3f}±{std:.3f}"


def _score(name: str, form: Callable[[float, float | None], str]) -> Callable[[Report], str]:
    def cell(model: Report) -> str:
        if f"{name}_mean" not in model:
            return ""
        return form(model[f"{name}_mean"], model[f"{name}_std"] if model["models"] > 1 else None)

    return cell


def _onnx(key: str, form: str) -> Callable[[Report], str]:
    return lambda model: form.format(model["onnx"][key]) if "onnx" in model else ""


ROWS: dict[str, Callable[[Report], str]] = {
    "accuracy, %": _score("accuracy", _percent),
    "  of the teacher's": lambda model: f"{100 * model['kept']:.1f}" if "kept" in model else "",
    "NLL": _score("nll", _plain),
    "calibration error": _score("ece", _plain),
    "agreement, %": _score("agreement", _percent),
    "parameters": lambda model: f"{model['parameters']:,}",
    "ONNX file, bytes": _onnx("file_bytes", "{:,}"),
    "latency p50, ms": _onnx("p50_ms", "{:.4f}"),
    "latency p95, ms": _onnx("p95_ms", "{:.4f}"),
    "1,000 samples/s": lambda model: f"{model['onnx']['samples_per_s'] / 1000:,.0f}" if "onnx" in model else "",
}
"""Head of a row -> the cell of a model; narrow, so that the table fits into 80 columns."""


def log_rows(report: Report) -> dict[str, str]:
    """Figures of the log and the live run: head of a row -> its one value."""
    return {
        "labels published": f"{report['log']['labels']:,}",
        "lost": f"{report['lost']:,}",
        "duplicates dropped": f"{report['log']['duplicate_labels']:,}",
        "longest wait": _seconds(report["live"]["longest_wait_s"]),
        "kill to next label": _seconds(report["kill"]["first_label_s"]),
    }


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def table(report: Report) -> Table:
    """Return the one table."""
    made = Table(
        title="Handwritten digits, 500 test images", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
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
    student = report["student"]
    replayed = "the same" if report["replay_identical"] else "NOT the same"
    threads = student["onnx"]["threads"]
    return [
        f"The student has {report['times_smaller']:.1f} times fewer parameters than the teacher and keeps "
        f"{100 * student['kept']:.1f} % of its accuracy. Agreement is with the teacher. Latency is of one sample, "
        f"throughput of {BATCH} at once, both of the ONNX file on {threads} CPU thread{'s' * (threads != 1)}.",
        gain_line(report),
        spread_line(report),
        kill_line(report),
        f"Replaying the whole log gave {replayed} weights as the live run, bit for bit.",
    ]


def print_report(report: Report, console: Console) -> None:
    """Print the table and the sentences."""
    console.print()
    console.print(table(report))
    console.print()
    for sentence in sentences(report):
        console.print(sentence, highlight=False)
