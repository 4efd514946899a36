"""What the tests of a secured cluster share: one broker that lets in only whom it knows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.secured_broker import SecuredBroker, running_secured_broker


@pytest.fixture(scope="session")
def secured_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    """The session's own: take users and streams of fresh names. Who restarts a broker starts one for itself."""
    with running_secured_broker(tmp_path_factory.mktemp("secured")) as broker:
        yield broker
