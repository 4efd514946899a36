"""Three brokers on this machine, each of which holds everything: what a cluster does when one of them dies for good."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from pipeline.broker.folder import HOST, BrokerFolder, Ports
from pipeline.broker.local import LocalBroker
from pipeline.kafka.clients import admin_client
from pipeline.kafka.coordinator import ask_coordinator
from pipeline.kafka.settings import KafkaSettings

NUMBERS = (1, 2, 3)
REPLICATED = {
    "default.replication.factor": "3",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "min.insync.replicas": "1",
    "controller.quorum.election.timeout.ms": "500",
    "controller.quorum.fetch.timeout.ms": "1000",
}


class ThreeBrokers:
    """The running cluster; a broker that is killed stays dead."""

    def __init__(self, brokers: dict[int, LocalBroker]) -> None:
        self.brokers = brokers
        self.settings = KafkaSettings(",".join(broker.bootstrap_servers for broker in brokers.values()))

    def coordinator(self, group: str) -> int:
        """The number of the broker that coordinates a group."""
        with admin_client(self.settings) as admin:
            found = ask_coordinator(lambda: admin._manager.run(admin._find_coordinator_id, group))
        return int(found)

    def kill_coordinator(self, group: str) -> None:
        """End that broker as a crash would."""
        self.brokers[self.coordinator(group)].kill()


def replicated(
    folder: Path, more: Callable[[int, Ports], Mapping[str, str]] = lambda number, ports: {}
) -> dict[int, LocalBroker]:
    """Number -> a broker of one cluster, not started yet; `more` are server properties of one, on top of ours."""
    folders = {number: BrokerFolder(folder / str(number)) for number in NUMBERS}
    ports = {}
    for number, one in folders.items():
        one.path.mkdir(parents=True)
        ports[number] = one.choose_ports(None)
    for number, one in folders.items():
        same = replace(ports[number], cluster_id=ports[1].cluster_id)
        (one.path / "broker.json").write_text(json.dumps(asdict(same)))
    voters = ",".join(f"{number}@{HOST}:{ports[number].controller_port}" for number in NUMBERS)
    brokers = {}
    for number, one in folders.items():
        own = {"node.id": str(number), "controller.quorum.voters": voters, **REPLICATED, **more(number, ports[number])}
        brokers[number] = LocalBroker(one.path, settings=own)
    return brokers


def start_together(brokers: Iterable[LocalBroker]) -> None:
    """Start them at once: one alone is no quorum, and is never ready."""
    with ThreadPoolExecutor(len(NUMBERS)) as pool:
        list(pool.map(lambda broker: broker.start(90.0), brokers))


@contextmanager
def three_brokers(folder: Path) -> Iterator[ThreeBrokers]:
    """Start them, and kill what is left of them in the end."""
    brokers = replicated(folder)
    try:
        start_together(brokers.values())
        yield ThreeBrokers(brokers)
    finally:
        for broker in brokers.values():
            broker.kill()
