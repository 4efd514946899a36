"""`distillog broker` as a user meets it: processes that end while the broker stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.broker.local import LocalBroker, running_broker_address

pytestmark = pytest.mark.kafka


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """No Java, Maven or anything else is on the PATH."""
    code = "from pipeline.cli.broker import broker; broker(prog_name='distillog broker')"
    environment = {**os.environ, "DISTILLOG_HOME": str(home), "PATH": "/nonexistent"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, timeout=100
    )


def test_the_broker_outlives_the_command_that_started_it(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    stopped = {
        "running": False,
        "bootstrap_servers": None,
        "pid": None,
        "folder": str(folder),
        "fell": None,
        "kafka": "4.3.1",
    }
    try:
        before = run(tmp_path, "status", "--json")
        assert (before.returncode, json.loads(before.stdout)) == (1, stopped)

        started = run(tmp_path, "start")
        address = running_broker_address(folder)
        pid = LocalBroker(folder).pid
        assert started.stdout.splitlines() == [
            f"Kafka 4.3.1 answers on {address} (process {pid}, in {folder})",
            f"export KAFKA_BOOTSTRAP_SERVERS={address}",
        ]
        assert "runs already" in run(tmp_path, "start").stdout

        status = run(tmp_path, "status", "--json")
        running = {**stopped, "running": True, "bootstrap_servers": address, "pid": pid}
        assert (status.returncode, json.loads(status.stdout)) == (0, running)
        assert run(tmp_path, "status").stdout == f"Kafka 4.3.1 runs on {address} (process {pid}, in {folder})\n"

        assert run(tmp_path, "stop").stdout == f"stopped the broker in {folder}\n"
        assert run(tmp_path, "stop").stdout == f"no broker runs in {folder}\n"
        assert run(tmp_path, "status").stdout == f"no broker runs in {folder}\n"
    finally:
        LocalBroker(folder).kill()
