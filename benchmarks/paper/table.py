"""The paper's table as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report import verdict

LEAST = 0.97
"""of pure training, that live training with teachers elsewhere and replay are to reach"""
PAPER = 3.125
"""how many times faster than online distillation the paper's system is at best"""
_TITLES = {
    "online_torch": "(2) teacher in the loop, PyTorch",
    "online_onnx": "(2) teacher in the loop, ONNX Runtime",
    "live_local": "(3) live, teacher beside the student",
    "live_remote": "(4) live, teachers elsewhere",
    "replay": "(5) replay of (4)",
    "rpc": "(6) RPC, teachers elsewhere",
}


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Print a row for each way to train at each cost, then bars, accuracy and what the run was."""
    table = Table(title="samples/s by the student's own seconds; ratios: median, 95 % interval of it, quartiles")
    for header in ("", "r", "samples/s", "to (1)", "95 %", "quartiles", "idle", "to (2)", "bytes", "peak MiB"):
        table.add_column(header, justify="left" if not header else "right", no_wrap=True)
    rows = figures["rows"]
    some = figures["ratios"]["live_remote"]
    peak = _or_nothing(rows["none"]["peak_mib"], ".0f")
    table.add_row("(1) hard labels", "", f"{some['bare_samples_per_s']:,.0f}", "1", "", "", "", "", "", peak)
    for key, cost, ratio in by_cost(figures):
        low, high = ratio["interval"]
        first, third = ratio["quartiles"]
        row = rows[f"{key}_r{cost}" if f"{key}_r{cost}" in rows else key]
        table.add_row(
            _TITLES[key],
            str(cost),
            f"{ratio['samples_per_s']:,.0f}",
            f"{ratio['median']:.3f}",
            f"{low:.3f} - {high:.3f}",
            f"{first:.3f} - {third:.3f}",
            f"{ratio['idle']:.3f}",
            f"{ratio['median'] / online(figures, cost):.2f}",
            _or_nothing(row.get("bytes_per_sample"), ".1f"),
            _or_nothing(row["peak_mib"], ".0f"),
        )
    console.print(table)
    for line in lines(figures):
        console.print(line)


def headline(figures: Mapping[str, Any]) -> int:
    """The cost at which all is measured."""
    (key,) = [key for key in figures["ratios"] if key.startswith("remote_over_online_r")]
    return int(key.rpartition("_r")[2])


def by_cost(figures: Mapping[str, Any]) -> list[tuple[str, int, dict[str, Any]]]:
    """Way to train, cost, and its ratio to pure training; in the order of costs, then of the table."""
    found = []
    for name, ratio in (figures["ratios"] | figures["more_ratios"]).items():
        key, _, cost = name.rpartition("_r")
        if key in _TITLES:
            found.append((key, int(cost), ratio))
        elif name in ("replay", "rpc"):
            found.append((name, headline(figures), ratio))
    return sorted(found, key=lambda one: (one[1], list(_TITLES).index(one[0])))


def online(figures: Mapping[str, Any], cost: int) -> float:
    """The faster runtime's ratio to pure training, with the teacher in the loop."""
    ways = (figures["more_ratios"].get(f"online_{runtime}_r{cost}") for runtime in ("torch", "onnx"))
    return max(float(way["median"]) for way in ways if way is not None)


def equally_accurate(accuracy: Mapping[str, Any]) -> bool:
    """Whether replay's mean accuracy lies within online distillation's deviation over seeds of its mean."""
    theirs, ours = accuracy[accuracy["online"]], accuracy["replay"]
    return bool(abs(ours["mean"] - theirs["mean"]) <= theirs["deviation"] + 1e-9)


def lines(figures: Mapping[str, Any]) -> list[str]:
    """What is no row: bars, equal weights, accuracy, teachers, cores."""
    found = []
    for key in ("live_remote", "replay"):
        median = figures["ratios"][key]["median"]
        found.append(f"{key}: {median:.3f} of pure training ({verdict(median >= LEAST, f'>= {LEAST}')})")
    cost = headline(figures)
    over = figures["ratios"][f"remote_over_online_r{cost}"]
    low, high = over["interval"]
    most = 1 / online(figures, cost)
    found.append(
        f"live with teachers elsewhere is {over['median']:.2f} times as fast as online distillation at r = {cost} "
        f"(95 %: {low:.2f} - {high:.2f}; {verdict(over['median'] > PAPER, f'> {PAPER}')}; pure training is {most:.2f})"
    )
    accuracy = figures["accuracy"]
    said = ", ".join(
        f"{name} {100 * accuracy[key]['mean']:.2f} ± {100 * accuracy[key]['deviation']:.2f}"
        for name, key in (("hard labels", "none"), ("online", accuracy["online"]), ("replay", "replay"))
    )
    seeds = len(accuracy["replay"]["values"])
    same = verdict(equally_accurate(accuracy), "equal to online within its spread")
    found.append(f"accuracy after {accuracy['steps']} steps, {seeds} seeds, %: {said} ({same})")
    equal = figures["equal_weights"]
    found.append(f"equal weights after as many steps: {', '.join(equal['students'])} (SHA-256 {equal['sha256'][:12]})")
    for cost, teacher in figures["teachers"].items():
        found.append(
            f"teacher of r = {cost}: forward of {teacher['forward_ms']:.1f} ms where the student's step is "
            f"{figures['step_ms']:.1f} ms; in the loop it cost {teacher['cost_in_onnx']:.2f} steps in ONNX Runtime, "
            f"{teacher['cost_in_torch']:.2f} in PyTorch; accuracy {100 * teacher['accuracy']:.1f} %"
        )
    over_teachers = figures["over_teachers"]
    rates = ", ".join(f"{count}: {rate:,.0f}" for count, rate in over_teachers["samples_per_s"].items())
    found.append(
        f"by the clock, nobody stopped: samples/s with teachers of {over_teachers['service_ms']:.0f} ms an order, "
        f"{rates}; hard labels alone {over_teachers['pure_samples_per_s']:,.0f}"
    )
    found.append(figures["cores"])
    return found


def _or_nothing(value: float | None, shape: str) -> str:
    return "" if value is None else format(value, shape)
