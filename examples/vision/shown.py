"""What was found, as a table in Markdown and as a picture in SVG."""

from __future__ import annotations

import statistics
from html import escape
from typing import Any

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 640, 34, 176, 24, 44, 40
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #57606a }
.title { font-weight: 600 }
.grid { stroke: #8c959f; stroke-opacity: .3 }
.teacher { stroke: #d29922; stroke-width: 2; stroke-dasharray: 6 5 }
.mean { stroke: #2f81f7; stroke-width: 3 }
.seed { fill: #2f81f7; fill-opacity: .55 }
@media (prefers-color-scheme: dark) { text { fill: #adbac7 } }
"""


def table(figures: dict[str, Any]) -> list[str]:
    """Lines of Markdown: accuracy and NLL of each, size and latency of each kind of file."""
    teacher, files = figures["teacher"], figures["files"]
    lines = ["", "| | accuracy | of the teacher's | NLL | parameters | ONNX file, bytes | latency, ms |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")

    def row(name: str, accuracy: str, share: float, nll: str, parameters: int | str, file: dict[str, Any]) -> None:
        size = [f"{file['file_bytes']:,}", f"{file['p50_ms']:.3f}"] if file else ["", ""]
        shown = f"{parameters:,}" if parameters else ""
        lines.append("| " + " | ".join([name, accuracy, f"{share:.1%}", nll, shown, *size]) + " |")

    right = teacher["accuracy"]
    row("teacher", f"{right:.1%}", 1.0, f"{teacher['nll']:.3f}", teacher["parameters"], files["teacher"])
    for recipe, found in figures["students"].items():
        values = {key: [each[key] for each in found] for key in ("accuracy", "nll")}
        mean = statistics.mean(values["accuracy"])
        nll = f"{statistics.mean(values['nll']):.3f} ± {statistics.stdev(values['nll']):.3f}"
        accuracy = f"{mean:.1%} ± {100 * statistics.stdev(values['accuracy']):.1f}"
        row(f"student: {recipe}", accuracy, mean / right, nll, found[0]["parameters"], files["student"])
    small = files["int8"]
    row(
        "seed 0 of logits, in int8",
        f"{small['accuracy']:.1%}",
        small["accuracy"] / right,
        f"{small['nll']:.3f}",
        "",
        small,
    )
    counts, digits = figures["pictures"]["counts"], figures["pictures"]["digits"]
    split = figures["looked_at"]
    lines += [
        "",
        f"Of {counts['train']:,} pictures {figures['labelled']:,} have labels. Accuracy is of {counts[split]:,}",
        f"({split}) of {digits[split]} other digits; mean and deviation over {len(found)} seeds of the students.",
        f"All of it took {figures['seconds']:.0f} s.",
    ]
    return lines


def picture(figures: dict[str, Any]) -> str:
    """SVG: a row for each recipe, in it a dot for each seed and a bar at their mean; a line for the teacher."""
    teacher, students = figures["teacher"]["accuracy"], figures["students"]
    values = {recipe: [each["accuracy"] for each in found] for recipe, found in students.items()}
    every = [teacher, *(value for found in values.values() for value in found)]
    # In steps of 5 points.
    low, high = int(20 * min(every)) / 20, -int(-20 * max(every) - 1) / 20
    height = TOP + ROW * len(values) + BOTTOM

    def along(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    title = f"Accuracy on {figures['pictures']['counts'][figures['looked_at']]:,} pictures: each seed, and the mean"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="12" y="22">{title}</text>',
    ]
    for step in range(round(low * 20), round(high * 20) + 1):
        x = along(step / 20)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{height - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{5 * step}%</text>')
    for number, (recipe, found) in enumerate(values.items()):
        y = TOP + ROW * (number + 0.5)
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(recipe)}</text>')
        parts.append(f'<path class="mean" d="M{along(statistics.mean(found)):.1f} {y - 9:.1f}v18"/>')
        parts += [f'<circle class="seed" cx="{along(value):.1f}" cy="{y:.1f}" r="5"/>' for value in found]
    x = along(teacher)
    parts.append(f'<path class="teacher" d="M{x:.1f} {TOP}V{height - BOTTOM}"/>')
    parts.append(f'<text x="{x:.1f}" y="{TOP - 6}" text-anchor="end">teacher</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
