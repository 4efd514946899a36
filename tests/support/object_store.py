"""An S3 server: moto's, on a port of this machine, with s3fs as whoever asks it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Run a server; the environment by which a client finds it, and is let in by an ID and a secret.

    The environment is this process's, too, while it runs.
    """
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # which has a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": host,
    }
    try:
        with pytest.MonkeyPatch.context() as patch:
            for key, value in environment.items():
                patch.setenv(key, value)
            yield environment
    finally:
        server.stop()


def upload(folder: Path, url: str) -> Any:
    """Put a folder's files behind a URL, and return the file system that holds them."""
    from fsspec.core import url_to_fs

    files, path = url_to_fs(url, skip_instance_cache=True)
    bucket = path.partition("/")[0]
    if not files.exists(bucket):
        files.mkdir(bucket)
    for each in folder.iterdir():
        files.pipe(f"{path}/{each.name}", each.read_bytes())
    return files
