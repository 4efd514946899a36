"""The last layers of a teacher, held against what its record says of them."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.errors import ManifestMismatch
from schemas.head import Head
from schemas.teacher import Teacher


def decode_heads(teacher: Teacher, layers: Mapping[str, bytes]) -> dict[str, Head]:
    """Return SHA-256 -> layer of those that are there, which are what the outputs of a teacher's record say.

    Raises:
        DecodeError: one is no layer.
        ManifestMismatch: one has other classes, or another width, than its output.
    """
    found = {
        sha256: Head.decode(raw, f"the last layer {sha256[:12]} of teacher {teacher.name!r}")
        for sha256, raw in layers.items()
    }
    for one in teacher.outputs:
        head, width = found.get(one.head_sha256 or ""), one.codec.k if one.codec else 0
        if head and (head.num_classes, head.width) != (one.codec_classes, width):
            raise ManifestMismatch(
                f"the last layer of output {one.name!r} of teacher {teacher.name!r} gives {head.num_classes} "
                f"classes of {head.width} numbers, its record says {one.codec_classes} of {width}"
            )
    return found
