"""A captured teacher's labels one by one, each held against what it is said to be; no broker, and no client of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.captured.contents import CapturedTeacher, file_name
from pipeline.captured.folder import CapturedOrder, TeacherFiles
from pipeline.identity import other_lineage
from pipeline.sequence import Sequence
from pipeline.stored_labels import Damaged, Dropped, Stored
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
    problem = other_lineage(orders, sequence, files.lineage, value)
    if value.stream_id != files.manifest.stream_id:
        problem = f"stream_id is {value.stream_id}, the manifest says {files.manifest.stream_id}"
    if problem:
        raise DecodeError(order.address, f"{problem}; order {sequence} belongs there", order.value)
    return value, order


@dataclass
class CapturedLabels:
    """Those that were captured of a teacher: each is read at its own place, and so belongs there or is damaged."""

    files: TeacherFiles
    entry: CapturedTeacher
    """What the folder's list says of them."""
    begin: int
    """The first order."""
    until: int
    """The order behind the last."""
    dropped: Dropped = field(default_factory=Dropped)
    first_missing: int | None = None

    def read(self) -> Iterator[Stored | Damaged]:
        """Yield each order that is there, in sequence, and at the end what else of the files is not as it is listed.

        Raises:
            DataUnavailable: a file cannot be read now.
        """
        orders, files = Sequence.of(self.files.manifest), self.files
        whole = True
        for sequence in range(self.begin, min(self.until, files.num_orders)):
            try:
                value, order = read_labels(files, orders, sequence)
            except DecodeError as error:
                whole = False
                yield Damaged(sequence, error.address, error.reason)
                continue
            yield Stored(value, order.address)
        if self.until > files.num_orders:
            self.first_missing = max(self.begin, files.num_orders)
        if whole:
            yield from self._of_files()

    def _of_files(self) -> Iterator[Damaged]:
        """Yield the first file whose bytes are not those that were captured, though each order has its checksum."""
        try:
            self.files.verify(lambda num_bytes: None)
        except DecodeError as error:
            name = self.files.teacher.name
            firsts = {file_name(name, number): each.first for number, each in enumerate(self.entry.files)}
            first = next((at for each, at in firsts.items() if error.address.endswith(f"/{each}")), 0)
            yield Damaged(first, error.address, error.reason, is_order=False)
