"""What a source over a stream has to be told, by a run file or by a caller's own program."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from student_trainer.learning.losses import need_labels
from student_trainer.learning.targets import TargetSpec
from student_trainer.learning.terms import needed_targets
from student_trainer.run.settings import RunSettings, StarveSettings
from student_trainer.run.spans import Span


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Which rows of a stream are read, and with which labels."""

    stream: str
    """Its name."""
    teachers: tuple[str, ...]
    """Whose soft targets, by their names in the stream."""
    spans: Mapping[str, Span] = field(default_factory=dict)
    """Teacher -> the orders in which it counts; left out: all."""
    max_ages: Mapping[str, int] = field(default_factory=dict)
    """Teacher -> by how many generations its labels may be behind; left out: by any number."""
    publishes: Mapping[str, int] = field(default_factory=dict)
    """Of the teacher whose next generations the run is: how many orders lie between two of them."""
    chosen: Callable[[Mapping[str, TargetSpec]], Collection[str]] = tuple
    """Given all their outputs: the names of those that are read; left out: all."""
    passes: int = 1
    """How many times it is gone over."""
    dataset: str = ""
    """Where the same data lie, if not at the manifest's URI."""
    labelled: int | None = None
    """Label budget; None: every label there is."""
    label_seed: int = 0
    """Which samples show theirs."""
    check_labels: bool = False
    """Refuse labels beyond the classes: a loss looks at them."""
    classes: int = 0
    """How many classes labels have where neither stream, dataset nor teacher says; 0: nobody does."""
    loaders: int = 1
    """Threads that read and view samples."""
    loader_processes: bool = False
    """Whether these are processes instead."""
    starve: StarveSettings = field(default_factory=StarveSettings)

    @classmethod
    def of(cls, settings: RunSettings) -> StreamSettings:
        """Take a run's."""
        data, train = settings.data, settings.train
        return cls(
            stream=data.stream,
            teachers=tuple(teacher.name for teacher in settings.teachers),
            spans={each.name: each.span for each in settings.teachers if each.span.partial},
            max_ages={each.name: each.max_age for each in settings.teachers if each.max_age is not None},
            publishes={} if settings.publish is None else {settings.publish.teacher: settings.publish.every},
            chosen=lambda specs: needed_targets(settings, specs),
            passes=train.passes,
            dataset=data.dataset,
            labelled=data.labelled,
            label_seed=data.label_seed,
            check_labels=need_labels(settings),
            classes=settings.student.classes,
            loaders=train.loaders,
            loader_processes=train.loader_processes,
            starve=settings.starve,
        )
