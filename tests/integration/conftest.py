"""The command itself, for tests of the whole path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Distillog, distillog_commands

from pipeline.kafka.settings import KafkaSettings


@pytest.fixture
def distillog(kafka_settings: KafkaSettings, tmp_path: Path) -> Iterator[Distillog]:
    """The `distillog` command against the session's Kafka."""
    with distillog_commands(kafka_settings, tmp_path) as commands:
        yield commands
