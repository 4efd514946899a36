"""What the tests of a secured cluster share: one broker that lets in only whom it knows."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest
from support.secured_broker import SecuredBroker, running_secured_broker


@pytest.fixture(scope="session")
def secured_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    """The session's own: take users and streams of fresh names. Who restarts a broker starts one for itself."""
    with running_secured_broker(tmp_path_factory.mktemp("secured")) as broker:
        yield broker


@pytest.fixture(scope="session")
def _settled() -> Iterator[None]:
    """What the process has loaded need not be gone through again after each test: that would take a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _refused_sockets(_settled: None) -> Iterator[None]:
    """kafka-python leaves the sockets of refused connections to the garbage collector: not to that of another test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
