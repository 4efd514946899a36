"""A captured teacher's labels one by one, each held against what it is said to be; no broker, and no client of one."""

from __future__ import annotations

from pipeline.captured.folder import CapturedOrder, TeacherFiles
from pipeline.identity import other_identity
from pipeline.sequence import Sequence
from schemas.errors import DecodeError
from schemas.records import SoftTargets


def read_labels(files: TeacherFiles, orders: Sequence, sequence: int) -> tuple[SoftTargets, CapturedOrder]:
    """Return an order's soft targets, and the record that they are in.

    Args:
        files: the teacher's.
        orders: of the folder's manifest.
        sequence: of an order that was captured.

    Raises:
        DecodeError: its file is damaged there, or holds another order, another teacher's, or another stream's.
        DataUnavailable: it cannot be read now.
    """
    order = files.read(sequence)
    value = SoftTargets.decode(order.value, order.address)
    problem = other_identity(orders, sequence, files.teacher, value)
    if value.stream_id != files.manifest.stream_id:
        problem = f"stream_id is {value.stream_id}, the manifest says {files.manifest.stream_id}"
    if problem:
        raise DecodeError(order.address, f"{problem}; order {sequence} belongs there", order.value)
    return value, order
