"""The processes of one run, as `torchrun` starts them: who they are, and what they say to each other.

PyTorch is loaded only where there are several (group.py). Letters: W processes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from schemas.errors import DistillogError, PeerLost

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Standing:
    """What all processes together say before a step."""

    stopped: int
    """How many were asked to stop."""
    ended: int
    """How many have no batch any more."""
    failed: int
    """How many cannot go on."""
    undecodable: int
    """Rows of weight 0 of the whole batch."""
    counts: tuple[int, ...]
    """What else was counted, summed."""

    @property
    def goes_on(self) -> bool:
        """Whether all of them take the step."""
        return not (self.stopped or self.ended or self.failed)


class World(Protocol):
    """The processes of a run, as one of them sees them."""

    rank: int
    """Which one this is, from 0."""
    size: int
    """W."""

    def stand(self, stopped: bool, ended: bool, failed: bool, undecodable: int, counts: Sequence[int] = ()) -> Standing:
        """Say how this process stands, and return how all do; called by all of them before each step.

        `counts`: anything else to be summed, as many everywhere but where a process failed.
        """

    def words(self, text: str) -> list[str]:
        """Return what each process has to say, by rank; called by all of them."""

    def tell(self, message: bytes = b"") -> bytes:
        """Return what rank 0 says; called by all of them."""

    def send(self, rank: int, rows: Tensor) -> None:
        """Deal a message [n] uint8 to a rank; waits until it is taken."""

    def receive(self) -> Tensor:
        """Return the next message [n] uint8 that rank 0 deals to this one."""

    def sum(self, values: Tensor) -> None:
        """Put the sum over all processes, in equal bits for all of them, in the place of [n] values."""

    def close(self) -> None:
        """Leave; whoever waits for this process then hears of it."""


class Alone:
    """The world of a run on one process."""

    rank = 0
    size = 1

    def stand(self, stopped: bool, ended: bool, failed: bool, undecodable: int, counts: Sequence[int] = ()) -> Standing:
        """Return how this process stands."""
        return Standing(int(stopped), int(ended), int(failed), undecodable, tuple(counts))

    def words(self, text: str) -> list[str]:
        """Return what this process says."""
        return [text]

    def tell(self, message: bytes = b"") -> bytes:
        """Return the message."""
        return message

    def send(self, rank: int, rows: Tensor) -> None:
        """Raise: nobody is there."""
        raise AssertionError(f"no rank {rank}")

    def receive(self) -> Tensor:
        """Raise: nobody deals."""
        raise AssertionError("rank 0 receives nothing")

    def sum(self, values: Tensor) -> None:
        """Leave the values as they are."""

    def close(self) -> None:
        """Do nothing."""


ALONE = Alone()


@contextmanager
def joined() -> Iterator[World]:
    """Meet the other processes where torchrun started several, else be alone; who waits for rank 0 hears if it fails.

    Raises:
        ConfigError: they cannot be met.
    """
    if not under_torchrun():
        yield ALONE
        return
    from student_trainer.processes.group import Group

    world = Group()
    try:
        yield world
    except BaseException as error:
        if world.rank == 0 and not world.told:
            with suppress(PeerLost):
                world.tell()
        if isinstance(error, DistillogError) and not error.passing:
            _end_torchrun()
        raise
    finally:
        world.close()


def _end_torchrun() -> None:
    """Let torchrun, which starts all processes anew whatever ended one, end instead: it would come to the same."""
    if started_by_torchrun() and _is_torchrun(os.getppid()):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which it sends on to us, who have last words to say
        os.kill(os.getppid(), signal.SIGTERM)


def _is_torchrun(pid: int) -> bool:
    """Whether a process is torchrun itself, and no shell between; where that cannot be seen, it is taken for it."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return pid > 1
    return b"torchrun" in command or b"torch.distributed" in command


def started_by_torchrun() -> bool:
    """Whether torchrun started this process, alone or with others; it starts it anew where one of them ends."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def started_anew() -> bool:
    """Whether torchrun has started this process before, and one of them ended."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def under_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Return which process of this machine this is, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))
