"""Arrays as PNG (ISO/IEC 15948): 8 bits, grey or RGB, no filter, so that no image library is needed."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def png(values: NDArray[Any]) -> bytes:
    """Return a picture of [1 or 3, height, width]; bytes as they are, other numbers from their least to their most."""
    if values.dtype != np.uint8:
        numbers = values.astype(np.float64)
        low, high = float(numbers.min()), float(numbers.max())
        values = np.rint((numbers - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
    channels, height, width = values.shape
    pixels = values.transpose(1, 2, 0).reshape(height, width * channels)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*each) for each in parts)


def data_uri(values: NDArray[Any]) -> str:
    """Return the picture as what an `img` may have for its source."""
    return f"data:image/png;base64,{base64.b64encode(png(values)).decode()}"


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
