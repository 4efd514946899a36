"""Train a run, or go on with one that was stopped, and export its student.

Usage: train.py RUN_FILE [MODEL.onnx]

The run's folder is runs/NAME where this is called; without MODEL.onnx the student goes there. Ends with 0 only when the
student is trained and exported, at once when it has been so already: `docker compose up` may be called again. A student
that another run file, or another stream of the same name, was trained to is not taken for it.
"""

import json
import sys
import tomllib
from pathlib import Path

from pipeline.cli import main
from pipeline.cli.options import kafka_settings
from schemas.errors import DistillogError


def distillog(*arguments: str) -> None:
    """Run a command in this process, which gets the signals; end the process if it fails."""
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise


run_file = Path(sys.argv[1])
name = tomllib.loads(run_file.read_text(encoding="utf-8"))["name"]
run = Path("runs", name)
model = Path(sys.argv[2]) if len(sys.argv) > 2 else run / "student.onnx"


def is_done() -> bool:
    """Whether the run has taken its last step; a stopped one ends with 0 too."""
    return (run / "run.toml").exists() and json.loads((run / "run.json").read_bytes())["state"] == "done"


def refuse_another() -> None:
    """End the process where what is trained is not what is asked for now."""
    from student_trainer.run.finished import check_finished
    from student_trainer.run.settings import load_run

    try:
        with main.make_context("distillog", ["runs"]):  # its options say where Kafka is
            changed = check_finished(run, load_run(run_file), kafka_settings)
    except DistillogError as error:
        sys.exit(f"error: {error}")
    late = f" ({run_file} was changed since, too late for it: {'; '.join(map(str, changed))})" if changed else ""
    print(f"{run}: is trained; remove it to train again{late}", flush=True)


if is_done():
    refuse_another()
elif (run / "run.toml").exists():
    distillog("runs", "resume", name)
else:
    distillog("runs", "start", str(run_file))
if not is_done():
    sys.exit(143)  # SIGTERM came; the next call goes on
if not model.exists():
    distillog("runs", "export", name, "--onnx", str(model))
