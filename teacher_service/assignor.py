"""The assignor lies in `pipeline.kafka.assignor`; this name stays until the worker joins its group through the seam."""

from __future__ import annotations

from pipeline.kafka.assignor import EqualShares, Forgetting

__all__ = ["EqualShares", "Forgetting"]
