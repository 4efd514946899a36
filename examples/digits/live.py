"""The main job: a teacher, a stream, a feeder, workers and a student at once, and a worker killed among them."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from processes import Child, DemoError, Trainer
from recipe import (
    EPOCHS,
    HERE,
    ORDER_SIZE,
    PARTITIONS,
    SESSION_TIMEOUT,
    STREAM,
    TEACHER,
    TRAIN,
    live_overrides,
    teacher_run,
    view,
)
from stage import PATIENCE, Stage
from watch import Check, KillWatch, SoftTargetLog

from pipeline.status import lag
from pipeline.streams import Stream
from pipeline.wait import Deadline


def prepare(stage: Stage, trainer: Trainer) -> dict[str, Any]:
    """Start Kafka, train and export the teacher, make the stream; return what was exported."""
    run = teacher_run()
    stage.say(f"training the teacher: a CNN, on {run['data']['labelled']} labelled images with augmentation")
    trainer.begin("train", settings=run, folder=str(stage.runs))
    stage.start_broker()
    looks = view()
    params = [f"--view-param={name}={value}" for name, value in looks.items() if name != "name"]
    sizes = [f"--order-size={ORDER_SIZE}", f"--epochs={EPOCHS}", f"--partitions={PARTITIONS}"]
    create = stage.distillog(
        "topics-create", "topics", "create", STREAM, "--dataset", TRAIN, "--view", looks["name"], *params, *sizes
    )
    report = stage.result(trainer, "training the teacher")
    stage.say(f"the teacher has {report['parameters']:,} parameters; exporting it to ONNX")
    model = teacher_model(stage)
    trainer.begin("export", run=str(stage.runs / run["name"]), output=str(model), dataset=TRAIN)
    exported: dict[str, Any] = stage.result(trainer, "exporting the teacher")
    stage.wait("making the stream", lambda: not create.running)
    add = stage.distillog("topics-add-teacher", "topics", "add-teacher", STREAM, TEACHER, model)
    stage.wait("adding the teacher", lambda: not add.running)
    return exported


def teacher_model(stage: Stage) -> Path:
    """Where the teacher's ONNX file lies."""
    return stage.path / "teacher.onnx"


def distil(stage: Stage, stream: Stream, seed: int) -> KillWatch:
    """Feed, teach and train at once; kill a worker at a quarter of the stream, which the fleet replaces."""
    overrides = [f"--set={override}" for override in live_overrides(seed)]
    run_file = HERE / "student.toml"
    student = stage.distillog(f"student-{seed}", "runs", "start", run_file, "--folder", stage.runs, *overrides)
    fleet = _fleet(stage)
    run = stage.runs / f"distilled-{seed}"
    stage.wait("the student's start", lambda: _state(run) == "training")
    stage.wait("the workers' start", lambda: _have_started(stage, stream))
    stage.say("student and workers are ready, the work orders may come")
    feed = stage.distillog("feed", "feed", STREAM)
    with SoftTargetLog(stage.kafka, stream, TEACHER) as log:
        kill = KillWatch(log.check.num_orders // 4)
        deadline = Deadline(PATIENCE)
        while log.check.num_lost or student.running or feed.running:
            for label in log.read(0.05):
                kill.add(label)
            if kill.victim and not kill.killed:
                os.kill(_process(fleet, kill.victim), signal.SIGKILL)
                kill.kill(time.time())
                stage.say(f"killed {kill.victim} (SIGKILL) at sequence {kill.kill_at} of {log.check.num_orders}")
            stage.processes.check()
            _show(stage, log.check, run)
            if deadline.over:
                raise DemoError(
                    f"after {PATIENCE:.0f} s {log.check.num_lost} of {log.check.num_orders} orders are not labelled, "
                    f"or the student is not trained; see {stage.path / 'logs'}"
                )
    stage.progress.update(labelled=None, student_step=None, loss=None)
    stage.processes.stop(fleet)
    stage.say(f"the stream is labelled, the student trained: {student.log.read_text().splitlines()[-1]}")
    if kill.first is None:
        raise DemoError(f"{kill.victim} had no work left when it was killed: the machine is too fast, feed more epochs")
    return kill


def _fleet(stage: Stage) -> Child:
    options = ["--min=2", "--max=2", "--name=worker", f"--session-timeout={SESSION_TIMEOUT}", "--threads=1"]
    return stage.distillog("fleet", "fleet", STREAM, teacher_model(stage), *options)


def _have_started(stage: Stage, stream: Stream) -> bool:
    """Whether two workers share the partitions."""
    shares = [worker.partitions for worker in lag(stage.kafka, stream).teachers[0].members]
    return len(shares) == 2 and min(shares) > 0 and sum(shares) == PARTITIONS


def _process(fleet: Child, worker: str) -> int:
    """The number of a worker's process, as the fleet told it last."""
    return int(re.findall(rf"^{worker} starts on .*, process (\d+)$", fleet.log.read_text(), re.M)[-1])


def _show(stage: Stage, check: Check, run: Path) -> None:
    line = _last_metrics(run)
    stage.progress.update(
        labelled=f"{check.num_accepted:,}/{check.num_orders:,} orders",
        student_step=f"{line['step']:,}/{line['total_steps']:,}" if "loss" in line else None,
        loss=f"{line['loss']:.3f}" if "loss" in line else None,
    )


def _state(run: Path) -> str:
    """What a run's folder says of it; "" before it is made."""
    try:
        return str(json.loads((run / "run.json").read_bytes())["state"])
    except FileNotFoundError:
        return ""


def _last_metrics(run: Path) -> dict[str, Any]:
    """The last whole line of a run's metrics; {} before there is one."""
    try:
        lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    whole = [line for line in lines if line.endswith(b"\n")]
    return dict(json.loads(whole[-1])) if whole else {}
