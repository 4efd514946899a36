"""A process's rows of a batch as one message: frozen dataclasses whose tensors lie behind a header.

A message is 8 bytes of length, a header of JSON, and the tensors' bytes one after the other, each at a multiple of 64.
In the header a tensor is its dtype, shape and place, a dataclass its name and fields; only the names below are known. A
teacher's last layer is its SHA-256: a briefing brings it once, and whoever unpacks has it.
"""

from __future__ import annotations

import json
import struct
import weakref
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from schemas.errors import PeerLost
from schemas.head import Head
from student_trainer.batches import Cut, RowBatch
from student_trainer.learning import targets
from student_trainer.learning.part_target import PartTarget
from student_trainer.learning.partner_labels import PartnerTarget
from student_trainer.sources.base import Cursor

T = TypeVar("T")

_KNOWN: dict[str, type[Any]] = {}


def known(of: type[T]) -> type[T]:
    """Let messages hold a dataclass."""
    _KNOWN[of.__name__] = of
    return of


for _each in (
    *(Cursor, Cut, RowBatch, PartTarget),
    *(targets.DenseTarget, targets.FeatureTarget, targets.StepsTarget, targets.TopKTarget, targets.SampledTarget),
    *(targets.HeadTarget, PartnerTarget),
):
    known(_each)

_HEADS: MutableMapping[str, Head] = weakref.WeakValueDictionary()
"""SHA-256 -> the layer, of those that whoever has a briefing keeps."""


def know_heads(heads: Iterable[Head]) -> None:
    """Let messages name layers that the caller keeps."""
    _HEADS.update({head.sha256: head for head in heads})


def head_of(sha256: str) -> Head:
    """Return a layer that a message names. Raises PeerLost where nobody brought it."""
    if sha256 not in _HEADS:
        raise PeerLost(f"rank 0 sends rows of the last layer {sha256[:12]}, which its briefing did not bring")
    return _HEADS[sha256]


_LENGTH = struct.Struct("<Q")
_ALIGNED = 64
"""Bytes: a tensor's place in the message is one that every dtype may begin at."""


def pack(value: Any) -> Tensor:
    """Return a value as a message [n] uint8."""
    tensors: list[Tensor] = []
    header = json.dumps(_shown(value, tensors), separators=(",", ":")).encode()
    places, end = _places(len(header), tensors)
    message = torch.zeros(end, dtype=torch.uint8)
    view = message.numpy()
    view[: _LENGTH.size] = list(_LENGTH.pack(len(header)))
    view[_LENGTH.size : _LENGTH.size + len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8).numpy()
    for place, tensor in zip(places, tensors, strict=True):
        message[place : place + tensor.nbytes] = tensor.contiguous().reshape(-1).view(torch.uint8)
    return message


def unpack(message: Tensor, pin: bool = False) -> Any:
    """Undo `pack`; tensors have memory of their own, page-locked where asked."""
    raw = message.numpy()
    (length,) = _LENGTH.unpack(raw[: _LENGTH.size].tobytes())
    header = json.loads(raw[_LENGTH.size : _LENGTH.size + length].tobytes())
    return _Reader(message, _aligned(_LENGTH.size + length), pin).value(header)


def _places(header: int, tensors: list[Tensor]) -> tuple[list[int], int]:
    """Where each tensor begins, and where the message ends."""
    at, places = _aligned(_LENGTH.size + header), []
    for tensor in tensors:
        places.append(at)
        at = _aligned(at + tensor.nbytes)
    return places, at


def _aligned(place: int) -> int:
    return -(-place // _ALIGNED) * _ALIGNED


def _shown(value: Any, tensors: list[Tensor]) -> Any:
    """A value for the header, whose tensors are put aside in the order in which they are met."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": [str(value.dtype).removeprefix("torch."), list(value.shape)]}
    if isinstance(value, Head):
        return {"head": value.sha256}
    if is_dataclass(value) and not isinstance(value, type):
        shown = {each.name: _shown(getattr(value, each.name), tensors) for each in fields(value)}
        return {"is": type(value).__name__, "fields": shown}
    if isinstance(value, Mapping):
        return {"map": [[key, _shown(each, tensors)] for key, each in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_shown(each, tensors) for each in value]}
    return value


class _Reader:
    def __init__(self, message: Tensor, at: int, pin: bool) -> None:
        self._message, self._at, self._pin = message, at, pin

    def value(self, shown: Any) -> Any:
        """What a part of the header stands for; asked in the order in which it was written."""
        if not isinstance(shown, dict):
            return shown
        if "tensor" in shown:
            return self._tensor(*shown["tensor"])
        if "head" in shown:
            return head_of(shown["head"])
        if "is" in shown:
            return _KNOWN[shown["is"]](**{name: self.value(each) for name, each in shown["fields"].items()})
        if "map" in shown:
            return {key: self.value(each) for key, each in shown["map"]}
        return tuple(self.value(each) for each in shown["tuple"])

    def _tensor(self, dtype: str, shape: list[int]) -> Tensor:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=self._pin)
        place, self._at = self._at, _aligned(self._at + tensor.nbytes)
        tensor.reshape(-1).view(torch.uint8).copy_(self._message[place : place + tensor.nbytes])
        return tensor
