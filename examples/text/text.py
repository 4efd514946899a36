"""DistilBERT on texts that every machine has: a teacher, students of half its layers, and what each part is worth.

Everything happens in --folder (runs/text). What is done is kept: called again, the example goes on where it stopped.
Needs `pip install 'distillog[teacher,student,data,text,broker]'`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from commands import Commands
from results import gathered, picture_of, tables
from variants import CLASSIFIED, SIZES, STREAM, TEACHER, TEMPERATURE, TOP, Recipe

from schemas.errors import ConfigError, DistillogError, RunLocked

MARKER = "made-by-text.json"


def main() -> int:
    """Run the example; return the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where everything goes [runs/text, runs/text-SIZE]")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--short", action="store_true", help="ten minutes, three students: shows the way, claims nothing"
    )
    sizes.add_argument("--tiny", action="store_true", help="less than a minute, and learns nothing: for tests")
    parser.add_argument("--seeds", type=int, help="students of each kind; more may be asked for later [2; short: 1]")
    parser.add_argument(
        "--at-once", type=int, default=os.cpu_count() or 1, help="runs beside one another [%(default)s]"
    )
    arguments = parser.parse_args()
    for name in ("seeds", "at_once"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: at least 1")
    size = "short" if arguments.short else "tiny" if arguments.tiny else "full"
    folder = arguments.folder or Path("runs", "text" if size == "full" else f"text-{size}")
    # An end asked for is an exception, so that runs save what they have, and nothing is left running.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with taken(folder, size):
            figures = tell(Recipe(folder, SIZES[size]), arguments.seeds or SIZES[size].seeds, arguments.at_once)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (DistillogError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print("\n".join(tables(figures)))
    return 0


@contextmanager
def taken(folder: Path, size: str) -> Iterator[None]:
    """Hold the folder.

    Raises:
        ConfigError: it holds something, and is not the example's own, or of another size.
        RunLocked: the example runs in it.
    """
    marker = folder / MARKER
    if folder.exists() and not marker.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} was not made by this example: remove it, or name another folder with --folder")
    folder.mkdir(parents=True, exist_ok=True)
    asked = json.dumps(asdict(SIZES[size]))
    with marker.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunLocked(f"{folder}: the example runs in it already; wait for it, or give --folder") from None
        lock.seek(0)
        if (found := lock.read()) not in ("", asked):
            raise ConfigError(f"{folder} was made with other sizes: remove it, or name another folder with --folder")
        if not found:
            lock.write(asked)
            lock.flush()
        yield


def tell(recipe: Recipe, num_seeds: int, at_once: int) -> dict[str, Any]:
    """Do all that is not done yet; write report.json and picture.svg, and return the report."""
    from pipeline.broker.local import LocalBroker

    size, commands, seeds = recipe.size, Commands(recipe.folder, at_once), range(num_seeds)
    texts = prepared(recipe, commands)
    commands.train([recipe.teacher()])
    refuse_weak(commands.report("teacher")["evaluation"], size.nats)
    epochs = recipe.stream_epochs(texts["tokens"]["transfer"])
    students = [recipe.student(variant, seed, epochs) for seed in seeds for variant in size.variants]
    if not all(commands.is_done(each["name"]) for each in students):
        broker = LocalBroker(recipe.folder / "broker")
        try:
            broker.start()
            commands.environment["KAFKA_BOOTSTRAP_SERVERS"] = broker.bootstrap_servers
            label(recipe, commands, epochs)
            commands.train(students)
        finally:
            broker.stop(timeout=10.0)
    names = ["teacher", *(f"{variant}-{{seed}}" for variant in CLASSIFIED if variant in size.variants)]
    commands.train([recipe.classifier(name.format(seed=seed), seed) for seed in seeds for name in names])
    figures = gathered(recipe, commands, texts, num_seeds)
    (recipe.folder / "report.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (recipe.folder / "picture.svg").write_text(picture_of(recipe), encoding="utf-8")
    return figures


def prepared(recipe: Recipe, commands: Commands) -> dict[str, Any]:
    """Write texts, tokenizer and token IDs, unless they lie there; return what there is."""
    from corpus import write_corpus
    from token_files import TOKENIZER, write_tokens

    place, size, tokens = recipe.corpus, recipe.size, recipe.folder / "tokens.json"
    texts = write_corpus(place, size.most)
    commands.say(f"{texts['train']['packages']} packages to learn from, {texts['test']['packages']} for the test")
    if not tokens.exists():
        train = ("tokenizer", "train", place / "train", "--vocab-size", str(size.vocabulary))
        commands.run("tokenizer", *train, "--output", place / TOKENIZER)
        counts = write_tokens(place, recipe.token_files())
        tokens.write_text(json.dumps(counts), encoding="utf-8")  # last: what has this file is whole
    return {**texts, "tokens": json.loads(tokens.read_bytes())}


def refuse_weak(scores: dict[str, float], nats: float) -> None:
    """Raise DistillogError for a teacher that is not so many nats below the unigram model."""
    below = scores["unigram_nll"] - scores["position_nll"]
    if below < nats:
        raise DistillogError(
            f"the teacher is {below:.2f} nats below the unigram model on packages that it did not read, and has to be "
            f"{nats:.2f}: a student would learn little more from it than how often a word is; train it longer"
        )


def label(recipe: Recipe, commands: Commands, epochs: int) -> None:
    """Have the teacher label all that the students will read, once; what is labelled is not labelled again."""
    model, runs = recipe.folder / "teacher.onnx", recipe.runs
    outputs = ("--output", "logits", "--output", "hidden")
    commands.run("export", "runs", "export", "teacher", "--folder", runs, "--onnx", model, *outputs)
    data = recipe.data("transfer")
    made = (
        "--view",
        data["view"],
        "--order-size",
        str(data["order_size"]),
        "--epochs",
        str(epochs),
        "--partitions",
        "8",
    )
    commands.run("create", "topics", "create", STREAM, "--dataset", data["dataset"], *made)
    stored = (f"logits=topk:k={TOP},temperatures={TEMPERATURE:g}", "hidden=float16")
    commands.run(
        *("add-teacher", "topics", "add-teacher", STREAM, TEACHER, model),
        *("--output", "logits=logits", "--positions", "logits=masked", "--codec", stored[0]),
        *("--output", "hidden=hidden:features", "--positions", "hidden=masked", "--codec", stored[1]),
    )
    commands.run("feed", "feed", STREAM)
    commands.run("teach", "teach", STREAM, model, "--threads", "1", "--until-idle")
    commands.say("all of it is labelled, once for all students")


if __name__ == "__main__":
    sys.exit(main())
