"""Capturing a log, and reading what was captured, against the student's reading of that log, in MB/s of record values.

Bare: `data_plane.decoded`, the student's reader over Kafka with the values decoded. Ours: a capture of the same topic
into a new folder, from some of its first orders stored to the last one on the disk, and the reading of such a folder as
`source = "files"` does it, checksums, identity and decoded values counted, from the page cache. All of it with each
codec of captured files; zstandard needs Python 3.14 or `distillog[zstd]`. Then a folder of a million orders is opened
(`captured_folder.py`).
"""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import captured_folder
from benchmarks.data_plane import SIZES, TEACHER, decoded, fill
from benchmarks.pairs import Pairs, Spread, interleave
from benchmarks.streams import Bench
from pipeline.captured.capturing import CaptureForm
from pipeline.captured.folder import CapturedFolder
from pipeline.kafka.cluster import KafkaCluster
from pipeline.progress import Progress
from pipeline.sequence import Sequence
from pipeline.streams import Stream
from student_trainer.capture import capture
from student_trainer.sources.files import FilesReader

CODECS = ("deflate", "zstandard", "null")


class _Watch(Progress):
    """Keeps when it first heard of orders that are stored, of how many, and when it last heard anything."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.first = self.last = 0.0
        self.stored = 0

    def update(self, **fields: Any) -> None:
        """Look at the clock."""
        self.last = time.perf_counter()
        stored = int(fields[TEACHER].partition("/")[0].replace(",", ""))
        if stored and not self.stored:
            self.first, self.stored = self.last, stored


def captured(bench: Bench, stream: Stream, folder: Path, codec: str, num_bytes: int, num_orders: int) -> float:
    """MB/s of a capture into a folder that is not there yet."""
    watch = _Watch()
    capture(KafkaCluster(bench.kafka), stream, folder, form=CaptureForm(codec), progress=watch)
    return num_bytes * (1 - watch.stored / num_orders) / (watch.last - watch.first) / 1e6


def read(stream: Stream, folder: Path, num_orders: int) -> tuple[float, int]:
    """MB/s of reading all orders, and their bytes."""
    opened = CapturedFolder(folder)
    sequence = Sequence.of(stream.manifest)
    reader = FilesReader(opened, [opened.teacher(TEACHER)], sequence, threading.Event(), lambda count: None)
    began, num_bytes = time.perf_counter(), 0
    for number in range(num_orders):
        held = reader.next(number, lambda wait: None)
        assert held is not None
        held[0].value.output("logits").values()
        num_bytes += held[0].num_bytes
    reader.close()
    return num_bytes / (time.perf_counter() - began) / 1e6, num_bytes


def measure(bench: Bench, name: str, num_classes: int, num_orders: int) -> dict[str, Pairs]:
    """Measure one record size: capture and files of each codec, all against the student's reader."""
    stream = fill(bench, name, num_classes, num_orders)
    folders = {codec: bench.folder / f"{name}-{codec}" for codec in CODECS}
    for codec, folder in folders.items():
        captured(bench, stream, folder, codec, 1, num_orders)
    num_bytes = read(stream, folders["null"], num_orders)[1]
    numbers = itertools.count()

    def capture_anew(codec: str) -> float:
        folder = bench.folder / f"{name}-{next(numbers)}"
        try:
            return captured(bench, stream, folder, codec, num_bytes, num_orders)
        finally:
            shutil.rmtree(folder)

    loops = [(f"{what} {codec}", what, codec) for codec in CODECS for what in ("capture", "files")]
    with decoded(bench, stream, num_orders) as kafka:
        kafka()  # which connects
        pairs = interleave(
            bench.pairs,
            kafka,
            *(
                (lambda codec=codec: capture_anew(codec))
                if what == "capture"
                else (lambda codec=codec: read(stream, folders[codec], num_orders)[0])
                for _, what, codec in loops
            ),
        )
    return {title: each for (title, _, _), each in zip(loops, pairs, strict=True)}


def run(bench: Bench) -> dict[str, Any]:
    """Measure both record sizes, the worse of which is the ratio as captures are by default; and a million orders."""
    ratios: dict[str, dict[str, Any]] = {}
    for number, (size, (num_classes, num_orders)) in enumerate(SIZES.items()):
        for title, pairs in measure(bench, f"capture-{number}", num_classes, num_orders).items():
            speeds = {"mb_per_s": Spread.of(pairs.ours).median, "raw_mb_per_s": Spread.of(pairs.bare).median}
            ratios[f"{title} {size}"] = pairs.as_dict() | speeds | {"record": size}
    bars = {}
    for name, title in (("capture", "capture null "), ("student_from_files", "files null ")):
        worse = min((key for key in ratios if key.startswith(title)), key=lambda key: float(ratios[key]["median"]))
        bars[name] = ratios.pop(worse)
    million = captured_folder.measure(bench.folder / "million")
    return {"ratios": bars, "more_ratios": ratios, "captured_folder": million}
