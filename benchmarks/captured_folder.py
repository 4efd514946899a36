"""A captured folder of a million orders: how long its first read at any cursor takes, and what memory reading it takes.

Orders are small records, written by the writer of captures, and 10 times fewer of them beside. Timed in a process of
its own is what a run does that goes on from a checkpoint: the list, the header, the entry of the index, the block. Then
the process reads every order in sequence, and its peak memory over both numbers of orders is what is to stay flat.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import Spread
from pipeline.captured.capturing import CaptureFolder, CaptureForm
from pipeline.sequence import Sequence
from pipeline.views import view_spec
from schemas.avro import REGISTRY
from schemas.codecs import CodecSpec
from schemas.records import Manifest, Output, Probe, SoftTargets, Teacher, TeacherInput, TeacherOutput

ORDERS = (100_000, 1_000_000, 100_000)
"""The last repeats the first: what two equal runs differ by is no growth."""
FILE_BYTES = 32 << 20
PARTITIONS = 4
CLASSES = 10
CURSORS = 21
"""Cold opens, each of another cursor."""
TEACHER = "t"
_READER = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from pipeline.captured.folder import CapturedFolder
folder, cursors = Path(sys.argv[1]), int(sys.argv[2])
seconds = []
for number in range(cursors):
    began = time.perf_counter()
    files = CapturedFolder(folder).teacher("t")
    files.read(number * (files.num_orders - 1) // (cursors - 1))
    seconds.append(time.perf_counter() - began)
    num_orders = files.num_orders
    files.close()
files, began = CapturedFolder(folder).teacher("t"), time.perf_counter()
for sequence in range(num_orders):
    files.read(sequence)
reads = time.perf_counter() - began
files.close()
if sys.platform == "darwin":
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
else:  # there a process that was forked from a large one inherits its peak, but for this one
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / (1 << 10)
print(json.dumps({"seconds": seconds, "orders": num_orders, "orders_per_s": num_orders / reads, "mib": peak}))
"""


def write(folder: Path, num_orders: int) -> None:
    """Write a folder of so many orders, a sample each; of all orders of a partition the record is that of its first."""
    none = np.empty(0, np.int64)
    manifest = Manifest(
        stream="s",
        stream_id="0123456789abcdef",
        dataset="none",
        dataset_fingerprint="0" * 64,
        num_samples=num_orders,
        num_classes=CLASSES,
        class_names=(),
        view=view_spec("none", {}),
        view_probe=Probe(none, none, "0" * 64, np.empty((0, 1), np.int64), np.empty((0, 1), np.float32)),
        order_size=1,
        epochs=1,
        seed=0,
        partitions=PARTITIONS,
        codec=CodecSpec("float16"),
        max_record_bytes=1 << 20,
        schema_fingerprints=REGISTRY.fingerprints(),
    )
    inputs = (TeacherInput("x", "image", "float32", "", 1.0, ()),)
    output = TeacherOutput.of_classes("y", "logits", CLASSES)
    teacher = Teacher(manifest.stream_id, TEACHER, "0" * 64, "m.onnx", inputs, (output,), 1)
    orders = Sequence.of(manifest)
    first = SoftTargets(
        stream_id=manifest.stream_id,
        sequence=0,
        epoch=0,
        sample_ids=np.zeros(1, np.int64),
        view_seed=orders.view_seed(0),
        kept_rows=None,
        teacher=TEACHER,
        teacher_sha256=teacher.sha256,
        outputs=(Output.of("logits", np.zeros((1, CLASSES), np.float32), manifest.codec),),
    )
    with CaptureFolder(folder, manifest, [teacher], CaptureForm("null", FILE_BYTES)) as captured:
        writer = captured.writers[TEACHER]
        blocks = [
            writer.pack(
                partition, 0, replace(first, sequence=partition).encode(manifest.schema_fingerprints), str(partition)
            )
            for partition in range(PARTITIONS)
        ]
        for sequence in range(num_orders):
            writer.add(sequence, blocks[orders.partition(sequence)])
        captured.save()


def read(folder: Path) -> dict[str, Any]:
    """Open a folder at cursors and read all of it, in a process of its own."""
    command = [sys.executable, "-c", _READER, str(folder), str(CURSORS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=600)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(folder: Path) -> dict[str, Any]:
    """Measure both numbers of orders; `folder` is where they lie meanwhile."""
    found = []
    for num_orders in ORDERS:
        try:
            write(folder, num_orders)
            found.append(read(folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    few, many, again = found
    seconds = Spread.of(many["seconds"])
    return {
        "orders": many["orders"],
        "open_seconds": {
            "median": seconds.median,
            "quartiles": [seconds.low, seconds.high],
            "most": max(many["seconds"]),
        },
        "orders_per_s": many["orders_per_s"],
        "mib_at_10_times_fewer": few["mib"],
        "mib": many["mib"],
        "self_growth_mib": again["mib"] - few["mib"],
    }
