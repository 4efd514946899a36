"""The gradients of all processes, summed in one flat buffer, with what else a step has to tell.

One buffer in the order of the parameters, and one sum of it: equal bits on all processes, and from run to run, on gloo;
DistributedDataParallel sorts its buckets anew after the first step. Letters: B rows of a whole batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from student_trainer.processes.world import World


def summed(
    world: World,
    parameters: Sequence[nn.Parameter],
    loss: Tensor,
    rows: Mapping[str, Tensor],
    between: tuple[int, int],
    batch_size: int,
    watched: Sequence[Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Put the sum over all processes in the place of each gradient.

    Args:
        world: all processes, which call this together.
        parameters: those that learn, the same ones everywhere. One that no process has a gradient of keeps none.
        loss: scalar, this process's part of the batch's.
        rows: key of a loss -> [b], this process's rows of it.
        between: which of the B rows those are, the first and the one behind the last.
        batch_size: B.
        watched: what else has to be finite, as running statistics; where it is not, the loss is NaN for all.

    Returns:
        The loss of the whole batch, and key -> its B rows.
    """
    first, last = between
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    of_rows = loss.new_zeros(len(rows), batch_size, dtype=torch.float32)
    for place, values in zip(of_rows, rows.values(), strict=True):
        place[first:last] = values
    has = torch.tensor([each.grad is not None for each in parameters], dtype=torch.float32).to(loss.device)
    finite = torch.stack([torch.isfinite(each).all() for each in watched]).all() if watched else None
    part = loss.detach() if finite is None else torch.where(finite, loss.detach(), torch.nan)
    parts = [*(each.reshape(-1) for each in gradients), has, part.reshape(1).float(), of_rows.reshape(-1)]
    flat = torch.cat([each.float() for each in parts])
    world.sum(flat)
    *found, has, total, of_rows = torch.split(flat, [each.numel() for each in parts])
    for parameter, there, gradient in zip(parameters, has.tolist(), found, strict=True):
        if there:
            whole = gradient.view_as(parameter).to(parameter.dtype)
            # As the parameter lies in memory: a fused optimizer looks at that alone.
            parameter.grad = whole if parameter.is_contiguous() else torch.empty_like(parameter).copy_(whole)
    return total.reshape(()), dict(zip(rows, of_rows.view(len(rows), batch_size), strict=True))


def differing(world: World, tensors: Mapping[str, Tensor], device: torch.device) -> list[str]:
    """Return the names of those tensors, of equal names everywhere, that are not equal to the bit on all processes.

    All processes call this together and, but for a chance of 2^-64, come to the same.
    """
    content = (each.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for each in tensors.values())
    digests = [hashlib.sha256(memoryview(each.numpy())).digest() for each in content]  # type: ignore[arg-type]
    own = torch.tensor([list(each[:8]) for each in digests], dtype=torch.float32, device=device)
    of_all = own.flatten().clone()
    world.sum(of_all)
    unlike = (of_all.view_as(own) != world.size * own).any(dim=1).tolist()
    return [name for name, other in zip(tensors, unlike, strict=True) if other]
