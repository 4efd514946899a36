"""Curves as one SVG, a panel for each figure: of runs the loss and each score, of models their speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from student_trainer.run.metrics import Curve, Curves

_WIDTH, _HEIGHT = 460, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 36
_COLUMNS = 2
_TICKS = 4
_MOST_POINTS = 400
"""Of a line: more are closer together than a pixel."""
_COLOURS = ("#2f81f7", "#d29922", "#db61a2", "#3fb950", "#a371f7", "#f85149", "#39c5cf", "#8c959f")
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #57606a }
.title { font-weight: 600 }
.grid { stroke: #8c959f; stroke-opacity: .3 }
.line { fill: none; stroke-width: 1.8 }
@media (prefers-color-scheme: dark) { text { fill: #adbac7 } }
"""


def picture(
    names: Sequence[str], runs: Sequence[Curves], below: str = "step", *, what: str = "runs", doubling: bool = False
) -> str:
    """Return the SVG.

    Args:
        names: of the runs or models, in the order of their curves.
        runs: their curves; a panel for each title, with a line of each that has it.
        below: what the axis below is of.
        what: they are, for who cannot see them.
        doubling: whether that axis is logarithmic, and each value a dot on it.
    """
    titles = list(dict.fromkeys(title for run in runs for title in run))
    rows = max(1, -(-len(titles) // _COLUMNS))
    width, height = _COLUMNS * _WIDTH, rows * _HEIGHT + 28
    label = f"curves of the {what} {', '.join(names)}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}">',
        f"<style>{_STYLE}</style>",
    ]
    along = _LEFT
    for number, name in enumerate(names):
        parts.append(f'<path class="line" stroke="{_colour(number)}" d="M{along} 14h22"/>')
        parts.append(_text(along + 28, 18, name))
        along += 44 + 7 * len(name)
    for number, title in enumerate(titles):
        row, column = divmod(number, _COLUMNS)
        lines = [run.get(title, []) for run in runs]
        parts += [
            f'<g transform="translate({column * _WIDTH} {row * _HEIGHT + 28})">',
            *_panel(title, lines, below, doubling),
            "</g>",
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(title: str, lines: Sequence[Curve], below: str, doubling: bool) -> list[str]:
    steps = [step for line in lines for step, _ in line]
    values = [value for line in lines for _, value in line]
    low, high, step = _scale(min(values), max(values))
    first, last = min(steps), max(steps)

    def place(at: float, value: float) -> tuple[float, float]:
        share = math.log(at / first) / (math.log(last / first) or 1) if doubling else (at - first) / (last - first or 1)
        x = _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
        return x, _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_LEFT, _TOP - 14, title, kind="title")]
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        _, y = place(first, value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{value:.6g}", "end"))
    for at, anchor in ((first, "start"), (last, "end"))[: 2 if last > first else 1]:
        parts.append(_text(place(at, low)[0], _HEIGHT - _BOTTOM + 18, f"{at:,}", anchor))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - _BOTTOM + 18, below, "middle"))
    for number, line in enumerate(lines):
        places = [place(*each) for each in _thinned(line)]
        colour = _colour(number)
        if len(places) > 1:
            drawn = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            parts.append(f'<path class="line" stroke="{colour}" d="M{drawn}"/>')
        if doubling or len(places) == 1:
            parts += [f'<circle fill="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places]
    return parts


def _thinned(line: Curve) -> Curve:
    """Of a long line every so many points, and the last."""
    every = -(-len(line) // _MOST_POINTS)
    return [*line[:-1:every], line[-1]] if every > 1 else line


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """Return round ends that hold both, and the distance of the lines between them."""
    spread = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(spread / _TICKS))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= spread / _TICKS)
    bottom = math.floor(low / step) * step
    return bottom, max(math.ceil(high / step) * step, bottom + step), step


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
