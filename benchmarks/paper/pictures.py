"""Pictures of `paper.json` as SVG: `python -m benchmarks.paper.pictures runs/bench/paper.json docs`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.paper.table import by_cost
from benchmarks.streams import ORDER_SIZE

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 72, 194, 56, 52
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #57606a }
.title { font-size: 15px; font-weight: 600 }
.axis { stroke: #8c959f; fill: none }
.grid { stroke: #8c959f; stroke-opacity: .25 }
.line { fill: none; stroke-width: 2.5 }
.dashed { stroke-dasharray: 6 5 }
.c0 { stroke: #2f81f7 } .c1 { stroke: #d29922 } .c2 { stroke: #db61a2 } .c3 { stroke: #8c959f }
.d0 { fill: #2f81f7 } .d1 { fill: #d29922 } .d2 { fill: #db61a2 } .d3 { fill: #8c959f }
@media (prefers-color-scheme: dark) { text { fill: #adbac7 } }
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One way to train."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, samples/s)"""
    color: int
    dashed: bool = False
    """what could be, instead of what was measured"""


def picture(title: str, across: str, lines: Sequence[Line]) -> str:
    """Return an SVG: x in powers of two, samples/s from 0 upwards."""
    xs = sorted({x for line in lines if not line.dashed for x, _ in line.points})
    step = _round(max(y for line in lines for _, y in line.points) / 4)
    top = step * -(-max(y for line in lines for _, y in line.points) // step)
    first, last = log2(xs[0]), log2(xs[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        along = (log2(x) - first) / (last - first or 1)
        return LEFT + along * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">',
        f"<style>{_STYLE}</style>",
        _text(LEFT, 22, title, "start", "title"),
    ]
    for number in range(round(top / step) + 1):
        _, y = place(xs[0], number * step)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{number * step:,.0f}", "end"))
    for x in xs:
        along, _ = place(x, 0)
        parts.append(_text(along, HEIGHT - BOTTOM + 20, f"{x:g}", "middle"))
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, across, "middle"))
    parts.append(_text(8, TOP - 14, "samples/s", "start"))
    said: list[float] = []
    for line in sorted(lines, key=lambda one: -one.points[-1][1]):
        places = [place(x, y) for x, y in line.points]
        drawn = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dashed = " dashed" if line.dashed else ""
        parts.append(f'<path class="line c{line.color}{dashed}" d="M{drawn}"/>')
        if not line.dashed:
            parts += [f'<circle class="d{line.color}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in places]
        # Names stand at the ends of their lines, one below the other.
        height = max(places[-1][1] + 4, said[-1] + 16 if said else 0)
        said.append(height)
        key, beside = WIDTH - RIGHT + 12, height - 4.5
        parts.append(f'<path class="line c{line.color}{dashed}" d="M{key} {beside:.1f}h22"/>')
        parts.append(_text(key + 30, height, line.name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def over_teachers(figures: Mapping[str, Any]) -> str:
    """Throughput of one live student over the number of its teachers, by the clock."""
    seen = figures["over_teachers"]
    rates = [(float(count), rate) for count, rate in seen["samples_per_s"].items()]
    pure, one = seen["pure_samples_per_s"], 1000 * ORDER_SIZE / seen["service_ms"]
    bend = pure / one
    ideal = [(rates[0][0], min(pure, rates[0][0] * one))]
    # A straight line is a curve where x goes in powers of two.
    ideal += [(x, min(pure, x * one)) for x in _between(rates[0][0], rates[-1][0], bend)]
    return picture(
        "A live student while teachers join",
        f"teachers elsewhere, each {seen['service_ms'] / figures['step_ms']:.0f} times slower than the student",
        [
            Line("what could be at best", ideal, 3, dashed=True),
            Line("live", rates, 0),
        ],
    )


def over_cost(figures: Mapping[str, Any]) -> str:
    """Throughput over what a teacher costs."""
    pure = figures["ratios"]["live_remote"]["bare_samples_per_s"]
    ways: dict[str, list[tuple[float, float]]] = {}
    for key, cost, ratio in by_cost(figures):
        # Rates of different minutes of one machine: each by its ratio to pure training of its own minute.
        ways.setdefault(key, []).append((cost, ratio["median"] * pure))
    costs = [cost for cost, _ in ways["live_remote"]]
    return picture(
        "A student by what its teacher costs",
        "teacher's forward ÷ student's step",
        [
            Line("pure training", [(costs[0], pure), (costs[-1], pure)], 3, dashed=True),
            Line("live", ways["live_remote"], 0),
            Line("in the loop, ONNX", ways["online_onnx"], 1),
            Line("in the loop, PyTorch", ways["online_torch"], 2),
        ],
    )


def draw(figures: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write both pictures; their paths."""
    drawn = []
    for name, text in (("teachers", over_teachers(figures)), ("cost", over_cost(figures))):
        drawn.append(folder / f"throughput-over-{name}.svg")
        drawn[-1].write_text(text, encoding="utf-8")
    return drawn


def _between(first: float, last: float, bend: float) -> list[float]:
    steps = 32
    places = [first * (last / first) ** (number / steps) for number in range(1, steps + 1)]
    return sorted([*places, *([bend] if first < bend < last else [])])


def _round(value: float) -> float:
    """Up to 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** (len(str(int(value))) - 1)
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= value)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    for path in draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])):
        print(path)
