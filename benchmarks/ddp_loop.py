"""The barest loop on several processes: PyTorch's DistributedDataParallel over batches that lie in memory.

`torchrun ... python -m benchmarks.ddp_loop ROWS STEPS STUDENT`: rank 0 prints the median seconds of a step.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from student_trainer.learning.students import Network, build_student
from student_trainer.preparation import keep_freed_memory, set_threads
from student_trainer.run.student_settings import StudentSettings

WARMING = 15


def main(rows: int, steps: int, student: dict[str, object]) -> None:
    """Take steps of so many rows on each process."""
    keep_freed_memory()
    set_threads(1)
    dist.init_process_group("gloo")
    name = str(student.pop("name"))
    model = build_student(StudentSettings(name, params=student), Network.of("image", (1, 8, 8), 10), seed=0)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), fused=True)
    images, labels = torch.randn(8, rows, 1, 8, 8), torch.randint(0, 10, (8, rows))
    seconds = []
    for step in range(steps):
        began = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(parallel(images[step % 8]), labels[step % 8]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    if dist.get_rank() == 0:
        print(statistics.median(seconds[WARMING:]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
