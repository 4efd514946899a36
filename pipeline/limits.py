"""Bounds of what a user may ask for, where none but a machine's own would be met, late and unclearly."""

from __future__ import annotations

import os

MAX_SECONDS = 1e9
"""For waits: 30 years, far below what overflows the system's clocks."""
MAX_SESSION_SECONDS = 86_400.0
"""For a consumer group's session; brokers take 30 minutes at most unless told otherwise."""
MAX_THREADS = max(1024, 4 * (os.cpu_count() or 1))
"""For one computation: more hang or crash the libraries that start them."""
MAX_WORKERS = 1024
"""Of one fleet."""
