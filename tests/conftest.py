"""What tests share: one real Kafka for the whole session, names nobody else uses, and waits with an end."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import pytest
from hypothesis import settings
from support.processes import Distillog, distillog_commands

from pipeline.broker.local import LocalBroker
from pipeline.kafka.settings import KafkaSettings

# Read when PyTorch and NumPy are loaded. Of several processes on few cores, each waits for its own threads longest.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

T = TypeVar("T")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a --basetemp that another run works in: pytest would empty it, with the brokers in it."""
    if config.option.basetemp and not hasattr(config, "workerinput"):
        lock = os.open(f"{config.option.basetemp}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        config.add_cleanup(lambda: os.close(lock))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise pytest.UsageError(f"another run works in --basetemp {config.option.basetemp}") from None


class Eventually(Protocol):
    """`eventually(predicate, timeout=10.0, what="...")` polls until the predicate is true, and returns what it gave."""

    def __call__(self, predicate: Callable[[], T], timeout: float = ..., what: str = ...) -> T: ...


def poll_until(predicate: Callable[[], T], timeout: float = 30.0, what: str = "the condition") -> T:
    """Call `predicate` every 20 ms until it gives something true; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        if value := predicate():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout:g} s, last: {value!r}")
        time.sleep(0.02)


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    return poll_until


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """The session's own Kafka; a test that kills its broker starts one for itself (`own_broker`)."""
    local = LocalBroker(tmp_path_factory.mktemp("broker"))
    local.start()
    yield local
    local.stop()
    # pytest keeps the folders of three sessions: the log may be read later, the records will not.
    shutil.rmtree(local.folder.data)


@pytest.fixture(scope="session")
def kafka_settings(request: pytest.FixtureRequest) -> KafkaSettings:
    """The cluster of KAFKA_BOOTSTRAP_SERVERS where that is set, else the session's own."""
    servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if not servers:
        own: LocalBroker = request.getfixturevalue("broker")
        servers = own.bootstrap_servers
    return KafkaSettings(servers)


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[LocalBroker]:
    """A running broker that the test may kill, freeze and restart."""
    local = LocalBroker(tmp_path / "own-broker")
    local.start()
    yield local
    local.kill()


@pytest.fixture
def fresh_name() -> Callable[[str], str]:
    """`fresh_name("stream")` is a name that no other test has, good for streams, teachers, runs and topics."""
    return lambda kind="t": f"{kind}-{secrets.token_hex(4)}"


@pytest.fixture
def distillog(kafka_settings: KafkaSettings, tmp_path: Path) -> Iterator[Distillog]:
    """The `distillog` command against the session's Kafka."""
    with distillog_commands(kafka_settings, tmp_path) as commands:
        yield commands
