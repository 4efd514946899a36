"""Processes that talk in three groups of all of them, so that nobody's messages wait behind another's.

One for what is agreed on before a step, one for the rows that rank 0 deals out, one for the gradients. The first two
are gloo's; the third is NCCL's where all of them train on GPUs, else gloo's, whose sums have the same bits each time.
Nothing is pickled.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pipeline.user_code import said
from schemas.errors import ConfigError, PeerLost
from student_trainer.processes.world import Standing

PATIENCE = timedelta(hours=6)
"""For one that is not heard of, though its connection stands: it waits for labels, evaluates, or is frozen."""
_STEP_PATIENCE = timedelta(minutes=30)
"""For the gradients of one that has agreed to take the step, so that it only computes."""

_MOST_COUNTS = 16
_MOST_WORDS = 2_000
"""Bytes of an error that the others are told."""


class Group:
    """The world of `torchrun`. Every method raises PeerLost where another process is gone."""

    def __init__(self) -> None:
        """Meet the others at the place that the environment names.

        Raises:
            ConfigError: they cannot be met.
        """
        try:
            store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
            # torchrun's store outlives a start in which a process ended, with the addresses of those processes.
            mine = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
            dist.init_process_group("gloo", store=mine, rank=rank, world_size=size, timeout=PATIENCE)
            self._rows = _group("gloo", PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"torchrun: the processes of the run cannot meet: {said(error)}") from None
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._gradients: dict[bool, dist.ProcessGroup] = {}
        self.told = False
        """Whether rank 0 has said anything."""

    def stand(self, stopped: bool, ended: bool, failed: bool, undecodable: int, counts: Sequence[int] = ()) -> Standing:
        """As `World`."""
        mine = torch.zeros(4 + _MOST_COUNTS, dtype=torch.int64)
        mine[: 4 + len(counts)] = torch.tensor([stopped, ended, failed, undecodable, *counts])
        with _heard():
            dist.all_reduce(mine)
        standing = mine.tolist()
        stopped_by, ended_by, failed_by, undecodable_of_all = standing[:4]
        summed = tuple(standing[4 : 4 + len(counts)])
        return Standing(stopped_by, ended_by, failed_by, undecodable_of_all, summed)

    def words(self, text: str) -> list[str]:
        """As `World`; long ones are cut off."""
        mine = text.encode()[:_MOST_WORDS].ljust(_MOST_WORDS, b"\0")
        all_of_them = [torch.empty(_MOST_WORDS, dtype=torch.uint8) for _ in range(self.size)]
        with _heard():
            dist.all_gather(all_of_them, torch.frombuffer(bytearray(mine), dtype=torch.uint8))
        return [each.numpy().tobytes().rstrip(b"\0").decode(errors="ignore") for each in all_of_them]

    def tell(self, message: bytes = b"") -> bytes:
        """As `World`."""
        self.told = True
        length = torch.tensor([len(message)])
        with _heard():
            dist.broadcast(length, 0)
            body = torch.empty(int(length), dtype=torch.uint8)
            if self.rank == 0 and message:
                body = torch.frombuffer(bytearray(message), dtype=torch.uint8)
            if len(body):
                dist.broadcast(body, 0)
        return body.numpy().tobytes()

    def send(self, rank: int, rows: Tensor) -> None:
        """As `World`."""
        with _heard():
            dist.send(torch.tensor([len(rows)]), rank, group=self._rows)
            dist.send(rows, rank, group=self._rows)

    def receive(self) -> Tensor:
        """As `World`."""
        length = torch.empty(1, dtype=torch.int64)
        with _heard():
            dist.recv(length, 0, group=self._rows)
            rows = torch.empty(int(length), dtype=torch.uint8)
            dist.recv(rows, 0, group=self._rows)
        return rows

    def sum(self, values: Tensor) -> None:
        """As `World`."""
        with _heard():
            by_nccl = self._all_have_gpus(values)
        here = values if by_nccl else values.cpu()  # of a tensor on the CPU this is no copy
        with _heard():
            dist.all_reduce(here, group=self._gradients[by_nccl])
        if here is not values:
            values.copy_(here)

    def _all_have_gpus(self, values: Tensor) -> bool:
        """Whether the values of all are on GPUs; asked once, when the first are summed: until then one may fail."""
        if not self._gradients:
            on_gpus = torch.tensor([int(values.is_cuda)])
            dist.all_reduce(on_gpus)
            by_nccl = int(on_gpus) == self.size
            self._gradients[by_nccl] = _group("nccl" if by_nccl else "gloo", _STEP_PATIENCE)
        (by_nccl,) = self._gradients
        return by_nccl

    def close(self) -> None:
        """As `World`."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _group(backend: str, patience: timedelta) -> dist.ProcessGroup:
    group = dist.new_group(backend=backend, timeout=patience)
    assert isinstance(group, dist.ProcessGroup)  # all processes are members of it
    return group


class _heard:
    """Turns what the backends raise where a connection breaks, or nothing comes, into one line."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError):
            raise PeerLost(
                f"another process of the run is gone, or was not heard of for too long ({said(error)}); what it was "
                "stands in its own last words"
            ) from None
