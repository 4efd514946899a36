"""The demo from its beginning to its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compare import report, score, train_others
from live import distil, prepare
from processes import Trainer
from recipe import STREAM, TEACHER
from signals import Signals
from stage import PATIENCE, Stage
from watch import SoftTargetLog

from pipeline.streams import open_stream


def tell(path: Path, seeds: list[int], signals: Signals) -> dict[str, Any]:
    """Do all of it in a folder; write the report and return it. Nothing runs any more then, however this ends."""
    with Stage(path, signals) as stage:
        return _tell(stage, seeds)


def _tell(stage: Stage, seeds: list[int]) -> dict[str, Any]:
    trainer = Trainer(stage.processes, "trainer-1")
    teacher = prepare(stage, trainer)
    stream = open_stream(stage.kafka, STREAM)
    kill = distil(stage, stream, seeds[0])
    with SoftTargetLog(stage.kafka, stream, TEACHER) as log:
        check = log.read_all(PATIENCE)  # all of it, from the beginning
    stage.say(
        f"in the log: {check.num_samples:,} labels of {check.num_orders:,} orders; lost {check.num_lost}, "
        f"duplicates {check.num_duplicates}"
    )
    reports = train_others(stage, trainer, seeds)
    scores = score(stage, trainer, seeds, teacher)
    figures = report(scores, seeds, check, kill, reports, stage.seconds)
    (stage.path / "report.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    stage.say(f"figures in {stage.path / 'report.json'}, runs in {stage.runs}, logs in {stage.path / 'logs'}")
    return figures
