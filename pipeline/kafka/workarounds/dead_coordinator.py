"""A long-lived admin client keeps a dead coordinator: one that asks who it is before each question."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kafka import KafkaAdminClient
from kafka.protocol.metadata import CoordinatorType


class AskingAdmin(KafkaAdminClient):  # type: ignore[misc]
    """An admin client that finds groups' coordinators anew each time.

    kafka-python remembers a group's coordinator for the client's life, and neither a lost connection nor the answer
    that it is another broker by now makes it ask again: after the broker has died for good, no question about the group
    is ever answered. Asking costs a round trip a question, and these are few.
    """

    async def _find_coordinator_ids(
        self, keys: Iterable[str], key_type: CoordinatorType = CoordinatorType.GROUP
    ) -> dict[str, Any]:
        known = self._manager.cluster._coordinators
        for key in keys:
            known.pop((CoordinatorType.build_from(key_type), key), None)
        return await super()._find_coordinator_ids(keys, key_type)  # type: ignore[no-any-return]
