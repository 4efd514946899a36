"""What came of it: the figures of all runs, a table for masked words, one for classifiers, and a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from bag_of_words import bag_of_words
from commands import Commands
from variants import CLASSIFIED, VARIANTS, Recipe

from student_trainer.curves import picture
from student_trainer.run.metrics import curves

PUBLISHED = {"smaller": 0.40, "faster": 0.60, "kept": 0.97}
"""DistilBERT against BERT-base (Sanh et al. 2019): parameters, time of an inference, GLUE."""


def gathered(recipe: Recipe, commands: Commands, texts: dict[str, Any], num_seeds: int) -> dict[str, Any]:
    """All figures, as report.json has them."""
    size, seeds, runs = recipe.size, range(num_seeds), recipe.runs
    asked = ("--dataset", recipe.tokens("test"), "--folder", runs, "--json")
    teacher = json.loads(commands.run("evaluate", "runs", "evaluate", "teacher", *asked))
    words = {"teacher": [teacher]} | {
        variant: [commands.report(f"{variant}-{seed}")["evaluation"] for seed in seeds] for variant in size.variants
    }
    names = {"teacher": "teacher"} | {each: f"{each}-{{seed}}" for each in CLASSIFIED if each in size.variants}
    kinds = {
        each: [commands.report(f"kinds-{name.format(seed=seed)}-{seed}")["evaluation"] for seed in seeds]
        for each, name in names.items()
    }
    place = recipe.corpus
    return {
        "texts": texts,
        "validation": commands.report("teacher")["evaluation"],
        "words": words,
        "kinds": kinds,
        "bag_of_words": bag_of_words(place / "kinds-train.jsonl", place / "kinds-test.jsonl"),
        "speed": speed(recipe, commands),
        "published": PUBLISHED,
        "num_seeds": num_seeds,
        "seconds": {name: commands.report(name)["timing"]["seconds"] for name in ("teacher", "triple-0")},
    }


def speed(recipe: Recipe, commands: Commands) -> dict[str, Any]:
    """Size and speed of two classifiers, as `distillog runs bench` measures them, on one thread; measured once."""
    models = ("kinds-teacher-0", "kinds-triple-0-0")
    path = recipe.folder / "speed.json"
    if not path.exists():
        how = ("--batch-size", "1", "--batch-size", "32", "--threads", "1", "--quiet", "--json")
        few = () if recipe.size.steps >= 100 else ("--rounds", "1", "--seconds", "0.2")
        path.write_text(commands.run("bench", "runs", "bench", *models, "--folder", recipe.runs, *how, *few))
    found = json.loads(path.read_bytes())
    parameters = {name: commands.report(name)["parameters"] for name in models}
    return {"names": models, "parameters": parameters, "results": found["results"]}


def tables(figures: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    return [*_words(figures), *_kinds(figures), *_beside(figures)]


def picture_of(recipe: Recipe) -> str:
    """Curves of the first seed's students over steps: nats of a hidden word, and how often it is found, on the test."""
    variants = recipe.size.variants
    titles = {"position_nll": "nats of a hidden token", "position_accuracy": "found at once"}
    found = [curves(recipe.runs / f"{variant}-0" / "metrics.jsonl") for variant in variants]
    kept = [{title: each[name] for name, title in titles.items() if name in each} for each in found]
    return picture(variants, kept, what="students")


def _words(figures: dict[str, Any]) -> list[str]:
    teacher, words = figures["words"]["teacher"][0], figures["words"]
    lines = ["", "| masked words | nats | difference | found at once |", "|---|---:|---:|---:|"]
    lines.append(f"| unigram model | {teacher['unigram_nll']:.3f} | | |")
    lines.append(f"| teacher | {teacher['position_nll']:.3f} | | {teacher['position_accuracy']:.1%} |")
    best = [each["position_nll"] for each in words["triple"]]
    for variant, found in words.items():
        if variant == "teacher":
            continue
        nats = [each["position_nll"] for each in found]
        # Of one seed all students have the same views, so that differences are of pairs.
        apart = [one - other for one, other in zip(nats, best, strict=True)]
        right = [100 * each["position_accuracy"] for each in found]
        difference = "" if variant == "triple" else _spread(apart, 3, "+")
        lines.append(f"| {VARIANTS[variant].title} | {_spread(nats, 3)} | {difference} | {_spread(right, 1)} % |")
    return lines


def _kinds(figures: dict[str, Any]) -> list[str]:
    lines = ["", "| what a docstring is of | right | of the teacher's |", "|---|---:|---:|"]
    taught = [100 * each["accuracy"] for each in figures["kinds"]["teacher"]]
    for variant, found in figures["kinds"].items():
        title = "teacher" if variant == "teacher" else VARIANTS[variant].title
        right = [100 * each["accuracy"] for each in found]
        kept = "" if variant == "teacher" else f"{statistics.mean(right) / statistics.mean(taught):.1%}"
        lines.append(f"| {title} | {_spread(right, 1)} % | {kept} |")
    return [*lines, f"| words and pairs of words, logistic regression | {figures['bag_of_words']:.1%} | |"]


def _beside(figures: dict[str, Any]) -> list[str]:
    """The student with the triple loss beside DistilBERT's published figures."""
    speed = figures["speed"]
    large, small = (speed["parameters"][name] for name in speed["names"])
    right = {
        name: statistics.mean(each["accuracy"] for each in figures["kinds"][name]) for name in ("teacher", "triple")
    }
    lines = ["", "| | here | DistilBERT |", "|---|---:|---:|"]
    lines.append(f"| parameters | {large:,} to {small:,}: {1 - small / large:.0%} smaller | 40 % smaller |")
    for batch in (1, 32):
        # Of each round both are measured one after the other: of their ratios little is the machine's other work.
        found = next(
            each["ratios"]["samples_per_s"]
            for each in speed["results"]
            if each["batch_size"] == batch and each["model"] == speed["names"][1]
        )
        middle, least, most = (100 * (found[name] - 1) for name in ("median", "least", "most"))
        text = f"{middle:.0f} % faster (rounds: {least:.0f} to {most:.0f})"
        lines.append(f"| samples/s, batches of {batch} | {text} | {'60 % faster' if batch == 1 else ''} |")
    return [*lines, f"| accuracy kept | {right['triple'] / right['teacher']:.1%} | 97 % |"]


def _spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Mean and standard deviation over seeds; of one seed the value."""
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
