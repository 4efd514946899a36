"""What the command and the two services take: the time of `--help`, and the peak memory over 10 times more orders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.models import write_cnn
from benchmarks.pairs import Spread
from benchmarks.streams import ORDER_SIZE, Bench
from teacher_service.models.describe import describe_model

ORDERS = (1_000, 10_000, 1_000)
"""The last repeats the first: what two equal runs differ by is no growth."""
PARTITIONS = 8
"""Few, so that the first number of orders fills a worker's hands (512 orders, and one fetch of each partition) already:
with 64 partitions its memory rises to 120 MiB over the first 6,000 orders, and stays there (measured up to 15,000)."""
# A process forked from a large one inherits its peak, so a small one starts the command and asks for it.
_LAUNCHER = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(json.dumps([code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def help_seconds(times: int) -> list[float]:
    """How long `distillog --help` takes, once the files lie in memory."""
    command = [str(Path(sys.executable).with_name("distillog")), "--help"]
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def peak_mib(bench: Bench, *arguments: str) -> float:
    """Peak resident memory of `distillog ARGUMENTS`, in MiB."""
    command = [str(Path(sys.executable).with_name("distillog")), *arguments]
    environment = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": bench.kafka.bootstrap_servers}
    result = subprocess.run(
        [sys.executable, "-c", _LAUNCHER, *command],
        env=environment,
        cwd=bench.folder,
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    )
    code, peak = json.loads(result.stdout)
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}")
    per_mib = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return float(peak / per_mib)


def measure(bench: Bench, name: str, num_orders: int) -> tuple[float, float]:
    """MiB of a worker that labels a stream of some orders, and of a student that trains on them."""
    model = write_cnn(bench.folder / "small.onnx", channels=(8,), hidden=16)
    stream = bench.stream(name, num_orders, partitions=PARTITIONS)
    bench.add_teacher(stream, describe_model(model, "small", stream.manifest, bench.fetcher))
    worker = peak_mib(bench, "teach", name, str(model), "--threads", "1", "--until-idle", "--quiet")
    run_file = bench.folder / f"{name}.toml"
    run_file.write_text(
        f"""
name = "{name}"
data.stream = "{name}"
student = {{ name = "mlp", hidden = [64, 64] }}
teachers = [{{ name = "small" }}]
losses = [{{ name = "forward_kl" }}]
train = {{ batch_size = {ORDER_SIZE}, threads = 1, device = "cpu" }}
""",
        encoding="utf-8",
    )
    return worker, peak_mib(bench, "runs", "start", str(run_file), "--quiet")


def run(bench: Bench) -> dict[str, Any]:
    """Measure both services at both numbers of orders, and `--help`."""
    seconds = Spread.of(help_seconds(max(7, bench.pairs)))
    peaks = [measure(bench, f"footprint-{number}", num_orders) for number, num_orders in enumerate(ORDERS)]
    memory = {
        service: {
            "orders": ORDERS[0],
            "mib": few,
            "mib_at_10_times_more": many,
            "growth_mib": many - few,
            "self_growth_mib": again - few,
        }
        for service, (few, many, again) in zip(("worker", "student"), zip(*peaks, strict=True), strict=True)
    }
    return {
        "help_seconds": {"median": seconds.median, "quartiles": [seconds.low, seconds.high]},
        "peak_memory": memory,
    }
