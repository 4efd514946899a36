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
SAME_LABEL = 1e-3
"""The largest change of a label, as a share of its output's range, with which it still counts as the same.

Of convolutional nets of 8 to 34 layers, 4e-7 at most came of the rounding of float32, 3e-4 to 4e-4 of mantissas of 10
bits (TensorFloat-32, half precision), 2e-3 to 3e-3 of 7 bits (bfloat16). Another label is off by tenths."""
