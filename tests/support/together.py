"""What several processes do together, as `torchrun` would start them: `python -m support.together NAME`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.processes import free_port
from torch import nn

from student_trainer.batches import Cut, RowBatch
from student_trainer.learning.targets import TopKTarget
from student_trainer.processes.frames import pack, unpack
from student_trainer.processes.gradients import summed
from student_trainer.processes.group import Group
from student_trainer.sources.base import Cursor


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    here = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    return os.environ | here | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}


def together(name: str, size: int) -> list[Any]:
    """Run one of DOINGS in processes of their own; what each returned, by rank."""
    port, tests = free_port(), Path(__file__).parents[1]
    command = [sys.executable, "-m", "support.together", name]
    started = [
        subprocess.Popen(
            command,
            cwd=tests,
            env=environment(rank, size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    ends = [each.communicate(timeout=100) for each in started]
    for each, (_, errors) in zip(started, ends, strict=True):
        assert each.returncode == 0, errors
    return [json.loads(out.splitlines()[-1]) for out, _ in ends]


def rows(first: int, count: int) -> RowBatch:
    """A batch of a few rows with targets of each width."""
    ids = torch.arange(first, first + count)
    indices = torch.arange(3 * count).view(count, 3)
    tails = {2.0: torch.linspace(-3, -1, count)}
    target = TopKTarget(indices, torch.randn(count, 3, generator=torch.Generator().manual_seed(first)).half(), tails, 9)
    return RowBatch(ids, ids % 4, {"t.logits": target}, (Cut(0, 3, first, count, 7, "log/0@5"),))


def said(world: Group) -> Any:
    """Words, messages and standings."""
    words = world.words(f"rank {world.rank} says ü")
    told = [world.tell(b"" if world.rank else message) for message in (b"begin", b"", bytes(range(256)) * 9)]
    goes = world.stand(False, False, False, world.rank)
    ends = world.stand(world.rank == 1, False, False, 0)
    return [words, [len(each) for each in told], told[0].decode(), [goes.goes_on, goes.undecodable, ends.stopped]]


def dealt(world: Group) -> Any:
    """Rows of every rank, dealt out by rank 0, as text."""
    if world.rank == 0:
        for rank in range(1, world.size):
            world.send(rank, pack((rows(10 * rank, 4), Cursor(1, 2, 3, {"offsets": {"t": [1, 2]}}))))
        return None
    batch, cursor = unpack(world.receive())
    same = rows(10 * world.rank, 4)
    target, expected = batch.targets["t.logits"], same.targets["t.logits"]
    equal = [torch.equal(batch.sample_ids, same.sample_ids), torch.equal(batch.labels, same.labels)]
    equal += [torch.equal(target.log_probs, expected.log_probs), torch.equal(target.indices, expected.indices)]
    equal += [torch.equal(target.log_tails[2.0], expected.log_tails[2.0]), target.num_classes == 9]
    return [equal, batch.cuts == same.cuts, cursor.as_dict()]


def learned(world: Group) -> Any:
    """Gradients of a batch of 7 rows, of which each rank has some, and of a parameter that nobody uses."""
    generator = torch.Generator().manual_seed(0)
    layer, unused = nn.Linear(5, 2), nn.Linear(2, 2)
    for each in (*layer.parameters(), *unused.parameters()):
        each.data.copy_(torch.randn(each.shape, generator=generator))
    batch = torch.randn(7, 5, generator=generator)
    first, last = world.rank * 7 // world.size, (world.rank + 1) * 7 // world.size
    of_rows = layer(batch[first:last]).square().sum(dim=1)
    loss = of_rows.sum() / 7
    loss.backward()
    parameters = [*layer.parameters(), *unused.parameters()]
    whole, all_rows = summed(world, parameters, loss, {"mse": of_rows.detach()}, (first, last), 7, [])
    gradients = [None if each.grad is None else each.grad.flatten().tolist() for each in parameters]
    broken = torch.tensor([torch.inf if world.rank == 1 else 0.0])
    nan, _ = summed(world, parameters, loss, {}, (first, last), 7, [broken])
    return [whole.item(), all_rows["mse"].tolist(), bool(nan.isnan()), gradients[2:], gradients[0]]


def lost(world: Group) -> Any:
    """Rank 1 ends in the middle; what the others come to."""
    from schemas.errors import PeerLost

    if world.rank == 1:
        return "left"
    try:
        world.stand(False, False, False, 0)
    except PeerLost as error:
        return str(error)
    return "nothing was noticed"


DOINGS: dict[str, Callable[[Group], Any]] = {"said": said, "dealt": dealt, "learned": learned, "lost": lost}

if __name__ == "__main__":
    torch.set_num_threads(1)
    group = Group()
    result = DOINGS[sys.argv[1]](group)
    print(json.dumps(result), flush=True)
    group.close()
