"""Fetching the broker's jars from a Maven repository, with `jgo`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from pipeline.broker.jars import KAFKA_VERSION, Jar
from schemas.errors import ConfigError

MAVEN_URL = "https://repo.maven.apache.org/maven2"
ATTEMPTS = 3
LOCK_TIMEOUT = 600.0
"""Seconds that a second process waits for the one that downloads."""


def fetch_missing(folder: Path, jars: Sequence[Jar]) -> None:
    """Fetch the jars that `folder` lacks, check each, and only then rename it into place.

    `DISTILLOG_MAVEN_URL` names a mirror of Maven Central. ConfigError in one line: no `jgo`, no network, no disk,
    or a file that differs from the lock.
    """
    try:
        import jgo.maven  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"the local broker needs jgo to fetch Kafka {KAFKA_VERSION}: pip install 'distillog[broker]'"
        ) from None
    staging = folder / "staging"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(folder / "lock"):
            # Looked up again under the lock: another process may just have fetched them.
            missing = [jar for jar in jars if not (folder / jar.file_name).exists()]
            shutil.rmtree(staging, ignore_errors=True)
            _fetch(missing, folder, staging)
    except OSError as error:
        raise ConfigError(f"cannot store Kafka's jars in {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fetch(jars: Sequence[Jar], folder: Path, staging: Path) -> None:
    url = os.environ.get("DISTILLOG_MAVEN_URL", MAVEN_URL).rstrip("/")
    total = sum(jar.size for jar in jars)
    # Four at once: most jars are small, so one after the other is mostly waiting for answers.
    with _progress(len(jars), total) as advance, ThreadPoolExecutor(max_workers=4) as pool:
        futures = {pool.submit(_fetch_one, jar, folder, staging, url): jar for jar in jars}
        try:
            for future in as_completed(futures):
                future.result()
                advance(futures[future].size)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch_one(jar: Jar, folder: Path, staging: Path, url: str) -> None:
    """Each jar by its own coordinate: no resolution of dependencies, so what comes cannot drift from the lock."""
    import requests
    from jgo.maven import MavenContext

    for attempt in range(1, ATTEMPTS + 1):
        # A repository folder per attempt: jgo takes a file that is there for whole, also one that was cut.
        context = MavenContext(repo_cache=staging / f"{jar.file_name}.{attempt}", remote_repos={"central": url})
        try:
            path = Path(context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve())
            jar.check(path)
        except (requests.RequestException, RuntimeError, ConfigError) as error:
            if attempt == ATTEMPTS:
                raise ConfigError(f"cannot fetch {jar.file_name} from {url}: {_reason(error)}") from error
        else:
            path.replace(folder / jar.file_name)
            return


def _reason(error: Exception) -> str:
    """The innermost cause as one short line: requests wraps a refused connection four times."""
    if isinstance(error, ConfigError):
        return "what came differs from jars.lock"
    if isinstance(error, RuntimeError):
        return "not found there"
    import requests

    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "no connection (is there a network? DISTILLOG_MAVEN_URL names a mirror)"
    return str(error).splitlines()[0]


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold the lock file, which the system frees whatever happens to the process."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"another process has been fetching Kafka's jars for {LOCK_TIMEOUT:.0f} s (it holds {path})"
                    ) from None
                time.sleep(0.1)
        yield


@contextlib.contextmanager
def _progress(count: int, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of `total` bytes are there: a bar on a terminal, else two plain lines."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    title = f"Kafka {KAFKA_VERSION}: fetching {count} jars ({total / 1e6:.0f} MB)"
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(title, total=total)
            yield lambda size: progress.advance(task, size)
        return
    start = time.monotonic()
    console.print(title, highlight=False)
    yield lambda size: None
    console.print(f"Kafka {KAFKA_VERSION}: jars fetched in {time.monotonic() - start:.1f} s", highlight=False)
