"""The terms of a run's loss: which of the student's outputs each is on, and which of the teachers' it is against.

Letters: B rows of a batch, C classes, T temperature. All that does not fit is refused before the first step.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.datasets.base import Field
from pipeline.hashing import tag
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError
from schemas.names import did_you_mean
from student_trainer.learning.ensembles import refuse_ensemble
from student_trainer.learning.losses import Loss, find_loss
from student_trainer.learning.losses.loss import whole
from student_trainer.learning.partner_labels import PARTNERS
from student_trainer.learning.positions import labels_name
from student_trainer.learning.targets import TargetSpec, target_name
from student_trainer.run.choices import Choice
from student_trainer.run.loss_settings import LossSettings
from student_trainer.run.settings import RunSettings, TeacherSettings
from student_trainer.run.toml_tables import unknown

_PROJECTION = tag("student_trainer.projection")
_LOSS_KEYS = {each.name for each in dataclasses.fields(LossSettings)} - {"params"}
OWN = ("self", "average", "past", "peers")
"""Whose outputs `against` may name beside the teachers': the student's own, and its peers' (`own_targets.py`)."""
WITHOUT_SOFTMAX = frozenset({"features", "multilabel"})
"""What losses need that take a target number by number."""
_OF_POSITIONS = "cross_entropy"
"""The loss that takes labels of positions."""

_LACKING = {
    "teacher": 'a teacher\'s soft targets, but source = "dataset" has none',
    "classes": "classes, but {name} holds {kind}; use {instead}, or name another with `against`",
    "dense": "all classes' logits, but the codec of {name} keeps only some; store it as float32 or float16",
    "logits": "true logits, but {name} holds {kind}; use forward_kl",
    "draws": "classes drawn at random, but {name} is stored as {codec}; use {instead}, or store it as sampled:n=50",
    "multilabel": "multilabel logits, but {name} holds {kind}; use {instead}",
    "features": "features, but {name} holds {kind}; name an output of features with `against`",
    "labels": "labels, but no sample shows one; raise data.labelled or take a labelled dataset",
}

_INSTEAD = {
    "draws of classes": "sampled_cross_entropy",
    "multilabel": "binary_kl",
    "features": "mse or cosine",
    "values": "mse or cosine",
}


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One entry of [[losses]]."""

    key: str
    loss: Loss
    weight: float
    temperature: float
    params: dict[str, Any]
    on: str
    """The student's output; "": `logits`, or the only one."""
    shares: dict[str, float]
    """Target -> its share. {}: hard labels of samples alone."""
    specs: dict[str, TargetSpec] = field(default_factory=dict)
    """What the teachers' targets of these are: all of one shape, but for the classes of class maps."""
    projection: str = ""
    labels: str = ""
    """The view's field of its hard labels of positions."""
    places: tuple[int, ...] = ()
    """Shape of that field of a sample."""
    weight_schedule: Choice | None = None
    temperature_schedule: Choice | None = None
    mean: str = ""
    """Of what several teachers give, made one target; "": of their losses."""
    choose: str = ""
    """By what one teacher's loss alone is taken for each sample; "": all teachers' are."""
    own: str = ""
    """Which of OWN its targets are of; "": they are the teachers'."""
    mixed: bool = False
    """Whether its hard labels are of samples that the view mixes: two a row, each with its share."""
    parted: frozenset[str] = frozenset()
    """Those of the targets that are not always there: whose teachers count in some orders alone, or of a past."""


def targets_of(
    entry: LossSettings, teachers: Sequence[TeacherSettings], specs: Mapping[str, TargetSpec]
) -> dict[str, float]:
    """Return the targets that a loss is against, and the share of each.

    Args:
        entry: a loss that needs a teacher; its `against` is `TEACHER.OUTPUT`, `OUTPUT` of all teachers, or "": the
            output of classes of each.
        teachers: the run's.
        specs: of all their outputs, by `target_name`.

    Raises:
        ConfigError: no such output.
    """
    name, what = entry.against, f"[[losses]] {entry.title}: against"
    if "." in name:
        if name not in specs:
            raise ConfigError(f"{what} {name!r}: {did_you_mean(name, specs)}")
        return {name: 1.0}
    of_all = sum(teacher.weight for teacher in teachers)
    shares = {}
    for teacher in teachers:
        own = [each for each in specs if each.partition(".")[0] == teacher.name]
        found = [each for each in own if each == target_name(teacher.name, name) or (not name and specs[each].default)]
        if not found:
            missing = f"output {name!r}" if name else "output of classes"
            raise ConfigError(f"{what}: teacher {teacher.name!r} has no {missing}; it has {', '.join(own)}")
        shares[found[0]] = teacher.weight / of_all
    return shares


def needed_targets(settings: RunSettings, specs: Mapping[str, TargetSpec]) -> tuple[str, ...]:
    """Return the teachers' targets that a loss of the run is against. Raises ConfigError as `targets_of`."""
    soft = (entry for entry in settings.losses if find_loss(entry.name).holds and not _own(entry, settings.teachers))
    return tuple(dict.fromkeys(name for entry in soft for name in targets_of(entry, settings.teachers, specs)))


