"""The weights that a student begins with, of another run or a safetensors file, found there under a map of names."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor, nn

from pipeline.user_code import said
from pipeline.user_files import refuse_irregular
from schemas.errors import ConfigError
from student_trainer.checkpoint import load_checkpoint
from student_trainer.learning.average import averaged
from student_trainer.learning.students import Network
from student_trainer.learning.weight_names import is_under_any, places
from student_trainer.learning.weights import tensors_sha256
from student_trainer.run.folder import read_run
from student_trainer.run.student_settings import WeightsSettings

_SECTION = "[student.weights]"


@dataclass(frozen=True, slots=True)
class Begun:
    """What a student began with."""

    sha256: str
    """As `WeightsSettings.sha256`."""
    text: str
    """A line that says how many tensors were taken, and which keep the seed's values."""


def begin_with(
    model: nn.Module, weights: WeightsSettings, frozen: Collection[str] = (), network: Network | None = None
) -> Begun:
    """Give a new student its first weights; they are read once, since those of a run that trains may change.

    Args:
        model: the student.
        weights: where they lie, and what of it is taken.
        frozen: parts of the student that do not learn; they must be given weights, or be named in `fresh`.
        network: what the student is built for; another run's rows of classes have to be of the same classes.

    Raises:
        ConfigError: they cannot be read, or are others than `sha256` says; or they do not fit: names the tensor.
        CheckpointError: no whole checkpoint of that run.
    """
    tensors, sha256, origin = _read(weights)
    own = model.state_dict()
    found = places(list(own), list(tensors), weights)
    taken: dict[str, Tensor] = {}
    unlike = []
    for name, place in found.items():
        if place in tensors:
            if text := _difference(tensors[place], own[name]):
                unlike.append(f"{place} is {text} (student's {name})" if place != name else f"{name} is {text}")
            else:
                taken[name] = tensors[place].to(own[name].dtype)
    if unlike:
        raise ConfigError(f"{_SECTION} {weights.path}: {unlike[0]}{_and_more(unlike)}")
    # What has two names, as tied weights have, needs one of them.
    held = {own[name].data_ptr() for name in taken}
    kept = [name for name in found if name not in taken and own[name].data_ptr() not in held]
    missing = [name for name in kept if not taken or not is_under_any(name, weights.fresh)]
    if missing and not (weights.partial and taken):
        first = found[missing[0]] or "layer"
        some = ", ".join(sorted(tensors)[:3])
        hint = "; with partial = true these keep the seed's" if taken else ""
        raise ConfigError(
            f"{_SECTION} {weights.path}: has no {first} for the student's {missing[0]}{_and_more(missing)}{hint}; it "
            f"begins with {some or 'nothing'}"
        )
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if unlearned := [name for name in missing if name in parameters and is_under_any(name, frozen)]:
        raise ConfigError(
            f"{_SECTION} {weights.path}: has nothing for {unlearned[0]}{_and_more(unlearned)}, which [student] frozen "
            "keeps as the seed makes it: mend names, or say in fresh that it is meant"
        )
    for name, values in taken.items():
        # A buffer may be a constant that holds infinity, such as a mask; then the student's own does.
        watched = name in parameters or bool(torch.isfinite(own[name]).all())
        if watched and not bool(torch.isfinite(values).all()):
            raise ConfigError(f"{_SECTION} {weights.path}: {found[name]} holds NaN or infinity")
    if origin and network:
        _refuse_other_classes(taken, weights, origin, network)
        _refuse_other_tokens(taken, weights, origin, network)
    try:
        model.load_state_dict(taken, strict=False)
    except Exception as error:  # a student may be of the user's own, with a `load_state_dict` of its own
        raise ConfigError(f"{_SECTION} {weights.path}: the student does not take them: {said(error)}") from error
    text = f"begins with {len(taken)} of {len(own)} tensors from {weights.path}"
    if kept:
        text += f"; the seed's are {', '.join(kept[:3])}{', ...' if kept[3:] else ''}"
    return Begun(sha256, text)


def _refuse_other_classes(
    taken: Mapping[str, Tensor], weights: WeightsSettings, origin: Network, network: Network
) -> None:
    """Refuse, as ConfigError, tensors of a row a class where the run's student learned other classes, or another order.

    A tensor of that many rows may be of something else: which are of classes is known to the student alone.
    """
    there, here = origin.class_names, network.class_names
    heads = [name for name, values in taken.items() if values.shape[:1] == (network.num_classes,)]
    if not (there and here and heads) or there == here:
        return
    pairs = enumerate(zip_longest(there, here, fillvalue="nothing"))
    number, (learned, is_now) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    raise ConfigError(
        f"{_SECTION} {weights.path}: learned other classes: number {number} is {learned!r} there, {is_now!r} here, and "
        f"{heads[0]}{_and_more(heads)} has a row for each: name them in fresh, or, where they are of no classes, give "
        "the weights as a safetensors file"
    )


def _refuse_other_tokens(
    taken: Mapping[str, Tensor], weights: WeightsSettings, origin: Network, network: Network
) -> None:
    """Refuse, as ConfigError, tensors of a row a token where the run's student learned another vocabulary."""
    there, here = origin.tokenizer, network.tokenizer
    rows = [name for name, values in taken.items() if values.shape[:1] == (network.num_tokens,)]
    if there and here and there != here and rows:
        raise ConfigError(
            f"{_SECTION} {weights.path}: learned with tokenizer {there[:16]}..., here it is {here[:16]}... (SHA-256), "
            f"and {rows[0]}{_and_more(rows)} has a row for each token: name them in fresh, or take that tokenizer"
        )


def _read(weights: WeightsSettings) -> tuple[dict[str, Tensor], str, Network | None]:
    """Return the tensors by name, and their SHA-256: of a file over its bytes, of a run as its report has it.

    Of a run, what its student is built for comes, too.
    """
    path, origin = Path(weights.path), None
    if path.is_dir():
        read_run(path)
        checkpoint, state = load_checkpoint(path / "checkpoints")
        origin = Network.from_dict(checkpoint.network)
        tensors = averaged(state)
        sha256 = tensors_sha256(tensors)
    else:
        refuse_irregular(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{_SECTION} {path}: cannot be read: {error.strerror}") from None
        sha256 = hashlib.sha256(content).hexdigest()
        try:
            tensors = load(content)
        except MemoryError:
            raise
        except Exception as error:  # whatever the file's header says
            raise ConfigError(
                f"{_SECTION} {path}: is no safetensors file: {said(error)}; give one, or the folder of a run"
            ) from error
    if weights.sha256 not in ("", sha256):
        raise ConfigError(
            f"{_SECTION} {path}: is not what the run was to begin with: its SHA-256 is {sha256[:16]}, not "
            f"{weights.sha256[:16]}; bring that back, or start another run"
        )
    return tensors, sha256, origin


def _difference(there: Tensor, own: Tensor) -> str:
    """What keeps a tensor out of the student's; "" where nothing does."""
    if there.shape != own.shape:
        return f"{list(there.shape)}, not {list(own.shape)}"
    both_floats = there.is_floating_point() and own.is_floating_point()
    return "" if both_floats or there.dtype == own.dtype else f"{there.dtype}, not {own.dtype}"


def _and_more(names: Collection[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
