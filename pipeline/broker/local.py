"""A one-node Kafka in a folder: start, stop, and find it again from another process.

The folder holds `broker.json` (ports and cluster ID, kept, so that a restart has the same address), `broker.pid`,
`broker.lock`, `server.properties` (written at each start), `broker.log` and `data/`.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import IO

from pipeline.broker.folder import HOST, BrokerFolder, default_folder, running_broker_address
from pipeline.wait import Deadline
from schemas.errors import BrokerUnavailable, ConfigError

__all__ = ["LocalBroker", "default_folder", "running_broker_address"]

TEMPLATES = Path(__file__).parent
JVM_OPTIONS = (
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    # A broker that cannot allocate is to die and be seen, not to limp.
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
)
LARGEST_LOG = 16 << 20
"""Bytes of `broker.log` beyond which a start begins it anew."""

# A Popen that is dropped while its process runs on warns, and a detached broker is meant to run on. Kept by pid, so
# that whoever stops it in this process reaps it.
_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}


class LocalBroker:
    """The Kafka of one folder; `settings` are server properties on top of the template."""

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        java_home: Path | None = None,
    ) -> None:
        self.folder = BrokerFolder(folder)
        self.settings = dict(settings or {})
        self._port = port
        self._java_home = java_home
        self._log_start = 0

    @property
    def bootstrap_servers(self) -> str:
        """`127.0.0.1:PORT`, known from the first start on (ConfigError before it)."""
        return f"{HOST}:{self.folder.read_ports().port}"

    @property
    def pid(self) -> int | None:
        """The running broker's process, None if it does not run."""
        return self.folder.running_pid()

    @property
    def fell(self) -> str:
        """Why a broker that nobody stopped runs no more, in its log's words; empty where there is none."""
        log = self.folder.log_of_the_fallen()
        return "" if log is None else _cause(log)

    def start(self, timeout: float = 60.0) -> bool:
        """Start the broker and wait until it answers; False if it ran already.

        ConfigError: port taken, Java or jars missing. BrokerUnavailable: it died, or did not answer in `timeout` s.
        """
        from pipeline.broker.jars import ready_jars
        from pipeline.broker.java import find_java

        if self.folder.is_running():
            return self._join(timeout)
        # Before the lock and the deadline: a first start may download for minutes.
        java, jars = find_java(self._java_home), ready_jars()
        command = [str(java), *JVM_OPTIONS, f"-Dlog4j2.configurationFile={TEMPLATES / 'log4j2.properties'}"]
        command += ["-cp", os.pathsep.join(str(jar) for jar in jars)]
        deadline = Deadline(timeout)
        try:
            with self.folder.hold() as lock:
                if lock is None:
                    return self._join(timeout)
                self.folder.choose_ports(self._port)
                self._write_properties()
                self._format(command, deadline)
                self._spawn(command, lock)
        except OSError as error:
            advice = "; make room there and try again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise ConfigError(
                f"cannot start a broker in {self.folder.path}: {error.strerror or error}{advice}"
            ) from error
        try:
            self._wait_until_ready(deadline)
        except BaseException:
            # Also on Ctrl-C: whoever could not wait for the broker does not know that one runs.
            self.kill()
            raise
        return True

    def stop(self, timeout: float = 20.0) -> bool:
        """SIGTERM, and SIGKILL after `timeout` seconds; False if it did not run. The data stays."""
        return self._end((signal.SIGTERM, timeout), (signal.SIGKILL, 10.0))

    def kill(self) -> bool:
        """SIGKILL, as a crash would; False if it did not run."""
        return self._end((signal.SIGKILL, 10.0))

    def _join(self, timeout: float) -> bool:
        if self._port is not None and self._port != self.folder.read_ports().port:
            raise ConfigError(f"a broker runs in {self.folder.path} on {self.bootstrap_servers}, not on {self._port}")
        self._log_start = self.folder.log.stat().st_size if self.folder.log.exists() else 0
        self._wait_until_ready(Deadline(timeout))
        return False

    def _write_properties(self) -> None:
        ports = self.folder.read_ports()
        template = Template((TEMPLATES / "server.properties").read_text(encoding="utf-8"))
        text = template.substitute(port=ports.port, controller_port=ports.controller_port)
        # A later line wins, so these override the template.
        text += "".join(f"{name}={value}\n" for name, value in self.settings.items())
        self.folder.properties.write_text(text, encoding="utf-8")

    def _format(self, command: list[str], deadline: Deadline) -> None:
        """Kafka's own preparation of an empty data folder."""
        if (self.folder.data / "meta.properties").exists():
            return
        cluster_id = self.folder.read_ports().cluster_id
        arguments = ["format", "-t", cluster_id, "-c", str(self.folder.properties), "--ignore-formatted"]
        try:
            result = subprocess.run(
                [*command, "kafka.tools.StorageTool", *arguments],
                cwd=self.folder.path,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=max(1.0, deadline.left),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BrokerUnavailable(f"Kafka cannot prepare {self.folder.data}: {error}") from error
        if result.returncode:
            raise BrokerUnavailable(f"Kafka cannot prepare {self.folder.data}: {_cause(result.stdout)}")

    def _spawn(self, command: list[str], lock: IO[str]) -> None:
        self.folder.write_pid(None)
        with self.folder.log.open("ab") as log:
            if log.tell() > LARGEST_LOG:
                log.truncate(0)
            self._log_start = log.tell()
            process = subprocess.Popen(
                [*command, "kafka.Kafka", str(self.folder.properties)],
                cwd=self.folder.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A session of its own: Ctrl-C at the terminal that started it is not meant for the broker.
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )
        self.folder.write_pid(process.pid, self._log_start)
        _CHILDREN[process.pid] = process

    def _wait_until_ready(self, deadline: Deadline) -> None:
        """Return when an admin client has an answer from the broker."""
        # Imported while Java starts, since it takes as long.
        from kafka.errors import KafkaError

        from pipeline.kafka.clients import new_admin
        from pipeline.kafka.settings import KafkaSettings

        while self.folder.is_running():
            if deadline.over:
                raise BrokerUnavailable(f"the broker in {self.folder.path} does not answer: see {self.folder.log}")
            if self._listens():
                milliseconds = max(500, deadline.left_ms)
                try:
                    settings = KafkaSettings(self.bootstrap_servers)
                    admin = new_admin(settings, bootstrap_timeout_ms=milliseconds, request_timeout_ms=milliseconds)
                    try:
                        # A fenced broker answers too, before it may lead any partition: after a crash, until the
                        # session of the dead one is over.
                        if any(not broker["is_fenced"] for broker in admin.describe_cluster()["brokers"]):
                            return
                    finally:
                        admin.close()
                except (KafkaError, BrokerUnavailable):
                    # It listens and does not answer yet, or died under the question: the loop's head tells which.
                    pass
            time.sleep(0.02)
        self._reap()
        with self.folder.log.open("rb") as log:
            log.seek(self._log_start)
            cause = _cause(log.read().decode(errors="replace"))
        raise BrokerUnavailable(f"the broker ended while it started: {cause} (see {self.folder.log})")

    def _listens(self) -> bool:
        try:
            socket.create_connection((HOST, self.folder.read_ports().port), timeout=1.0).close()
        except (OSError, ConfigError):  # ConfigError: another process is at the very first start, before its ports
            return False
        return True

    def _end(self, *steps: tuple[signal.Signals, float]) -> bool:
        """Send each signal and wait its seconds, until the broker has ended."""
        if not self.folder.is_running():
            return False
        for number, timeout in steps:
            deadline = Deadline(timeout)
            pid = self.pid
            if pid is None:
                raise BrokerUnavailable(f"a broker is just being started in {self.folder.path}: try again")
            os.kill(pid, number)
            while not deadline.over:
                if not self.folder.is_running():
                    self._reap()
                    self.folder.write_pid(None)
                    return True
                time.sleep(0.02)
        raise BrokerUnavailable(f"the broker in {self.folder.path} (process {self.pid}) does not end")

    @staticmethod
    def _reap() -> None:
        for pid, child in list(_CHILDREN.items()):
            if child.poll() is not None:
                del _CHILDREN[pid]


def _cause(text: str) -> str:
    """The line of a Java program's output that says why it ended."""
    # From Java 24 on, the virtual machine itself warns of Kafka's use of sun.misc.Unsafe.
    # A broker that was killed has said nothing of it, but may have warned of this and that before.
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("WARNING: ")]
    lines = [line for line in lines if " WARN " not in line]
    # A failed log directory is told with its cause once, and then in many other words.
    for line, cause in pairwise(lines):
        if " ERROR LogDirFailureChannel: " in line:
            return cause
    for sign in ("Caused by: ", " FATAL ", " ERROR ", "Exception", "Error"):
        for line in reversed(lines):
            if sign in line:
                return line[line.index(sign) :].strip()
    return lines[-1] if lines else "without a word"