def resolve(
    settings: RunSettings,
    specs: Mapping[str, TargetSpec],
    has_labels: bool = True,
    fields: Callable[[], Mapping[str, Field]] = dict,
    peers: Sequence[str] = (),
    mixes: bool = False,
) -> tuple[Term, ...]:
    """Return the terms of a run, or of one of the peers that learn in it.

    Args:
        settings: the run's.
        specs: of all outputs of its teachers, by `target_name`; {} without teachers.
        has_labels: whether a sample shows its label.
        fields: gives those of the view; called where a loss learns from one.
        peers: names of the other students.
        mixes: whether the view mixes each sample with another.

    Raises:
        ConfigError: an unknown loss, parameter, output or field, or a need that is not met; names the loss.
    """
    terms = tuple(
        _term_of_positions(entry, fields()) if entry.labels else _term(entry, settings, specs, has_labels, peers, mixes)
        for entry in settings.losses
    )
    if peers and not any(term.own == "peers" for term in terms):
        raise ConfigError('[[peers]]: no loss is against "peers.OUTPUT", so they learn nothing from each other')
    if all(term.own in ("average", "past") for term in terms):
        raise ConfigError(
            f"[[losses]] {terms[0].key}: the student has no past to begin with: name a loss beside it that is against "
            "something else"
        )
    return terms


def _own(entry: LossSettings, teachers: Sequence[TeacherSettings]) -> bool:
    """Whether a loss is against an output of the student's own; a teacher of that name goes before."""
    whose, dot, _ = entry.against.partition(".")
    return bool(dot) and whose in OWN and whose not in [teacher.name for teacher in teachers]


def _term_of_positions(entry: LossSettings, fields: Mapping[str, Field]) -> Term:
    name, what = entry.labels, f"[[losses]] {entry.title}"
    if entry.name != _OF_POSITIONS:
        raise ConfigError(f"{what}: `labels` names a field of hard labels, which {_OF_POSITIONS} alone learns from")
    _refuse_keys_of_teachers(what, entry)
    if entry.projection:
        raise ConfigError(f"{what} learns from labels: leave out `projection`")
    loss = find_loss(entry.name)
    _refuse_params(what, entry, loss)
    if name not in fields:
        raise ConfigError(f"{what}: labels: the view has no field {name!r}: {did_you_mean(name, fields)}")
    shape, dtype = fields[name].shape, fields[name].dtype
    if not dtype.startswith(("int", "uint")):
        raise ConfigError(f"{what}: labels: field {name!r} is {dtype}; labels are integers, -1 where there is none")
    places = tuple(size for size in shape if size is not None)
    shares = {labels_name(name): 1.0}
    return _made(entry, loss, shares, labels=name, places=places)


def _made(entry: LossSettings, loss: Loss, shares: dict[str, float], **more: Any) -> Term:
    return Term(
        entry.title,
        loss,
        entry.weight,
        entry.temperature,
        entry.params,
        entry.on,
        shares,
        weight_schedule=entry.weight_schedule,
        temperature_schedule=entry.temperature_schedule,
        mean=entry.mean,
        choose=entry.choose,
        **more,
    )


def _refuse_params(what: str, entry: LossSettings, loss: Loss) -> None:
    """Raise ConfigError for parameters that the loss does not take, or that make no sense."""
    parameters = set(list(inspect.signature(loss.function).parameters)[4:]) - {"labelled_fraction"}
    for key in entry.params:
        if key not in parameters:
            raise ConfigError(f"{what}: {unknown('key', key, parameters | _LOSS_KEYS)}")
    loss.refuse(what, entry.params)


