"""Distil a teacher of spoken words into a student more than ten times smaller, over a real Kafka, and print one table.

Everything happens in --folder (runs/speech). The words are spoken once and kept there; all else is made anew. Needs
`pip install 'distillog[teacher,student,audio,broker]' espeakng-loader`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from schemas.errors import DistillogError

sys.path.insert(0, str(Path(__file__).parents[1]))

from own_folder import clear, take

STREAM, TEACHER = "speech", "cnn"
LENGTH = 16_538
"""Three quarters of a second."""
LABELLED_SHARE = 4
"""One recording of training in so many has a label."""
FEATURES = {"window": 551, "hop": 441, "mels": 24, "rate": 22_050}
DRAWN = {"shift": 0.1, "noise": 0.05, "time_mask": 0.1, "mel_mask": 0.1}
BATCH_SIZE = 32
SIZES = {"small": (("yes", "no", "left", "right"), 24, 2, 4, 2), "full": (None, 80, 2, 12, 3)}
"""Words (None: all), voices, takes, epochs, seeds."""
MARKER = "made-by-speech.json"
ENTRIES = ("broker", "runs", "teacher.onnx", "report.json", "teach.log")
PATIENCE = 300.0
"""Seconds until all views are to be labelled; 10 on two cores that are free."""


def main() -> int:
    """Run the example; return the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("runs", "speech"), help="where everything goes [%(default)s]"
    )
    parser.add_argument("--small", action="store_true", help="4 words and 2 seeds: shows the way, and claims nothing")
    arguments = parser.parse_args()
    # An end asked for is an exception, so that nothing is left running.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        figures = tell(arguments.folder, *SIZES["small" if arguments.small else "full"])
    except KeyboardInterrupt:
        return 130
    except (DistillogError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print("\n".join(table(figures)))
    return 0


def tell(folder: Path, words: Any, num_voices: int, takes: int, epochs: int, num_seeds: int) -> dict[str, Any]:
    """Do all of it; write report.json and return it."""
    # Loaded here, so that --help is quick; few cores, and several processes on them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import spoken
    import torch
    from teacher import in_noise, train

    from pipeline.broker.local import LocalBroker
    from pipeline.datasets import open_dataset
    from pipeline.views import view_spec

    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    torch.set_num_threads(1)
    lock = take(folder, MARKER)
    broker = LocalBroker(folder / "broker")
    broker.stop()  # of an example that was killed
    clear(folder, ENTRIES)
    said = spoken.speak(folder / "words", words or spoken.WORDS, num_voices, takes)
    say(f"{len(said['words'])} words by {len(said['train_voices'])} voices, and {len(said['test_voices'])} others")
    uris = [
        f"audio:{(folder / 'words').absolute()}?split={s}&rate={spoken.RATE}&length={LENGTH}" for s in ("train", "test")
    ]
    view = view_spec("log_mel", FEATURES | DRAWN)
    test_view = in_noise(view, DRAWN["noise"])
    model = folder / "teacher.onnx"
    num_samples = open_dataset(uris[0]).num_samples
    labelled = num_samples // LABELLED_SHARE
    taught = train(model, *uris, view, test_view, epochs * LABELLED_SHARE, labelled)
    say(f"the teacher has {taught['parameters']:,} parameters and is right for {taught['accuracy']:.1%}")
    try:
        broker.start()
        os.environ["KAFKA_BOOTSTRAP_SERVERS"] = broker.bootstrap_servers
        label(folder, uris[0], dict(view.params), epochs)
        say("all views are labelled")
        steps = num_samples * epochs // BATCH_SIZE
        scores: dict[str, list[dict[str, Any]]] = {"with": [], "without": []}
        for seed in range(num_seeds):
            for kind, found in scores.items():
                found.append(student(folder / "runs", kind, seed, steps, labelled, uris, view, test_view))
                say(f"student {seed} {kind} the teacher: {found[-1]['accuracy']:.1%}")
    finally:
        broker.stop(timeout=10.0)
        lock.close()
    figures = {
        "recordings": said,
        "train": num_samples,
        "labelled": labelled,
        "teacher": taught,
        "students": scores,
        "seconds": time.monotonic() - began,
    }
    (folder / "report.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def label(folder: Path, uri: str, params: dict[str, Any], epochs: int) -> None:
    """Make the stream, and have a worker label all of it."""
    import distillog
    from pipeline.processes import DISTILLOG

    model = folder / "teacher.onnx"
    made = {"view": "log_mel", "view_params": params, "epochs": epochs, "order_size": 64, "partitions": 8}
    distillog.create_stream(STREAM, uri, **made)
    distillog.add_teacher(STREAM, TEACHER, model)
    distillog.feed(STREAM)
    with (folder / "teach.log").open("w") as log:
        command = [DISTILLOG, "teach", STREAM, model, "--threads", "1", "--until-idle"]
        try:
            done = subprocess.run(command, stdout=log, stderr=log, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise DistillogError(f"not all was labelled in {PATIENCE:.0f} s, see {folder / 'teach.log'}") from None
    if done.returncode:
        raise DistillogError(f"the worker ended with {done.returncode}, see {folder / 'teach.log'}")


def student(
    runs: Path, kind: str, seed: int, steps: int, labelled: int, uris: list[str], view: Any, test_view: Any
) -> dict[str, Any]:
    """Train one student, with soft targets of all recordings or with the labels of some; return its figures."""
    from pipeline.kafka.settings import KafkaSettings
    from student_trainer.launch import launch
    from student_trainer.run.folder import RunFolder
    from student_trainer.run.settings import run_settings

    document: dict[str, Any] = {
        "name": f"{kind}-{seed}",
        "student": {"name": "cnn", "channels": [12, 16, 24], "hidden": 32, "pool": 4, "batch_norm": True},
        "optimizer": {"name": "adamw", "lr": 1e-2, "weight_decay": 1e-4},
        "schedule": {"name": "one_cycle"},
        "train": {"batch_size": BATCH_SIZE, "steps": steps, "seed": seed, "threads": 1},
        "evaluation": {"dataset": uris[1], "view": {"name": test_view.name, **test_view.params}},
        "checkpoint": {"every": 0},
    }
    if kind == "with":
        losses = [{"name": "forward_kl", "temperature": 2.0}]
        data: dict[str, Any] = {"stream": STREAM, "labelled": 0}
        document |= {"source": "stream", "data": data, "teachers": [{"name": TEACHER}], "losses": losses}
    else:
        data = {"dataset": uris[0], "view": {"name": view.name, **view.params}, "order_size": 64}
        data |= {"labelled": labelled, "only_labelled": True}
        document |= {"source": "dataset", "data": data, "losses": [{"name": "cross_entropy"}]}
    run = run_settings(document)
    kafka = KafkaSettings(os.environ["KAFKA_BOOTSTRAP_SERVERS"])
    with RunFolder.create(runs / run.name, run) as opened:
        launch(run, opened, lambda: kafka)
    report = json.loads((runs / run.name / "report.json").read_bytes())
    return {"parameters": report["parameters"], "accuracy": report["evaluation"]["accuracy"]}


def table(figures: dict[str, Any]) -> list[str]:
    """Lines of Markdown: size and accuracy of each."""
    teacher = figures["teacher"]
    lines = ["", "| | parameters | accuracy |", "|---|---:|---:|"]
    lines.append(f"| teacher | {teacher['parameters']:,} | {teacher['accuracy']:.1%} |")
    for kind, found in figures["students"].items():
        values = [each["accuracy"] for each in found]
        spread = statistics.stdev(values)
        text = f"{statistics.mean(values):.1%} ± {100 * spread:.1f}"
        lines.append(f"| student {kind} the teacher | {found[0]['parameters']:,} | {text} |")
    voices = len(figures["recordings"]["test_voices"])
    lines += ["", f"Of {figures['train']:,} recordings {figures['labelled']:,} have labels. Accuracy is of"]
    lines.append(f"{teacher['recordings']} recordings of {voices} voices that no network heard before, in noise;")
    lines.append(f"mean and standard deviation over {len(found)} seeds; all of it took {figures['seconds']:.0f} s.")
    return lines


if __name__ == "__main__":
    sys.exit(main())
