"""Distil a residual network into a depthwise one by six recipes, over a real Kafka, and print one table.

Everything happens in --folder (runs/vision). The pictures are made once and kept there; all else is made anew. Needs
`pip install 'distillog[teacher,student,data,broker]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.progress import Progress
from schemas.errors import DistillogError

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from own_folder import clear, take  # noqa: E402

STREAM, TEACHER = "vision", "resnet"
VIEW = {"min_area": 0.7, "ratio": 0.2}
"""Of `crop_flip`; digits are not mirrored."""
BATCH_SIZE = ORDER_SIZE = 64
LABELLED_SHARE = 4
"""One picture of training in so many has a label."""
SIZES = {
    "small": ({"train": 600, "validation": 100, "test": 200}, 20, 2),
    "full": ({"train": 6000, "validation": 1500, "test": 2500}, 500, 3),
}
"""Pictures, steps of teacher and of each student, seeds."""
LOGITS: dict[str, Any] = {"name": "forward_kl"}
"""At T = 1, which was best wherever fresh unlabelled views went past a teacher."""
RECIPES: dict[str, list[dict[str, Any]]] = {
    "labels alone": [{"name": "cross_entropy"}],
    "logits": [LOGITS],
    "logits and hints": [LOGITS, {"name": "mse", "on": "maps", "against": "maps", "projection": "conv"}],
    "logits and attention": [
        LOGITS,
        {"name": "attention_transfer", "on": "maps", "against": "maps", "weight": 10.0},
    ],
    "logits and relations": [
        LOGITS,
        {"name": "rkd_distance", "on": "pooled", "against": "pooled", "weight": 0.25},
        {"name": "rkd_angle", "on": "pooled", "against": "pooled", "weight": 0.5},
    ],
    "logits and similarity": [
        LOGITS,
        {"name": "similarity", "on": "pooled", "against": "pooled", "weight": 30.0},
    ],
}
"""What a student learns from. Hints keep a mean's weight of 1; each other weight is 1/100 of its authors', which seed 0
was best with on the pictures of validation."""
MARKER = "made-by-vision.json"
ENTRIES = ("broker", "runs", "teacher.onnx", "student.onnx", "student-int8.onnx", "report.json", "logs", "vision.svg")
PATIENCE = 600.0
"""Seconds that a command may take."""


def main() -> int:
    """Run the example; return the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("runs", "vision"), help="where everything goes [%(default)s]"
    )
    parser.add_argument("--small", action="store_true", help="few pictures, 2 seeds: shows the way, and claims nothing")
    parser.add_argument(
        "--validation", action="store_true", help="look at the pictures of validation, for who changes a setting"
    )
    arguments = parser.parse_args()
    # An end asked for is an exception, so that nothing is left running.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    looked_at = "validation" if arguments.validation else "test"
    try:
        # It says itself how far it is: what is slow inside, such as a first reading, adds no lines of its own.
        with Progress(quiet=True):
            figures = tell(arguments.folder, looked_at, *SIZES["small" if arguments.small else "full"])
    except KeyboardInterrupt:
        return 130
    except (DistillogError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    from shown import table

    print("\n".join(table(figures)))
    return 0


def tell(folder: Path, looked_at: str, counts: dict[str, int], steps: int, num_seeds: int) -> dict[str, Any]:
    """Do all of it; write report.json and vision.svg, and return what is in the report."""
    # Loaded here, so that --help is quick; few cores, and several processes on them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import networks
    import scenes
    from shown import picture

    from pipeline.broker.local import LocalBroker
    from pipeline.views import view_spec

    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    lock = take(folder, MARKER)
    broker = LocalBroker(folder / "broker")
    broker.stop()  # of an example that was killed
    clear(folder, ENTRIES)
    (folder / "logs").mkdir()
    made = scenes.paint(folder / "pictures", counts)
    say(f"{sum(counts.values()):,} pictures of {sum(made['digits'].values()):,} digits over 2 photographs")
    uris = {s: f"images:{(folder / 'pictures').absolute()}?split={s}&size={scenes.SIZE}" for s in counts}
    labelled = counts["train"] // LABELLED_SHARE
    teacher = folder / "teacher.onnx"
    size = networks.train(teacher, uris["train"], view_spec("crop_flip", VIEW), steps, BATCH_SIZE, labelled)
    taught = {"parameters": size, **networks.judge(teacher, uris[looked_at])}
    say(f"the teacher has {size:,} parameters and is right for {taught['accuracy']:.1%}")
    try:
        broker.start()
        os.environ["KAFKA_BOOTSTRAP_SERVERS"] = broker.bootstrap_servers
        label(folder, uris["train"], 1 + steps * BATCH_SIZE // counts["train"])
        say("all views are labelled")
        students: dict[str, list[dict[str, Any]]] = {recipe: [] for recipe in RECIPES}
        for seed in range(num_seeds):
            for recipe, found in students.items():
                settings = document(recipe, seed, steps, labelled, uris, looked_at)
                found.append(student(folder / "runs", settings))
                say(f"student {seed} of {recipe}: {found[-1]['accuracy']:.1%}")
    finally:
        broker.stop(timeout=10.0)
    say("measuring")
    figures = {
        "pictures": made,
        "looked_at": looked_at,
        "labelled": labelled,
        "teacher": taught,
        "students": students,
        "files": measured(folder, uris, looked_at),
        "seconds": time.monotonic() - began,
    }
    (folder / "report.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (folder / "vision.svg").write_text(picture(figures), encoding="utf-8")
    lock.close()
    return figures


def label(folder: Path, uri: str, epochs: int) -> None:
    """Make the stream, and have a worker label all of it."""
    from distillog import Declared, DeclaredOutput, Scaling, add_teacher, create_stream, feed

    outputs = [DeclaredOutput("logits"), *(DeclaredOutput(name, name, "features") for name in ("maps", "pooled"))]
    create_stream(STREAM, uri, view="crop_flip", view_params=VIEW, epochs=epochs, order_size=ORDER_SIZE, partitions=8)
    add_teacher(STREAM, TEACHER, folder / "teacher.onnx", Declared(tuple(outputs), general=Scaling(1 / 255)))
    feed(STREAM)
    command(folder, "teach", STREAM, folder / "teacher.onnx", "--until-idle")


def document(recipe: str, seed: int, steps: int, labelled: int, uris: dict[str, str], looked_at: str) -> dict[str, Any]:
    """The run file of one student: soft targets of all pictures and no label, or the labels of some pictures."""
    losses = RECIPES[recipe]
    inner = {each["on"]: each["on"] for each in losses if "on" in each}
    found: dict[str, Any] = {
        "name": f"{recipe.replace(' ', '-')}-{seed}",
        "student": {"name": "networks:depthwise", "outputs": inner},
        "losses": losses,
        "optimizer": {"name": "adamw", "lr": 1e-2, "weight_decay": 1e-2},
        "schedule": {"name": "one_cycle"},
        "train": {"batch_size": BATCH_SIZE, "steps": steps, "seed": seed, "threads": 1},
        "evaluation": {"dataset": uris[looked_at]},
        "checkpoint": {"every": 0},
    }
    if LOGITS in losses:
        return found | {"source": "stream", "data": {"stream": STREAM, "labelled": 0}, "teachers": [{"name": TEACHER}]}
    data = {"dataset": uris["train"], "view": {"name": "crop_flip", **VIEW}, "order_size": ORDER_SIZE}
    return found | {"source": "dataset", "data": data | {"labelled": labelled, "only_labelled": True}}


def student(runs: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train one student by its run file; return its figures."""
    from pipeline.kafka.settings import KafkaSettings
    from student_trainer.launch import launch
    from student_trainer.run.folder import RunFolder
    from student_trainer.run.settings import run_settings

    run = run_settings(settings)
    kafka = KafkaSettings(os.environ["KAFKA_BOOTSTRAP_SERVERS"])
    with RunFolder.create(runs / run.name, run) as opened:
        launch(run, opened, lambda: kafka)
    report = json.loads((runs / run.name / "report.json").read_bytes())
    return {"parameters": report["parameters"], **{key: report["evaluation"][key] for key in ("accuracy", "nll")}}


def measured(folder: Path, uris: dict[str, str], looked_at: str) -> dict[str, Any]:
    """Bytes and latency of teacher, student and the student in int8; of the last one accuracy and NLL, too.

    The student is the first that learned logits alone. Int8 is calibrated on pictures of training, and which layers
    stay in float32 is decided by those of validation.
    """
    import networks

    files = {
        "teacher": folder / "teacher.onnx",
        "student": folder / "student.onnx",
        "int8": folder / "student-int8.onnx",
    }
    smaller = ["--int8", files["int8"], "--calibrate", uris["train"], "--dataset", uris["validation"]]
    runs = ["--folder", folder / "runs"]
    command(folder, "runs", "export", "logits-0", "--onnx", files["student"], *smaller, *runs)
    speed = ["--batch-size", "1", "--rounds", "3", "--seconds", "0.5", "--json", "--quiet"]
    found = json.loads(command(folder, "runs", "bench", *files.values(), *speed))
    figures = {
        name: {"file_bytes": path.stat().st_size, "p50_ms": one["p50_ms"]["median"]}
        for (name, path), one in zip(files.items(), found["results"], strict=True)
    }
    figures["int8"] |= networks.judge(files["int8"], uris[looked_at])
    return figures


def command(folder: Path, *arguments: str | Path) -> str:
    """What a command of Distillog prints; raises DistillogError where it fails, or takes longer than PATIENCE."""
    from pipeline.processes import DISTILLOG

    log = folder / "logs" / f"{arguments[0]}-{arguments[1]}.log"
    path = os.pathsep.join([str(HERE.absolute()), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("w") as file:
        try:
            done = subprocess.run(
                [DISTILLOG, *arguments],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                timeout=PATIENCE,
                env=os.environ | {"PYTHONPATH": path},
            )
        except subprocess.TimeoutExpired:
            raise DistillogError(f"distillog {arguments[0]} was not done in {PATIENCE:.0f} s, see {log}") from None
    if done.returncode:
        raise DistillogError(f"distillog {arguments[0]} ended with {done.returncode}, see {log}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