def _term(
    entry: LossSettings,
    settings: RunSettings,
    specs: Mapping[str, TargetSpec],
    has_labels: bool,
    peers: Sequence[str],
    mixes: bool,
) -> Term:
    loss, what = find_loss(entry.name), f"[[losses]] {entry.title}"
    _refuse_params(what, entry, loss)
    if entry.projection and "features" not in loss.needs:
        raise ConfigError(f"{what}: a projection is for losses on features, such as mse and cosine")
    if entry.projection and loss.compared is not whole:
        raise ConfigError(f"{what}: compares features of any width: leave out `projection`")
    if "labels" in loss.needs and not has_labels:
        raise ConfigError(f"{what} needs {_LACKING['labels']}")
    if mixes and (entry.choose == "label" or ("labels" in loss.needs and loss.holds)):
        raise ConfigError(
            f"{what}: takes one class for each row, and the view mixes samples of two; take forward_kl, and "
            "cross_entropy beside it, or another view"
        )
    if not loss.holds:
        _refuse_keys_of_teachers(what, entry)
        return _made(entry, loss, {PARTNERS: 1.0} if mixes else {}, mixed=mixes)
    if _own(entry, settings.teachers):
        return _own_term(what, entry, loss, settings, has_labels, peers)
    if not specs:
        raise ConfigError(f"{what} needs {_LACKING['teacher']}")
    shares = targets_of(entry, settings.teachers, specs)
    for name in shares:
        _refuse_misfit(what, entry, loss, name, specs[name])
    chosen = {name: specs[name] for name in shares}
    if entry.mean or entry.choose:
        refuse_ensemble(what, entry, loss, shares, chosen)
    if entry.choose == "label" and not has_labels:
        raise ConfigError(f'{what}: choose = "label" needs {_LACKING["labels"]}')
    # Of those with class maps the student's classes tell, not one another's.
    alike = [name for name, spec in chosen.items() if not spec.classes]
    for name in alike:
        if chosen[name].whole != chosen[alike[0]].whole:
            raise ConfigError(
                f"{what}: {alike[0]} has rows of {rows_shown(chosen[alike[0]].whole)}, {name} of "
                f"{rows_shown(chosen[name].whole)}: name one of them with `against`"
            )
    at_times = {each.name for each in settings.teachers if each.span.partial}
    parted = frozenset(name for name in shares if name.partition(".")[0] in at_times)
    for name in parted:
        if chosen[name].positions:
            raise ConfigError(
                f"{what}: {name} has a row for each of a sample's positions, and its teacher does not count in all "
                "orders: leave out `from` and `until` of it"
            )
    return _made(entry, loss, shares, specs=chosen, projection=entry.projection, parted=parted)


def _own_term(
    what: str, entry: LossSettings, loss: Loss, settings: RunSettings, has_labels: bool, peers: Sequence[str]
) -> Term:
    whose, _, output = entry.against.partition(".")
    if whose == "average" and settings.train.ema is None:
        raise ConfigError(f"{what}: against {entry.against!r}: the run keeps no average: say its decay by [train] ema")
    if whose == "peers" and not peers:
        raise ConfigError(f"{what}: against {entry.against!r}: the run has no [[peers]]")
    if "draws" in loss.needs:
        raise ConfigError(f"{what} needs classes drawn at random, and {entry.against} is not stored: use forward_kl")
    shares = {f"peers.{peer}.{output}": 1 / len(peers) for peer in peers} if whose == "peers" else {entry.against: 1.0}
    if entry.mean or entry.choose:
        if whose != "peers":
            key = "mean" if entry.mean else "choose"
            raise ConfigError(f"{what}: against {entry.against!r} is one target: leave out `{key}`")
        kind = "features" if loss.needs & WITHOUT_SOFTMAX else "logits"
        held = TargetSpec(kind, (1,), int(kind == "logits"), CodecSpec())
        refuse_ensemble(what, entry, loss, shares, dict.fromkeys(shares, held))
        if entry.choose == "label" and not has_labels:
            raise ConfigError(f'{what}: choose = "label" needs {_LACKING["labels"]}')
    late = frozenset(shares) if whose in ("average", "past") else frozenset()
    return _made(entry, loss, shares, projection=entry.projection, own=whose, parted=late)


def _refuse_keys_of_teachers(what: str, entry: LossSettings) -> None:
    for key in ("against", "mean", "choose"):
        if getattr(entry, key):
            raise ConfigError(f"{what} learns from labels: leave out `{key}`")


def _refuse_misfit(what: str, entry: LossSettings, loss: Loss, name: str, spec: TargetSpec) -> None:
    of_classes = "draws" if spec.codec.draws else "classes"
    holds = {"teacher", "labels", of_classes if spec.num_classes else "features"}
    if spec.kind == "multilabel":
        holds.add("multilabel")
    if spec.num_classes and spec.codec.keeps_all:
        holds.add("dense")
    if spec.kind == "logits":
        holds.add("logits")
    for need in _LACKING:
        if need in loss.needs_with(entry.params) - holds:
            kind = "draws of classes" if spec.codec.draws else spec.kind
            instead = _INSTEAD.get(kind, "forward_kl")
            lacking = _LACKING[need].format(name=name, kind=kind, instead=instead, codec=spec.codec)
            raise ConfigError(f"{what} needs {lacking}")
    if "draws" in loss.needs and entry.temperature != 1:
        raise ConfigError(
            f"{what}: temperature {entry.temperature}: the draws of {name} are at 1, and no other can be had"
        )
    if entry.temperature_schedule is not None and spec.num_classes and not spec.codec.keeps_all:
        raise ConfigError(
            f"{what}: temperature_schedule: the codec of {name} keeps some classes, and for the temperatures that it "
            "declares alone the mass of all others: leave the schedule out, or store float32 or float16"
        )
    if entry.name == "forward_kl" and not spec.codec.serves(entry.temperature):
        declared = ", ".join(map(str, spec.codec.temperatures))
        raise ConfigError(
            f"{what}: temperature {entry.temperature} has no stored tail mass; the codec of {name} declares {declared}"
        )


def rows_shown(shape: Sequence[int | str]) -> str:
    """Return the shape of rows as messages have it."""
    return f"[{', '.join(map(str, ('N', *shape)))}]"
