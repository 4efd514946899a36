"""What stands at the beginning of each captured file: the schema, the stream's manifest and the teacher's record."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from pipeline.captured.container import SYNC_BYTES, decode_long, encode_long, header, read_header
from pipeline.manifest_record import decode_manifest
from schemas.avro import REGISTRY
from schemas.errors import DecodeError
from schemas.records import Manifest, Teacher

_RECORD = "soft_targets"


def captured_schema(manifest: Manifest) -> dict[str, Any]:
    """Return the schema of a file's records: an order's soft targets, and where they lay in the log."""
    return {
        "type": "record",
        "name": "CapturedOrder",
        "namespace": "distillog",
        "doc": "An order's soft targets, and where they lay in the teacher's topic.",
        "fields": [
            {"name": "partition", "type": "int", "doc": "Partition of the topic."},
            {"name": "offset", "type": "long", "doc": "Offset in the partition."},
            {
                "name": _RECORD,
                "type": REGISTRY.schema(_RECORD, manifest.schema_fingerprints),
                "doc": "The record's own body, byte by byte.",
            },
        ],
    }


def file_header(manifest: Manifest, teacher: Teacher, codec: str) -> bytes:
    """Return the header of all files of a teacher.

    The records of manifest and teacher are what the stream's manifest topic holds, as Base64, since readers in other
    languages take metadata for text; beside each is the schema of the version in which it is written.
    """
    pinned = manifest.schema_fingerprints
    metadata = {
        "avro.schema": _text(captured_schema(manifest)),
        "avro.codec": codec,
        "distillog.manifest": base64.b64encode(manifest.encode()).decode(),
        "distillog.manifest.schema": _text(REGISTRY.schema("manifest", pinned)),
        "distillog.teacher": base64.b64encode(teacher.encode(pinned)).decode(),
        "distillog.teacher.schema": _text(REGISTRY.schema("teacher", pinned)),
        "distillog.soft_targets.header": REGISTRY.header(_RECORD, pinned).hex(),
    }
    return header(metadata)


def _text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, separators=(",", ":"))


@dataclass(frozen=True, slots=True, eq=False)
class FileHeader:
    """What a file says of itself."""

    manifest: Manifest
    teacher: Teacher
    codec: str
    sync: bytes
    record_header: bytes
    """The 10 bytes that stand before a record's body in Kafka."""

    @classmethod
    def decode(cls, raw: bytes, stream: str, path: str) -> FileHeader:
        """Undo `file_header`.

        Args:
            raw: its bytes, and no more.
            stream: whose manifest it is said to be.
            path: of the file, for messages.

        Raises:
            DecodeError: it is none, or damaged.
            NeedsNewer, ManifestMismatch: a newer Distillog captured the stream, or made it.
        """
        try:
            metadata = read_header(raw)
            manifest, teacher = (base64.b64decode(metadata[f"distillog.{name}"]) for name in ("manifest", "teacher"))
            codec = metadata["avro.codec"]
            record_header = bytes.fromhex(metadata["distillog.soft_targets.header"])
        except (ValueError, KeyError) as error:
            raise DecodeError(path, f"has no header of a captured file ({error})") from error
        return cls(
            decode_manifest(stream, manifest, path),
            Teacher.decode(teacher, path),
            codec,
            raw[-SYNC_BYTES:],
            record_header,
        )


def captured_record(partition: int, offset: int, body: bytes) -> bytes:
    """Return the record of an order: the body of its Kafka record is copied as it is."""
    return encode_long(partition) + encode_long(offset) + body


def split_record(record: bytes) -> tuple[int, int, bytes]:
    """Undo `captured_record`: partition, offset and body. Raises ValueError where the numbers are cut."""
    partition, at = decode_long(record, 0)
    offset, at = decode_long(record, at)
    return partition, offset, record[at:]
