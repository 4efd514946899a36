"""The comparison: every other student, the scores of all, and the report."""

from __future__ import annotations

import json
import time
from typing import Any

from live import teacher_model
from processes import DemoError, Trainer
from recipe import KINDS, PARTITIONS, SESSION_TIMEOUT, TEST, TRAIN, student_run
from stage import PATIENCE, Stage
from table import gain, summary
from watch import Check, KillWatch

from pipeline.wait import Deadline

Reports = dict[str, dict[str, Any]]
"""Name of a run -> its report.json"""


def train_others(stage: Stage, first: Trainer, seeds: list[int]) -> Reports:
    """Train every student but the live one, two at a time, and that one again from the log; return all reports."""
    live = stage.runs / f"distilled-{seeds[0]}"
    reports = {live.name: json.loads((live / "report.json").read_bytes())}
    jobs = [student_run(kind, seed) for seed in seeds for kind in KINDS if f"{kind}-{seed}" != live.name]
    jobs.append({**student_run("distilled", seeds[0]), "name": replay_name(seeds)})
    num_jobs = len(jobs)
    stage.say(f"training {num_jobs} more students: from the log again, its argmax, the hard labels, all labels")
    second = Trainer(stage.processes, "trainer-2")
    trainers = (first, second)
    deadline = Deadline(PATIENCE + 10.0 * num_jobs)
    while jobs or first.busy or second.busy:
        for trainer in trainers:
            if (report := trainer.answer()) is not None:
                reports[report["name"]] = report
            if jobs and not trainer.busy:
                servers = stage.kafka.bootstrap_servers
                trainer.begin("train", settings=jobs.pop(0), folder=str(stage.runs), bootstrap_servers=servers)
        stage.processes.check()
        stage.progress.update(trained=f"{len(reports) - 1}/{num_jobs} students")
        if deadline.over:
            raise DemoError(f"only {len(reports) - 1} of {num_jobs} students were trained in time")
        time.sleep(0.02)
    stage.progress.update(trained=None)
    stage.processes.stop(second.child)
    return reports


def replay_name(seeds: list[int]) -> str:
    """Name of the run that repeats the live one from the log."""
    return f"replayed-{seeds[0]}"


def score(stage: Stage, trainer: Trainer, seeds: list[int], exported_teacher: dict[str, Any]) -> dict[str, Any]:
    """Export the live student, evaluate every model once, measure the ONNX files; return figures by column."""
    stage.say("exporting the student, evaluating all on the test images, measuring the ONNX files")
    models = {"teacher": teacher_model(stage), "student": stage.path / "student.onnx"}
    live = str(stage.runs / f"distilled-{seeds[0]}")
    trainer.begin("export", run=live, output=str(models["student"]), dataset=TRAIN)
    exported = {"teacher": exported_teacher, "student": stage.result(trainer, "exporting the student")}
    runs = {f"{kind}-{seed}": str(stage.runs / f"{kind}-{seed}") for kind in KINDS for seed in seeds}
    trainer.begin("evaluate", teacher=str(models["teacher"]), runs=runs, dataset=TEST)
    scores = stage.result(trainer, "evaluating")
    stage.broker.stop()  # nothing else is to run while time is measured
    trainer.begin("measure", models={name: str(path) for name, path in models.items()}, dataset=TEST)
    speeds = stage.result(trainer, "measuring")

    found = {"teacher": summary([scores["teacher"]], exported_teacher["parameters"])}
    parameters = exported["student"]["parameters"]  # all students are one network
    for kind, column in KINDS.items():
        found[column] = summary([scores[f"{kind}-{seed}"] for seed in seeds], parameters)
        found[column]["kept"] = found[column]["accuracy_mean"] / found["teacher"]["accuracy_mean"]
    for column, path in models.items():
        found[column]["onnx"] = {"file": path.name, "file_bytes": exported[column]["file_bytes"], **speeds[column]}
    return found


def report(
    scores: dict[str, Any], seeds: list[int], check: Check, kill: KillWatch, reports: Reports, seconds: float
) -> dict[str, Any]:
    """Put all figures together: what report.json holds."""
    live = reports[f"distilled-{seeds[0]}"]
    timing, stream = live["timing"], live["stream"]
    return {
        "lost": check.num_lost,
        "workers_killed": 1,
        "seeds": seeds,
        **scores,
        "times_smaller": scores["teacher"]["parameters"] / scores["student"]["parameters"],
        "gain": gain(scores),
        "log": {
            "orders": check.num_orders,
            "labels": check.num_samples,
            "duplicates": check.num_duplicates,
            "duplicate_labels": check.num_duplicate_samples,
            "early": check.num_early,
            "foreign": check.num_foreign,
            "partitions": PARTITIONS,
        },
        "live": {
            **{name: timing[name] for name in ("longest_wait_s", "first_wait_s", "waited_s", "seconds")},
            "dropped": {name: stream[name] for name in ("duplicates", "early", "foreign", "undecodable")},
        },
        "kill": {
            "worker": kill.victim,
            "sequence": kill.kill_at,
            "partitions": len(kill.waits),
            "first_label_s": kill.first,
            "all_labels_s": kill.last,
            "session_timeout_s": SESSION_TIMEOUT,
        },
        "replay_identical": live["weights_sha256"] == reports[replay_name(seeds)]["weights_sha256"],
        "weights_sha256": {name: one["weights_sha256"] for name, one in sorted(reports.items())},
        "seconds": seconds,
    }
