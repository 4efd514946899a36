"""Captured soft targets as Parquet: a file for each teacher, one row a sample, groups of whole orders in sequence."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.captured.contents import Contents
from pipeline.captured.folder import CapturedFolder, TeacherFiles
from pipeline.captured.tables import Column, Lists, OutputTable, tables_of
from pipeline.datasets.base import Dataset
from pipeline.identity import other_form, other_lineage
from pipeline.sequence import Sequence as OrderSequence
from pipeline.user_code import said
from pipeline.user_files import refuse_irregular
from pipeline.views.check import check_data
from pipeline.views.patience import labels_patiently
from pipeline.whole_files import replace_file, writing
from schemas.errors import CannotWrite, ConfigError, ManifestMismatch
from schemas.heads import decode_heads
from schemas.hidden import with_head
from schemas.records import SoftTargets

log = logging.getLogger(__name__)

_GROUP_ROWS = 1 << 16
_GROUP_BYTES = 32 << 20
"""Of a row group, before it is packed: it ends with the order that comes to either."""
_ABOUT = b"distillog"
"""Key of the metadata: JSON of what the file holds, by which a file of ours is known again."""
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Table:
    """A file that is whole."""

    teacher: str
    path: Path
    num_orders: int
    num_rows: int
    new: bool
    """Whether it was written now; else it was there, of as many orders."""


def write_tables(
    folder: CapturedFolder,
    target: Path,
    teachers: Sequence[str] = (),
    dataset: str | None = None,
    progress: Callable[[str, int, int], object] = lambda teacher, order, of: None,
) -> list[Table]:
    """Write what a folder holds of some teachers as `TEACHER.parquet` in another folder.

    Each file is put into place when it is whole. One that is there already of the same teacher is left as it is if it
    holds as many orders, and replaced if it holds fewer. Equal folders give equal bytes with one version of pyarrow.

    Args:
        folder: what was captured.
        target: made where it is missing.
        teachers: whose labels; (): all that were captured.
        dataset: URI of the stream's data, for a column of true labels; None: no such column.
        progress: is told of a teacher, its orders until now, and all of them.

    Raises:
        ConfigError: no pyarrow, no teacher, or an output that has no place in a table.
        StreamNotFound: a teacher was not captured.
        CannotWrite: the disk refuses, somebody else writes there, or another file lies there, or one with true labels
            where none were asked for.
        ManifestMismatch: the data are not the stream's, or a record is not what the manifest promises.
        DecodeError, DataUnavailable: as `TeacherFiles`.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ConfigError("Parquet needs a package: `pip install 'distillog[parquet]'`") from None
    names = list(dict.fromkeys(teachers)) or list(folder.contents.teachers)
    if not names:
        raise ConfigError(f"{folder.path}: holds no teacher's soft targets, so there is no table to write")
    opened: list[tuple[TeacherFiles, list[OutputTable]]] = []
    try:
        for name in names:  # all of them, before the first file is begun
            files = folder.teacher(name)
            opened.append((files, []))
            opened[-1][1].extend(tables_of(files.teacher, files.manifest.codec))
        labels = check_data(opened[0][0].manifest, dataset).dataset if dataset else None
        with _alone_in(target):
            return [
                _TableOf(files, tables, labels, folder.contents).write(
                    target / f"{files.teacher.name}.parquet", progress
                )
                for files, tables in opened
            ]
    finally:
        for files, _ in opened:
            files.close()


@contextmanager
def _alone_in(target: Path) -> Iterator[None]:
    """Keep others from writing tables into a folder, which is made where it is missing: two would write one file.

    Raises:
        CannotWrite: somebody does, or the disk refuses.
    """
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotWrite(f"{target}: tables are being written there; wait for their end") from None
        except OSError:  # a file system without locks
            log.warning("%s: cannot be locked; let nobody else write tables there", target)
        yield
    finally:
        os.close(descriptor)


