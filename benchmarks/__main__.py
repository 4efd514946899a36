"""`python -m benchmarks [PART[:SCENARIO] ...] [--pairs N] [--output FOLDER]`."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

PARTS = (
    *("codecs", "topk_graph", "images", "worker", "student", "processes", "data_plane", "capture", "ensembles"),
    "vocabulary",
    "footprint",
    "teachers",
)
"""In this order: PyTorch is loaded by the student, and a worker has none."""
PAPER = "paper"
"""A part that runs alone, and writes `paper.json`."""
PAIRS, PAPER_PAIRS = 7, 30


def main() -> None:
    """Run the parts, print the table and write `bench.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Distillog against bare loops.")
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"of {', '.join(PARTS)}; all if none is named; teachers:SCENARIO is one scenario of it; "
        f"or {PAPER} alone: the paper's table",
    )
    parser.add_argument(
        "--pairs", type=int, help=f"interleaved pairs of each ratio ({PAIRS}; {PAPER_PAIRS} of {PAPER})"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of bench.json and paper.json")
    arguments = parser.parse_args()
    paper = arguments.parts == [PAPER]
    arguments.pairs = (PAPER_PAIRS if paper else PAIRS) if arguments.pairs is None else arguments.pairs
    chosen: dict[str, list[str]] = {}
    for named in [] if paper else arguments.parts or PARTS:
        part, _, scenario = named.partition(":")
        chosen.setdefault(part, []).extend([scenario] if scenario else [])
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if arguments.pairs < 1:
        parser.error("--pairs must be at least 1")
    # Read when NumPy and PyTorch are loaded: their own threads would take the cores of what is measured.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from rich.console import Console

    from benchmarks import report
    from benchmarks.streams import bench

    # Through the exit handlers: a broker of ours must not outlive a run that is cut short.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    for part, scenarios in chosen.items():
        there = getattr(importlib.import_module(f"benchmarks.{part}"), "SCENARIOS", ()) if scenarios else ()
        if unknown := set(scenarios) - set(there):
            parser.error(f"{part} has no scenario {', '.join(sorted(unknown))}; it has {', '.join(there) or 'none'}")

    console = Console(width=None if Console().is_terminal else 160)
    if paper:
        _paper(arguments.pairs, arguments.output, console)
        return
    figures: dict[str, Any] = {"ratios": {}, "more_ratios": {}, "seconds": {}}
    with bench(arguments.pairs) as here:
        for part in PARTS:
            if part not in chosen:
                continue
            console.print(f"measuring {part} ...")
            began = time.perf_counter()
            only = [chosen[part]] if chosen[part] else []
            measured = importlib.import_module(f"benchmarks.{part}").run(here, *only)
            for name in ("ratios", "more_ratios"):
                figures[name] |= measured.pop(name, {})
            figures |= measured
            figures["seconds"][part] = time.perf_counter() - began
            report.write(figures, arguments.output / "bench.json")  # after each part: a long run may be cut short
    report.show(figures, console)
    console.print(f"all figures: {arguments.output / 'bench.json'}")
    if figures.get("failed"):
        sys.exit(1)


def _paper(pairs: int, output: Path, console: Any) -> None:
    from benchmarks import paper, report
    from benchmarks.paper import pictures, table
    from benchmarks.streams import bench

    began = time.perf_counter()
    with bench(pairs) as here:
        figures = paper.run(here, say=console.print)
    figures["seconds"] = time.perf_counter() - began
    report.write(figures, output / "paper.json")
    table.show(figures, console)
    drawn = pictures.draw(figures, output)
    console.print(f"all figures: {output / 'paper.json'}; pictures: {', '.join(map(str, drawn))}")


if __name__ == "__main__":
    main()
