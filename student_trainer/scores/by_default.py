"""What a run's student is measured by where nobody says it: as a classifier of samples, if it learns to be one."""

from __future__ import annotations

from schemas.errors import ConfigError
from student_trainer.learning.losses import find_loss
from student_trainer.learning.student_outputs import ONLY
from student_trainer.run.loss_settings import LossSettings
from student_trainer.run.metric_settings import MetricSettings
from student_trainer.run.settings import RunSettings
from student_trainer.scores.seen import Outputs

_CLASSES = {"classes", "labels", "draws"}
_NO_CLASSES = {"multilabel", "features"}
"""What a loss needs that sees no classes which exclude one another, though it may look at labels beside them."""


def metrics_by_default(settings: RunSettings, outputs: Outputs, say: str) -> tuple[MetricSettings, ...]:
    """Return `classes`, on `logits` or the only output that is no inner value.

    Args:
        settings: the run's.
        outputs: the student's, inner values among them.
        say: where somebody may say what else is measured.

    Raises:
        ConfigError: that is no row of classes for each sample, or no loss on it is of a softmax's classes or of the
            samples' labels.
    """
    own = [name for name in outputs if name not in settings.student.outputs]
    on = ONLY if ONLY in own or len(own) != 1 else own[0]
    taught = any(entry.on in (on, "") and _of_classes(entry) for entry in settings.losses)
    if taught and on in own and outputs[on].ndim == 2:
        return (MetricSettings("classes", params={} if on == ONLY else {"on": on}),)
    raise ConfigError(
        f"no loss has the student give a sample one row of classes as its output {on!r}, which is measured where "
        f"nothing is named: say what to measure with {say}"
    )


def of_features(settings: RunSettings, on: str) -> bool:
    """Whether what a run's losses teach one of its student's outputs are features, and no classes."""
    taught = [find_loss(entry.name).needs for entry in settings.losses if (entry.on or ONLY) == on]
    return bool(taught) and all("features" in needs and not needs & _CLASSES for needs in taught)


def _of_classes(entry: LossSettings) -> bool:
    needs = find_loss(entry.name).needs
    return not entry.labels and bool(needs & _CLASSES) and not needs & _NO_CLASSES
