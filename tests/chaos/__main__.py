"""`python -m chaos [--seed N] [--faults N] [--brokers 1|3] [--minutes M]`, with `tests` on the Python path."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path


def main() -> int:
    """Run one soak, write its report, and say in one line what it came to."""
    parser = argparse.ArgumentParser(
        prog="make chaos", description="Disturb a whole Distillog, and check what is left."
    )
    parser.add_argument("--seed", type=int, default=1, help="of the schedule, the stream and the students (1)")
    parser.add_argument("--faults", type=int, default=200, help="how many (200)")
    parser.add_argument("--every", type=float, default=8.0, help="seconds between two of them, on average (8)")
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=1, help="one, or three with replication (1)")
    parser.add_argument("--takeovers", type=int, default=5, help="isolated kills to measure before (5)")
    parser.add_argument("--minutes", type=float, default=40.0, help="for all of it (40)")
    parser.add_argument("--output", type=Path, default=Path("runs/chaos"), help="folder of report.json (runs/chaos)")
    parser.add_argument("--plan", action="store_true", help="print the schedule of this seed, and do nothing")
    arguments = parser.parse_args()
    for name, least, most in (
        ("seed", 0, (1 << 31) - 1),
        ("faults", 1, 100_000),
        ("every", 0.1, 3600),
        ("takeovers", 0, 1000),
        ("minutes", 1, 7 * 24 * 60),
    ):
        if not least <= getattr(arguments, name) <= most:  # NaN is not
            parser.error(f"--{name} {getattr(arguments, name)}: takes {least} to {most}")

    from chaos.schedule import schedule

    if arguments.plan:
        for fault in schedule(arguments.seed, arguments.faults, arguments.every, arguments.brokers):
            print(f"{fault.at:8.1f} s  {fault.kind:18} {fault.target:12} {fault.seconds:6.1f} s")
        return 0
    from chaos.soak import BOOTSTRAP, Plan, Soak

    # Through the exit handlers: no process of ours may outlive a soak that is cut short.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # brokers that are away are what this is about
    os.environ["DISTILLOG_BOOTSTRAP_TIMEOUT"] = BOOTSTRAP
    output: Path = arguments.output.absolute()
    folder = output / f"seed-{arguments.seed}-brokers-{arguments.brokers}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plan = Plan(
        arguments.seed, arguments.faults, arguments.every, arguments.brokers, arguments.takeovers, arguments.minutes
    )
    soak = Soak(plan, folder)
    try:
        soak.run()
    except Exception as error:
        (folder / "error.txt").write_text(traceback.format_exc())
        soak.report.problems.append(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    report = soak.report
    if report.passed:
        report.kept = ""
        for part in ("brokers", "calm", "runs"):
            shutil.rmtree(folder / part, ignore_errors=True)
    for problem in report.problems:
        print(f"problem: {problem}")
    (output / "report.json").write_text(json.dumps(asdict(report) | {"passed": report.passed}, indent=2) + "\n")
    print(f"{report.line()} -> {output / 'report.json'}")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
