"""Which runs the demo makes: teacher.toml and student.toml, and what is changed in them for the comparison."""

from __future__ import annotations

import copy
import os
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(os.path.relpath(__file__)).parent
"""Relative, since it is shown in commands."""
STREAM = "digits"
TEACHER = "cnn"
TRAIN = "digits?split=train"
TEST = "digits?split=test"
EPOCHS = 200
"""Of the stream: the 2,000 steps of 128 need 198."""
ORDER_SIZE = 256
PARTITIONS = 16
"""Divides among 2 workers, and the student's 1,200 orders give each partition 75."""
SESSION_TIMEOUT = 2
"""Seconds until a dead worker is replaced; a default broker allows 6 and more."""
KINDS = {"distilled": "student", "argmax": "argmax", "hard": "baseline", "all": "ceiling"}
"""What a student learns from: soft targets, their argmax, the hard labels, all labels -> its column in the report."""


def _read(name: str) -> dict[str, Any]:
    document = tomllib.loads((HERE / name).read_text(encoding="utf-8"))
    # The test images are used once, at the very end, on all models together.
    del document["evaluation"]
    document["checkpoint"] = {"every": 0}
    return document


def teacher_run() -> dict[str, Any]:
    """The teacher's run file."""
    return {**_read("teacher.toml"), "name": "teacher"}


def view() -> dict[str, Any]:
    """The views that everybody sees: name and parameters."""
    return dict(_read("teacher.toml")["data"]["view"])


def student_run(kind: str, seed: int) -> dict[str, Any]:
    """The run file of one student; all differ in what they learn from and in the seed of their weights alone."""
    document = copy.deepcopy(_read("student.toml"))
    document["name"] = f"{kind}-{seed}"
    document["train"]["seed"] = seed
    if kind == "argmax":
        document["losses"] = [{"name": "teacher_argmax"}]
    elif kind in ("hard", "all"):
        # The teacher's own images, order size, seed and labels; the stream's seed is the same 0.
        teacher = teacher_run()["data"]
        document["source"] = "dataset"
        document["data"] = {key: teacher[key] for key in ("dataset", "view", "order_size", "seed")}
        if kind == "hard":
            document["data"] |= {key: teacher[key] for key in ("labelled", "label_seed", "only_labelled")}
        document["losses"] = [{"name": "cross_entropy"}]
        del document["teachers"]
    return document


def live_overrides(seed: int) -> list[str]:
    """What `distillog runs start student.toml` has to be told to be `student_run("distilled", seed)`."""
    return [f"name=distilled-{seed}", f"train.seed={seed}", "evaluation.dataset="]
