"""Does what a schedule says: each fault on a thread of its own, so that they overlap."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from chaos.checker import Facts
from chaos.cluster import Brokers
from chaos.fleet import FleetWorker
from chaos.roles import Events, Role
from chaos.schedule import LOSE, Fault, resources

AT_ONCE = 32
"""Faults that may be under way together."""


class Injector:
    """Injects and mends faults from `start` on."""

    def __init__(
        self,
        faults: Sequence[Fault],
        roles: dict[str, Role],
        fleet_workers: dict[str, FleetWorker],
        brokers: Brokers,
        facts: Facts,
        events: Events,
    ) -> None:
        self.injected: list[Fault] = []
        self.problems: list[str] = []
        """Faults that could not be injected or mended."""
        self._faults = faults
        self._roles = roles
        self._killed_or_frozen: dict[str, Role | FleetWorker] = {**roles, **fleet_workers}
        self._brokers = brokers
        self._facts = facts
        self._events = events
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(AT_ONCE, "fault")
        self._thread = threading.Thread(target=self._inject_all, name="injector", daemon=True)
        self._locks = {each: threading.Lock() for fault in faults for each in resources(fault.target)}
        self._do: dict[str, Callable[[Fault], None]] = {
            "kill worker": self._kill,
            "kill fleet worker": self._kill,
            "kill fleet": self._kill,
            "kill student": self._kill,
            "kill feeder": self._kill,
            "freeze worker": self._freeze,
            "freeze student": self._freeze,
            "freeze feeder": self._freeze,
            "leave": self._leave,
            "stop student": self._leave,
            "join": self._join,
            "cut": self._cut,
            "refuse": self._cut,
            "stall": self._cut,
            "kill broker": self._broker,
            "freeze broker": self._broker,
            "cut off broker": self._broker,
            LOSE: self._broker,
        }

    def start(self) -> None:
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether all faults are over."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Inject no more, and mend what is under way."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._pool.shutdown()

    def _inject_all(self) -> None:
        began = time.monotonic()
        under_way = []
        for fault in self._faults:
            if self._stop.wait(max(0.0, fault.at - (time.monotonic() - began))):
                break
            under_way.append(self._pool.submit(self._inject, fault))
        for each in under_way:
            each.result()

    def _inject(self, fault: Fault) -> None:
        try:
            with ExitStack() as alone:
                for each in sorted(resources(fault.target)):
                    # Should the one before take longer to be mended than planned.
                    alone.enter_context(self._locks[each])
                self._events.add("fault", kind=fault.kind, target=fault.target, seconds=fault.seconds, at=fault.at)
                self._do[fault.kind](fault)
        except Exception as error:
            self.problems.append(f"{fault.kind} of {fault.target} at {fault.at:.0f} s: {type(error).__name__}: {error}")
            self._events.add("fault failed", problem=self.problems[-1])
            return
        self.injected.append(fault)
        self._events.add("mended", kind=fault.kind, target=fault.target)

    def _hold(self, fault: Fault) -> None:
        self._stop.wait(fault.seconds)

    def _kill(self, fault: Fault) -> None:
        role = self._killed_or_frozen[fault.target]
        role.kill()
        self._hold(fault)
        role.start()

    def _freeze(self, fault: Fault) -> None:
        role = self._killed_or_frozen[fault.target]
        role.freeze()
        self._hold(fault)
        role.thaw()

    def _leave(self, fault: Fault) -> None:
        role = self._roles[fault.target]
        role.end()
        self._hold(fault)
        role.start()

    def _join(self, fault: Fault) -> None:
        role = self._roles[fault.target]
        role.start()
        self._hold(fault)
        role.end()

    def _cut(self, fault: Fault) -> None:
        for proxy in self._brokers.wire(fault.target):
            {"cut": proxy.cut, "refuse": proxy.refuse, "stall": proxy.stall}[fault.kind]()
        self._hold(fault)
        for proxy in self._brokers.wire(fault.target):
            proxy.mend()

    def _broker(self, fault: Fault) -> None:
        topic = f"{self._facts.stream}.soft-targets.{self._facts.teacher}"
        number = self._brokers.number(fault.target, self._facts.stream, topic)
        self._events.add("broker", kind=fault.kind, number=number)
        if fault.kind == LOSE:
            self._brokers.lose(number)
        elif fault.kind == "kill broker":
            self._brokers.kill(number)
            self._hold(fault)
            self._brokers.start(number)
        elif fault.kind == "freeze broker":
            self._brokers.freeze(number)
            self._hold(fault)
            self._brokers.thaw(number)
        else:
            for proxy in self._brokers.ways_to(number):
                proxy.stall()
            self._hold(fault)
            for proxy in self._brokers.ways_to(number):
                proxy.mend()
