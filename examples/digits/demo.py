"""Distil a teacher into a small student over a real Kafka, kill a worker meanwhile, and print one table.

Everything happens in --folder (runs/demo), with the commands that a user would type, and ends with the demo. The
figures also go to report.json there. Exit code 0 only if no label was lost and the student beats the hard labels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from signals import Signals, Stopped

from schemas.errors import DistillogError

WIDTH = 110
"""Columns of what is printed where there is no terminal to ask."""


def problems(figures: dict[str, Any]) -> list[str]:
    """What must not be."""
    found = []
    if figures["lost"]:
        found.append(f"{figures['lost']} orders were lost")
    if figures["gain"]["total"] <= 0:
        found.append("the student does not beat the one that learned from the hard labels alone")
    return found


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs", "demo"), help="where everything goes [%(default)s]")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="students of each kind [%(default)s]")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds: a spread needs at least 2")
    try:
        with Signals() as signals:
            # Loaded here, so that Ctrl-C while it loads (a second) is one line too.
            from story import tell

            figures = tell(arguments.folder, list(range(arguments.seeds)), signals)
    except Stopped as stopped:
        print(f"stopped by {stopped}; nothing that the demo started runs any more", file=sys.stderr)
        return stopped.exit_code
    except (DistillogError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    from rich.console import Console
    from table import print_report

    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    print_report(figures, console)
    found = problems(figures)
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
