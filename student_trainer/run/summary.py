"""What `runs list` and `runs show` say of runs; needs no lock."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError
from student_trainer.run.folder import newest_first, read_run, read_settings, step_of
from student_trainer.run.metrics import last_figures

logger = logging.getLogger(__name__)


def summary(path: Path) -> dict[str, Any]:
    """Return what a run is and its last figures; None where there is none yet.

    `step` is the last that is known of: logged, evaluated, or in the newest checkpoint.
    `loss`, `losses` and `lr` are of the last step that was logged, `samples_per_s` and `steps_per_s` of the steps since
    the one logged before it; `evaluation` holds the last scores and their step. `generation` is the last one that the
    run published or compared, where it does, and `too_old_rows` are those left out so far, where labels may be too old.

    Raises:
        ConfigError: there is no run in this folder, or its files cannot be read.
    """
    info, settings = read_run(path), read_settings(path)
    weights = settings.student.weights
    step, evaluation = last_figures(path / "metrics.jsonl")
    scores = evaluation.get("evaluation", {})
    samples_per_s = step.get("timing", {}).get("samples_per_s")
    ended = _report(path) if info["state"] == "done" else {}  # an older one, where it was resumed
    saved = [step_of(place) for place in newest_first(path / "checkpoints")[:1]]
    return {
        "name": settings.name,
        "state": info["state"],
        "run_id": info["run_id"],
        "source": getattr(settings.data, settings.source),
        "replay_of": _replay_of(path),
        "teachers": [f"{each.name} {each.span}".rstrip() for each in settings.teachers],
        "student": settings.student.name,
        "began_with": weights and f"{weights.path} ({weights.sha256[:16] or 'as it lay there'})",
        "step": max([step.get("step", 0), evaluation.get("step", 0), *saved]),
        "total_steps": step.get("total_steps"),
        "loss": step.get("loss"),
        "losses": step.get("losses"),
        "lr": step.get("lr"),
        "generation": step.get("generation"),
        "too_old_rows": ended.get("too_old_rows", step.get("too_old_rows")),
        "samples_per_s": samples_per_s,
        "steps_per_s": samples_per_s and samples_per_s / settings.train.batch_size,
        "accuracy": scores.get("accuracy"),
        "evaluation": {"step": evaluation["step"], **scores} if evaluation else None,
    }


def _replay_of(path: Path) -> str | None:
    """Whose labels a run that has ended has learned from, where they were copied into its stream; else None."""
    try:
        origins = _report(path).get("replay_of") or []
        return ", a replay of ".join(f"{one['stream']} ({one['stream_id']})" for one in origins) or None
    except (KeyError, TypeError):
        return None  # whoever damaged it has the run's own settings still


def _report(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / "report.json").read_bytes())
    except (OSError, ValueError):
        return {}  # not there yet, or damaged
    return found if isinstance(found, dict) else {}


def summaries(folder: Path) -> list[dict[str, Any]]:
    """Return the summaries of all runs below a folder, by name; one that cannot be read is left out with a warning."""
    found = []
    for path in sorted(folder.glob("*/run.toml")):
        try:
            found.append(summary(path.parent))
        except ConfigError as error:
            logger.warning("%s", error)
    return found
