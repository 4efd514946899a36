"""The soak's brokers, one or three, and the two wires through which everybody but the checker reaches them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path

from support.proxy import Proxies, Proxy, free_ports
from support.three_brokers import replicated, start_together

from chaos.schedule import WIRES
from pipeline.broker.folder import HOST, BrokerFolder, Ports
from pipeline.broker.local import LocalBroker
from pipeline.kafka.clients import admin_client
from pipeline.kafka.coordinator import ask_coordinator
from pipeline.kafka.settings import KafkaSettings

PEERS = "peers"
"""The way from one broker to another."""
START = 90.0
"""Seconds for a broker to answer."""
TWO_OF_THREE = {"min.insync.replicas": "2", "replica.lag.time.max.ms": "3000", "replica.fetch.wait.max.ms": "200"}


class Brokers:
    """A cluster that is killed, frozen and cut off. Use as a context manager; `data` stays."""

    def __init__(self, folder: Path, count: int) -> None:
        self._proxies = Proxies()
        self._ways: dict[tuple[str, int], Proxy] = {}
        if count == 1:
            place = BrokerFolder(folder / "1")
            place.path.mkdir(parents=True)
            ports = place.choose_ports(None)
            self.brokers = {1: LocalBroker(place.path, settings=self._listeners(1, ports, WIRES))}
        else:
            ways = (*WIRES, PEERS)
            self.brokers = replicated(
                folder,
                lambda number, ports: {
                    **TWO_OF_THREE,
                    **self._listeners(number, ports, ways),
                    "inter.broker.listener.name": PEERS.upper(),
                },
            )
        self.alive = dict(self.brokers)
        """Without those that died for good."""

    def _listeners(self, number: int, ports: Ports, ways: Iterable[str]) -> dict[str, str]:
        """Server properties: beside the plain listener one for each way, advertised as the proxy before it."""
        own = {"PLAINTEXT": (ports.port, ports.port)}
        for way in ways:
            behind, before = free_ports(2)
            self._ways[way, number] = self._proxies.add(before, behind)
            own[way.upper()] = (behind, before)
        controller = f"CONTROLLER://{HOST}:{ports.controller_port}"
        return {
            "listeners": ",".join([*(f"{name}://{HOST}:{port}" for name, (port, _) in own.items()), controller]),
            "advertised.listeners": ",".join(f"{name}://{HOST}:{port}" for name, (_, port) in own.items()),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in ("CONTROLLER", *own)),
        }

    def __enter__(self) -> Brokers:
        try:
            start_together(self.brokers.values())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all of them: their data may be looked at."""
        for number, broker in self.brokers.items():
            self.thaw(number)
            broker.kill()
        self._proxies.close()

    @property
    def direct(self) -> KafkaSettings:
        """The way that no fault strikes."""
        return KafkaSettings(",".join(broker.bootstrap_servers for broker in self.alive.values()))

    def address(self, wire: str) -> str:
        """Bootstrap servers at the other end of a wire."""
        return ",".join(f"{HOST}:{self._ways[wire, number].port}" for number in self.brokers)

    def wire(self, name: str) -> list[Proxy]:
        """All proxies of a wire, one a broker."""
        return [proxy for (way, _), proxy in self._ways.items() if way == name]

    def ways_to(self, number: int) -> list[Proxy]:
        """All proxies before a broker."""
        return [proxy for (_, behind), proxy in self._ways.items() if behind == number]

    def number(self, target: str, stream: str, topic: str) -> int:
        """The broker that a schedule's target means now.

        Args:
            target: one of ONE_BROKER or ANY_OF_THREE.
            stream: whose teachers' group's coordinator.
            topic: the leader of its partition 0.
        """
        if target == "broker":
            return 1
        with admin_client(self.direct) as admin:
            if target == "coordinator":
                names = [str(each["group_id"]) for each in admin.list_groups()]
                group = next(name for name in names if name.startswith(f"distillog.{stream}.") and ".teacher." in name)
                return int(ask_coordinator(lambda: admin._manager.run(admin._find_coordinator_id, group)))
            (found,) = admin.describe_topics([topic])
            return next(int(each["leader_id"]) for each in found["partitions"] if each["partition_index"] == 0)

    def kill(self, number: int) -> None:
        self.brokers[number].kill()

    def lose(self, number: int) -> None:
        """Kill it for good."""
        self.alive.pop(number)
        self.kill(number)

    def start(self, number: int) -> None:
        self.brokers[number].start(START)

    def freeze(self, number: int) -> None:
        if pid := self.brokers[number].pid:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        if pid := self.brokers[number].pid:
            os.kill(pid, signal.SIGCONT)
