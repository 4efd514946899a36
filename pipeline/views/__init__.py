"""Views by name: the augmentation of a sample as a pure function of (sample, view seed).

A new one is a function of the signature of `Apply` and a line in VIEWS; raise its version when its result changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.datasets.base import Arrays, Dataset, Ints, Parts, Vocabulary
from pipeline.views import user
from pipeline.views.affine import affine
from pipeline.views.composed import JOINT, flat, in_a_row, joint_version, params_of, stages_of
from pipeline.views.crop_flip import crop_flip, drawn
from pipeline.views.log_mel import MAX_WINDOW, NUM_DRAWS, fits_rate, log_mel
from pipeline.views.masked import masked, next_token, of_vocabulary
from pipeline.views.mixing import Mix, cutmix, mixup
from pipeline.views.plain import plain, whole
from pipeline.views.signal import signal
from schemas.errors import ConfigError
from schemas.names import did_you_mean
from schemas.records import ViewSpec

__all__ = ["VIEWS", "View", "evaluation_view", "find_view", "max_positions", "view_spec"]

Apply = Callable[[Arrays, Ints, int, dict[str, Any], tuple[int, ...] | None], Arrays]
"""(samples name -> [N, ...], sample IDs [N], view seed, params, spatial size or None) -> views name -> [N, ...]"""

Draw = Callable[[Ints, int, dict[str, Any]], Parts]
"""(sample IDs [N], view seed, params) -> what is looked at of N images"""

OfData = Callable[[Mapping[str, Any], Vocabulary], dict[str, Any]]
"""(params, the dataset's vocabulary) -> params"""

Fits = Callable[[Mapping[str, Any], Dataset], None]
"""(params, dataset); raises ConfigError where these parameters are of other samples than the dataset's"""

Value = float | int | str | bool


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at samples."""

    apply: Apply
    defaults: Mapping[str, Value]
    """Every parameter and its default; but of language models', defaults draw nothing."""
    version: int
    """Pinned by manifests."""
    draws: Mapping[str, int] = field(default_factory=dict)
    """Name and count of its draws a sample, which a probe pins exactly."""
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Lowest and highest value of numbers; 0 to infinity where not said."""
    parts: Draw | None = None
    """Of a view that shows a part of each image and does nothing else to it: which, drawn without any pixel."""
    after: Apply | None = None
    """What follows those parts, where views stand in a row."""
    mix: Callable[[dict[str, Any]], Mix | None] | None = None
    """Of a view that mixes each sample, as it is seen, with another one: params -> how; None: nothing is mixed."""
    evaluation: Mapping[str, Value] | None = None
    """Parameters under which a view augments nothing: an evaluation sets them, and keeps the others. None: a user's
    view does not say, and all of a built-in one augment."""
    open_ended: bool = False
    """Takes parameters that `defaults` does not name (a user's function with **params)."""
    thread_safe: bool = True
    """Whether several threads may call it at once; a user's own says so, or not."""
    max_positions: Mapping[str, int] = field(default_factory=dict)
    """Field that chooses positions -> the most of a sample; all that it has where it is not said."""
    bounds: Mapping[str, str] = field(default_factory=dict)
    """The same, by the parameter that says it."""
    of_data: OfData | None = None
    """What of its parameters the dataset knows, where the user does not say them."""
    fits: Fits | None = None
    """Refuses a dataset; not asked where a user's view comes first, and makes other samples of these."""
    usual: tuple[user.Usual, ...] = ()
    """What the samples of each user's view are held to."""


_MIXED: tuple[dict[str, Value], int] = {"alpha": 0.0, "probability": 1.0}, 1
_SHARES = {"alpha": (0.0, 64.0), "probability": (0.0, 1.0)}

VIEWS: dict[str, View] = {
    "none": View(plain, {}, 2, parts=whole),
    "affine": View(
        affine,
        {"intensity": 0.0, "scale": 0.0, "shear": 0.0, "rotation": 0.0, "shift": 0.0, "noise": 0.0},
        1,
        {"affine": 6},
        {"intensity": (0, 1), "scale": (0, 0.95), "rotation": (0, 180), "shift": (0, 1)},
    ),
    "crop_flip": View(
        crop_flip,
        {"min_area": 1.0, "ratio": 0.0, "flip": 0.0},
        2,
        {"crop_flip": 6},
        {"min_area": (1e-4, 1), "flip": (0, 1)},
        drawn,
    ),
    "log_mel": View(
        log_mel,
        {"window": 400, "hop": 160, "mels": 40, "rate": 16_000, "stride": 0}
        | {"shift": 0.0, "noise": 0.0, "time_mask": 0.0, "mel_mask": 0.0},
        1,
        {"log_mel": NUM_DRAWS},
        {"window": (16, MAX_WINDOW), "hop": (1, MAX_WINDOW), "mels": (1, 512), "rate": (1_000, 384_000)}
        | {"shift": (0, 1), "time_mask": (0, 1), "mel_mask": (0, 1)},
        evaluation={"shift": 0.0, "noise": 0.0, "time_mask": 0.0, "mel_mask": 0.0},
        fits=fits_rate,
    ),
    "mixup": View(plain, *_MIXED, {"mixup": 2, "mixup.partner": 1}, _SHARES, whole, mix=mixup),
    "cutmix": View(plain, *_MIXED, {"cutmix": 4, "cutmix.partner": 1}, _SHARES, whole, mix=cutmix),
    "masked": View(
        masked,
        {"share": 0.15, "most": 20, "mask_id": -1, "vocab_size": -1},
        1,
        {"masked.word": 4, "masked.how": 4, "masked.token": 4},
        {"share": (0, 1), "most": (1, 1 << 20), "mask_id": (-1, 1 << 40), "vocab_size": (-1, 1 << 40)},
        evaluation={},  # nothing is learned, or measured, of texts in which nothing is hidden
        bounds={"masked": "most"},
        of_data=of_vocabulary,
    ),
    "next_token": View(next_token, {}, 1, evaluation={}),
    "signal": View(
        signal, {"shift": 0.0, "scale": 0.0, "noise": 0.0}, 1, {"signal": 2}, {"shift": (0, 1), "scale": (0, 1)}
    ),
}


def find_view(name: str) -> View:
    """A built-in view, the user's own at `module:function`, or several joined by "+". Raises ConfigError."""
    if name in VIEWS:
        return VIEWS[name]
    if JOINT in name:
        return _composed(name)
    if ":" not in name:
        raise ConfigError(f"no view {name!r}: {did_you_mean(name, VIEWS)}, or my_package.my_module:function")
    own = user.load(name)
    usual = user.Usual()
    apply = user.per_sample(name, own.function, usual)
    return View(
        apply,
        own.defaults,
        own.version,
        open_ended=own.open_ended,
        evaluation=own.evaluation,
        thread_safe=own.thread_safe,
        max_positions=own.max_positions,
        usual=(usual,),
    )


def view_spec(name: str, params: Mapping[str, Any]) -> ViewSpec:
    """A checked view with every parameter named, as manifests and run files keep it.

    Raises ConfigError for an unknown view or parameter, and for a value of the wrong type, out of its limits, NaN or
    infinite.
    """
    view = find_view(name)
    if JOINT in name:
        stages = stages_of(name)
        given = flat(name, stages, params)
        specs = {label: view_spec(stage, params_of(label, given)) for label, stage in stages.items()}
        return _joined(name, specs, view.version)
    full: dict[str, Value] = dict(view.defaults)
    for key, value in {**full, **params}.items():
        # A text of a user's own view may be anything: norm="inf".
        if not (isinstance(value, str) and name not in VIEWS) and not _finite(value):
            raise ConfigError(f"view {name}: {key} is {value}: a view takes no NaN and nothing infinite")
    for key, value in params.items():
        if key not in full and not view.open_ended:
            raise ConfigError(f"view {name} has no parameter {key!r}: {did_you_mean(key, full)}")
        full[key] = _checked(name, key, value, full.get(key, value), view.limits)
    return ViewSpec(name=name, params=full, version=view.version)


def evaluation_view(spec: ViewSpec) -> ViewSpec:
    """The view without its randomness: no augmentation.

    Raises ConfigError for a user's view that does not say how it looks then.
    """
    view = find_view(spec.name)
    if JOINT in spec.name:
        stages = {
            label: evaluation_view(ViewSpec(stage, params_of(label, spec.params), find_view(stage).version))
            for label, stage in stages_of(spec.name).items()
        }
        return _joined(spec.name, stages, view.version)
    if view.evaluation is None and spec.name in VIEWS:
        return view_spec(spec.name, {})
    if view.evaluation is None:
        function = spec.name.partition(":")[2]
        raise ConfigError(
            f"view {spec.name} does not say what of it stays in an evaluation: set [evaluation] view (--view, once a "
            f"run is trained), or {function}.evaluation = {{...}} beside the function, the parameters under which it "
            "augments nothing"
        )
    return view_spec(spec.name, {**spec.params, **view.evaluation})


def max_positions(spec: ViewSpec) -> dict[str, int]:
    """Field that chooses positions -> the most of a sample, as a view says under its parameters.

    Of views in a row, the last one that says it of a field; all are held to it at their end.
    """
    if JOINT in spec.name:
        found: dict[str, int] = {}
        for label, stage in stages_of(spec.name).items():
            found |= max_positions(ViewSpec(stage, params_of(label, spec.params), find_view(stage).version))
        return found
    view = find_view(spec.name)
    return {**view.max_positions, **{name: int(spec.params[param]) for name, param in view.bounds.items()}}


def _composed(name: str) -> View:
    """Views in a row as one; only its `view_spec` knows the limits of parameters."""
    names = stages_of(name)
    stages = {label: find_view(stage) for label, stage in names.items()}
    in_turn = {label: (view.apply, names[label] not in VIEWS) for label, view in stages.items()}
    first, last = next(iter(stages)), next(reversed(stages))
    _refuse_mixed(name, stages)
    if mix := stages[last].mix:
        del in_turn[last]  # each sample is seen by the others alone, the last of which is asked for the size
    rest = {label: stage for label, stage in in_turn.items() if label != first}
    return View(
        in_a_row(in_turn),
        {f"{label}.{key}": value for label, view in stages.items() for key, value in view.defaults.items()},
        joint_version(name, {label: view.version for label, view in stages.items()}),
        {draw: count for view in stages.values() for draw, count in view.draws.items()},
        parts=_parts_of(first, stages[first]),
        of_data=_of_data(stages),
        after=in_a_row(rest) if rest else None,
        mix=(lambda params: mix(params_of(last, params))) if mix else None,
        fits=_fits(names, stages),
        thread_safe=all(view.thread_safe for view in stages.values()),
        max_positions={name: most for view in stages.values() for name, most in view.max_positions.items()},
        usual=tuple(usual for view in stages.values() for usual in view.usual),
    )


def _refuse_mixed(name: str, stages: Mapping[str, View]) -> None:
    """Raise ConfigError where a view mixes samples before all others saw them, or mixes what has positions."""
    *before, last = stages
    for label in before:
        if stages[label].mix:
            raise ConfigError(f"view {name}: {label} mixes samples as the other views show them: name it last")
    if stages[last].mix and (chooser := next((each for each in before if _chooses(stages[each])), "")):
        raise ConfigError(f"view {name}: {chooser} chooses positions of each sample, of which there is no mix")


def _chooses(view: View) -> bool:
    return bool(view.max_positions or view.bounds)


def _of_data(stages: Mapping[str, View]) -> OfData:
    def settled(params: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
        found = dict(params)
        for label, view in stages.items():
            if view.of_data:
                own = view.of_data(params_of(label, params), vocabulary)
                found |= {f"{label}.{key}": value for key, value in own.items()}
        return found

    return settled


def _fits(names: Mapping[str, str], stages: Mapping[str, View]) -> Fits:
    def asked(params: Mapping[str, Any], dataset: Dataset) -> None:
        for label, view in stages.items():
            if names[label] not in VIEWS:
                return
            if view.fits:
                view.fits(params_of(label, params), dataset)

    return asked


def _parts_of(label: str, view: View) -> Draw | None:
    draw = view.parts
    return None if draw is None else lambda ids, seed, params: draw(ids, seed, params_of(label, params))


def _joined(name: str, specs: Mapping[str, ViewSpec], version: int) -> ViewSpec:
    params = {f"{label}.{key}": value for label, spec in specs.items() for key, value in spec.params.items()}
    return ViewSpec(name=name, params=params, version=version)


def _checked(view: str, key: str, value: Any, default: Value, limits: Mapping[str, tuple[float, float]]) -> Value:
    if not isinstance(value, bool | int | float | str):
        raise ConfigError(f"view {view}: {key} is {value!r}: give a number, a text or true/false")
    if isinstance(default, str):
        return str(value)
    if isinstance(default, bool) or isinstance(value, bool):
        if isinstance(value, bool) and isinstance(default, bool):
            return value
        wanted = "true or false" if isinstance(default, bool) else "a number"
        raise ConfigError(f"view {view}: {key} is {value!r}: give {wanted}")
    if isinstance(value, str):
        raise ConfigError(f"view {view}: {key} is {value!r}: give a number")
    low, high = limits.get(key, (0.0, float("inf"))) if view in VIEWS else (float("-inf"), float("inf"))
    if not low <= value <= high:
        raise ConfigError(f"view {view}: {key} is {value}: give a number from {low:g} to {high:g}")
    if view in VIEWS and isinstance(default, int):
        if value != int(value):
            raise ConfigError(f"view {view}: {key} is {value}: give a whole number")
        return int(value)
    return float(value) if isinstance(default, float) else value


def _finite(value: object) -> bool:
    """False for NaN and infinity, also as a text or within numbers joined by commas; True for all other texts."""
    try:
        numbers = [float(part) for part in str(value).split(",")]
    except ValueError:
        return True
    return all(map(math.isfinite, numbers))
