"""What a broker's folder remembers between processes: its ports, its cluster ID, and who runs in it.

Whether a broker runs is told by a lock that the Java process inherits and the system frees with it, never by the pid
alone: the pid of a broker that was killed may by now belong to another program.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import json
import os
import random
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from schemas.errors import ConfigError

HOST = "127.0.0.1"
# Outgoing connections take their ports from 32768 on (Linux): there a kept port could be taken by anyone at any time.
PORTS = range(10_000, 32_768)


@dataclass(frozen=True, slots=True)
class Ports:
    """Kept in `broker.json`."""

    port: int
    """where clients connect"""
    controller_port: int
    cluster_id: str
    """22 characters of URL-safe base64"""


class BrokerFolder:
    """The files of one broker."""

    def __init__(self, path: Path) -> None:
        # Absolute, since Kafka has another working folder, and users may give a relative one.
        self.path = path.absolute()
        self.data = self.path / "data"
        self.properties = self.path / "server.properties"
        self.log = self.path / "broker.log"
        self._state = self.path / "broker.json"
        self._pid = self.path / "broker.pid"
        self._lock = self.path / "broker.lock"

    def read_ports(self) -> Ports:
        """What the first start chose; ConfigError: never started here, or the file is damaged."""
        try:
            return Ports(**json.loads(self._state.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ConfigError(f"no broker was ever started in {self.path}") from None
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{self._state} cannot be read ({error}): remove it, the next start makes it") from None

    def choose_ports(self, wanted: int | None) -> Ports:
        """`wanted`, else the port of last time, else a free one; remembered. ConfigError: it is taken."""
        old = self.read_ports() if self._state.exists() else None
        port = wanted or (old.port if old else _free_port())
        if problem := _problem(port):
            raise ConfigError(f"port {port} of {HOST} {problem}: free it, or choose another one with --port")
        # Nobody else knows the controller's port, so it may change when it is taken.
        controller_port = old.controller_port if old else _free_port(port)
        if controller_port == port or _problem(controller_port):
            controller_port = _free_port(port)
        ports = Ports(port, controller_port, old.cluster_id if old else _new_cluster_id())
        self._write(self._state, json.dumps(asdict(ports)))
        return ports

    @contextlib.contextmanager
    def hold(self) -> Iterator[IO[str] | None]:
        """Hold the folder's lock, None if someone else does; a process that is given the file keeps it held."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = self._lock.open("a")
        except OSError as error:
            raise ConfigError(f"cannot use {self.path} as the broker's folder: {error.strerror}") from None
        with file:
            # A few tries: `is_running` of another process holds it for an instant.
            for _ in range(10):
                if _locks(file, fcntl.LOCK_EX):
                    yield file
                    return
                time.sleep(0.01)
            yield None

    def is_running(self) -> bool:
        """Whether a broker runs here, or is just being started."""
        try:
            with self._lock.open() as file:
                return not _locks(file, fcntl.LOCK_SH)
        except OSError:
            return False

    def running_pid(self) -> int | None:
        """The running broker's process ID; a file left over by a dead broker does not count."""
        if not self.is_running():
            return None
        try:
            return int(self._pid.read_text(encoding="ascii").split()[0])
        except (OSError, ValueError, IndexError):
            return None

    def log_of_the_fallen(self) -> str | None:
        """What a broker logged that nobody stopped and that runs no more; None where there is none."""
        if self.is_running():
            return None
        try:
            start = int(self._pid.read_text(encoding="ascii").split()[1])
            with self.log.open("rb") as log:
                log.seek(start)
                return log.read().decode(errors="replace")
        except (OSError, ValueError, IndexError):
            return None

    def write_pid(self, pid: int | None, log_start: int = 0) -> None:
        """Remember who runs here, and where in `broker.log` it begins.

        None before a start, so that nobody takes an old number for the new broker's, and after a stop.
        """
        if pid is None:
            self._pid.unlink(missing_ok=True)
        else:
            self._write(self._pid, f"{pid} {log_start}")

    @staticmethod
    def _write(path: Path, text: str) -> None:
        new = path.with_name(path.name + ".new")
        new.write_text(text + "\n", encoding="utf-8")
        new.replace(path)


def default_folder() -> Path:
    """`broker` in `$DISTILLOG_HOME`, without that variable in `~/.local/share/distillog`."""
    home = os.environ.get("DISTILLOG_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share" / "distillog") / "broker"


def running_broker_address(folder: Path | None = None) -> str | None:
    """`127.0.0.1:PORT` of the broker that runs in `folder` (the default one), None if none does; takes microseconds."""
    broker = BrokerFolder(default_folder() if folder is None else folder)
    return f"{HOST}:{broker.read_ports().port}" if broker.is_running() else None


def _locks(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _problem(port: int) -> str | None:
    """Why a server could not listen on `port`, in words; None if it could."""
    with socket.socket() as probe:
        # As Java does: connections of a dead broker that linger in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen()
        except OSError as error:
            return "is taken by another program" if error.errno == errno.EADDRINUSE else f"fails: {error.strerror}"
    return None


def _free_port(other: int | None = None) -> int:
    for port in random.sample(PORTS, 200):
        if port != other and _problem(port) is None:
            return port
    raise ConfigError(f"no free port of {HOST} between {PORTS.start} and {PORTS.stop - 1}")


def _new_cluster_id() -> str:
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # Kafka's tool would take a leading dash for an option.
        if not text.startswith("-"):
            return text