class _TableOf:
    """The table of one teacher."""

    def __init__(
        self, files: TeacherFiles, tables: Sequence[OutputTable], labels: Dataset | None, contents: Contents
    ) -> None:
        self._files, self._tables, self._labels = files, tables, labels
        self._orders = OrderSequence.of(files.manifest)
        heads = decode_heads(files.teacher, files.heads())
        self._heads = {one.name: heads[one.head_sha256] for one in files.teacher.outputs if one.head_sha256}
        """Output by the codec head -> its last layer."""
        self._about = {
            "format": _FORMAT,
            "stream": contents.stream,
            "stream_id": contents.stream_id,
            "manifest_sha256": contents.manifest_sha256,
            "teacher": files.teacher.name,
            "model_sha256": files.teacher.sha256,
            "labels": labels is not None,
            "outputs": {table.name: table.described() for table in tables},
            "orders": files.num_orders,
        }

    def write(self, path: Path, progress: Callable[[str, int, int], object]) -> Table:
        """Put the file into place, unless it is there; raises as `write_tables`."""
        name, num_orders = self._files.teacher.name, self._files.num_orders
        there = _about(path)
        if there is not None and there[0] == json.loads(json.dumps(self._about)):
            return Table(name, path, num_orders, there[1], False)
        if there is not None and not _earlier(there[0], self._about):
            raise CannotWrite(f"{path}: is there, of something else; remove it, or give another folder")
        if there is not None and there[0].get("labels") and self._labels is None:
            raise CannotWrite(
                f"{path}: is there with true labels, which it would lose; give --dataset, too, or another folder"
            )
        rows = 0

        def write(fresh: Path) -> None:
            nonlocal rows
            rows = self._write(fresh, lambda order: progress(name, order, num_orders))

        replace_file(path, write)
        return Table(name, path, num_orders, rows, True)

    def _write(self, fresh: Path, progress: Callable[[int], object]) -> int:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = self._schema()
        rows = 0
        with (
            fresh.open("wb") as file,
            pq.ParquetWriter(
                file,
                schema,
                compression="zstd",
                use_dictionary=["teacher"],
                # What a reader filters by; of lists they would say nothing.
                write_statistics=[each for each in schema.names if not pa.types.is_list(schema.field(each).type)],
                sorting_columns=[pq.SortingColumn(0)],
            ) as writer,
        ):
            for group in self._groups(progress):
                batch = pa.record_batch([_arrow(group[each.name], each) for each in schema], schema=schema)
                rows += batch.num_rows
                if batch.num_rows:
                    writer.write_batch(batch, row_group_size=batch.num_rows)
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        return rows

    def _schema(self) -> Any:
        import pyarrow as pa

        kinds = {
            "numbers": pa.list_(pa.field("element", pa.float32(), nullable=False)),
            "classes": pa.list_(pa.field("element", pa.int32(), nullable=False)),
            "mass": pa.float32(),
        }
        fields = [
            pa.field(name, pa.int64(), nullable=False) for name in ("sequence", "epoch", "sample_id", "view_seed")
        ]
        if self._labels is not None:
            fields.append(pa.field("label", pa.int64()))
        fields.append(pa.field("teacher", pa.string(), nullable=False))
        if self._files.lineage.publisher is not None:
            fields.append(pa.field("generation", pa.int64(), nullable=False))
        for name, kind in (each for table in self._tables for each in table.columns):
            fields.append(pa.field(name, kinds[kind], nullable=False))
        return pa.schema(fields, {_ABOUT: json.dumps(self._about, sort_keys=True).encode()})

    def _groups(self, progress: Callable[[int], object]) -> Iterator[dict[str, Column]]:
        """Yield the columns of whole orders, as many as a row group has."""
        parts: list[dict[str, Column]] = []
        num_rows = num_bytes = 0
        for sequence in range(self._files.num_orders):
            columns = self._columns(sequence)
            parts.append(columns)
            arrays = [each.values if isinstance(each, Lists) else each for each in columns.values()]
            num_rows += len(arrays[0])
            num_bytes += sum(each.nbytes for each in arrays)
            progress(sequence + 1)
            if num_rows >= _GROUP_ROWS or num_bytes >= _GROUP_BYTES:
                yield _joined(parts)
                parts, num_rows, num_bytes = [], 0, 0
        if parts:
            yield _joined(parts)

    def _columns(self, sequence: int) -> dict[str, Column]:
        """Return the columns of an order's kept rows."""
        order = self._files.read(sequence)
        value = SoftTargets.decode(order.value, order.address)
        lineage, manifest = self._files.lineage, self._files.manifest
        teacher = lineage.teacher
        problem = other_lineage(self._orders, sequence, lineage, value) or other_form(teacher, manifest.codec, value)
        if not problem and value.stream_id != manifest.stream_id:
            problem = f"stream ID is {value.stream_id}, the manifest says {manifest.stream_id}"
        if problem:
            raise ManifestMismatch(f"{order.address}: {problem}; it is put into no table")
        sample_ids = value.kept_sample_ids
        columns: dict[str, Column] = {
            "sequence": np.full(len(sample_ids), sequence),
            "epoch": np.full(len(sample_ids), value.epoch),
            "sample_id": sample_ids,
            "view_seed": np.full(len(sample_ids), value.view_seed),
            "teacher": np.full(len(sample_ids), teacher.name),
            "generation": np.full(len(sample_ids), value.generation),
        }
        if self._labels is not None:
            columns["label"] = labels_patiently(self._labels, sample_ids)
        for table, output in zip(self._tables, value.outputs, strict=True):
            rows = output.values()
            columns |= table.of(with_head(rows, self._heads[table.name]) if table.name in self._heads else rows)
        return columns


def _joined(parts: Sequence[dict[str, Column]]) -> dict[str, Column]:
    joined: dict[str, Column] = {}
    for name in parts[0]:
        columns = [each[name] for each in parts]
        lists = [each for each in columns if isinstance(each, Lists)]
        joined[name] = (
            Lists.joined(lists) if lists else np.concatenate([each for each in columns if not isinstance(each, Lists)])
        )
    return joined


def _arrow(column: Column, field: Any) -> Any:
    """Return a column as pyarrow has it; a label below 0 is none."""
    import pyarrow as pa

    if isinstance(column, Lists):
        offsets = np.zeros(len(column.lengths) + 1, np.int32)
        np.cumsum(column.lengths, out=offsets[1:])
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(column.values), type=field.type)
    return pa.array(column, field.type, mask=column < 0 if field.name == "label" else None)


def _about(path: Path) -> tuple[dict[str, Any], int] | None:
    """Return what a file of ours that is there says of itself, and its rows; None where there is none.

    Raises:
        CannotWrite: another file lies there, or it cannot be read.
    """
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    refuse_irregular(path, CannotWrite)  # a pipe would be waited for in vain
    try:
        metadata = pq.read_metadata(path)
        about = json.loads(metadata.metadata[_ABOUT])
        if not isinstance(about, dict):
            raise ValueError("it says nothing of itself")
    except Exception as error:  # pyarrow's, the system's, or of what somebody else wrote
        raise CannotWrite(
            f"{path}: is there, and none that this command wrote ({said(error)}); remove it, or give another folder"
        ) from error
    return about, metadata.num_rows


def _earlier(there: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a file holds fewer orders of the same teacher, or the same ones."""
    same = ("stream_id", "manifest_sha256", "teacher", "model_sha256")
    return all(there.get(key) == now[key] for key in same) and _whole(there.get("orders")) <= now["orders"]


def _whole(value: object) -> float:
    return value if isinstance(value, int) else float("inf")
