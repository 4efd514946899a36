"""Avro single-object encoding: C3 01, the schema's CRC-64-AVRO fingerprint, the body.

A registry is a folder of `<name>.<version>.avsc`. Writers use the version that their stream's manifest pins; readers
know all of them and resolve what they read to the newest, so a field that a version adds needs a default; what more a
version changes stands in lifts.py.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import fastavro
from fastavro.schema import fingerprint as avro_fingerprint
from fastavro.schema import to_parsing_canonical_form

from schemas.errors import ConfigError, DecodeError, EncodeError, UnknownSchema
from schemas.lifts import LIFTS
from schemas.names import did_you_mean

Datum = dict[str, Any]
T = TypeVar("T")

_MARKER = b"\xc3\x01"
_HEADER = 10
"""Bytes before the body: the marker and the fingerprint."""

NEWEST: Mapping[str, str] = {}
"""Pins nothing: each record is written in the newest version of its schema."""


@dataclass(frozen=True, slots=True, eq=False)
class _Version:
    name: str
    version: int
    fingerprint: bytes
    parsed: Any


@dataclass(frozen=True, slots=True, eq=False)
class _Schemas:
    by_name: dict[str, dict[int, _Version]]
    newest: dict[str, _Version]
    by_fingerprint: dict[bytes, _Version]


class Registry:
    """All versions of all schemas in `folder`; read at first use."""

    def __init__(self, folder: Path = Path(__file__).parent / "avsc") -> None:
        self.folder = folder

    @cached_property
    def _schemas(self) -> _Schemas:
        by_name: dict[str, dict[int, _Version]] = {}
        by_fingerprint: dict[bytes, _Version] = {}
        for path in sorted(self.folder.glob("*.avsc")):
            name, _, number = path.stem.partition(".")
            if not name or not number.isdecimal():
                raise ConfigError(f"{path}: the name of a schema file is <name>.<version>.avsc")
            schema = json.loads(path.read_text(encoding="utf-8"))
            crc = bytes.fromhex(avro_fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))
            version = _Version(name, int(number), crc, fastavro.parse_schema(schema))
            if crc in by_fingerprint:
                raise ConfigError(f"{path}: a reader cannot tell it from version {by_fingerprint[crc].version}")
            by_fingerprint[crc] = version
            by_name.setdefault(name, {})[version.version] = version
        newest = {name: versions[max(versions)] for name, versions in by_name.items()}
        return _Schemas(by_name, newest, by_fingerprint)

    def _newest(self, name: str) -> _Version:
        try:
            return self._schemas.newest[name]
        except KeyError:
            raise ConfigError(f"no schema {name!r}: {did_you_mean(name, self._schemas.newest)}") from None

    def fingerprint(self, name: str, version: int | None = None) -> bytes:
        """Return the 8 bytes, little-endian, of one version (None: the newest); an unknown one raises ConfigError."""
        newest = self._newest(name)
        if version is None:
            return newest.fingerprint
        try:
            return self._schemas.by_name[name][version].fingerprint
        except KeyError:
            raise ConfigError(f"no version {version} of schema {name!r}; the newest is {newest.version}") from None

    def version(self, name: str, pinned: Mapping[str, str] = NEWEST) -> int:
        """Return which version of a schema a manifest pins; raises as `schema`."""
        return self._pinned(name, pinned).version

    def schema(self, name: str, pinned: Mapping[str, str] = NEWEST) -> dict[str, Any]:
        """Return one schema as its file has it, in the version that a manifest pins, for readers without this folder.

        Raises:
            ConfigError: an unknown schema or fingerprint.
        """
        found = self._pinned(name, pinned)
        text = (self.folder / f"{name}.{found.version}.avsc").read_text(encoding="utf-8")
        schema: dict[str, Any] = json.loads(text)
        return schema

    def header(self, name: str, pinned: Mapping[str, str] = NEWEST) -> bytes:
        """Return the 10 bytes that stand before a record's body; raises as `schema`."""
        return _MARKER + self._pinned(name, pinned).fingerprint

    def fingerprints(self) -> dict[str, str]:
        """Return the newest fingerprint of each name in hex: what a manifest pins."""
        return {name: version.fingerprint.hex() for name, version in sorted(self._schemas.newest.items())}

    def unknown(self, pinned: Mapping[str, str]) -> dict[str, str]:
        """Return those of a manifest's fingerprints (name -> hex) that no schema here has: a newer program's."""
        return {name: crc for name, crc in sorted(pinned.items()) if self._of_hex(name, crc) is None}

    def _of_hex(self, name: str, crc: str) -> _Version | None:
        versions = self._schemas.by_name.get(name, {}).values()
        return next((version for version in versions if version.fingerprint.hex() == crc), None)

    def _pinned(self, name: str, pinned: Mapping[str, str]) -> _Version:
        newest = self._newest(name)
        version = self._of_hex(name, pinned[name]) if name in pinned else newest
        if version is None:
            raise ConfigError(f"the stream pins {name} {pinned[name]}, which this Distillog does not know")
        return version

    def encode(self, name: str, datum: Datum, pinned: Mapping[str, str] = NEWEST) -> bytes:
        """Return the record's bytes in the version that a manifest pins, so that every reader of its stream knows it.

        Args:
            name: the schema's.
            datum: as the newest version has it.
            pinned: schema name -> fingerprint in hex; a name that is not pinned is written in its newest version.

        Raises:
            EncodeError: the datum does not fit, or holds what the pinned version has no field for.
            ConfigError: an unknown schema or fingerprint.
        """
        newest = self._newest(name)
        version = self._pinned(name, pinned)
        if version is newest:
            return _write(newest, datum)
        whole = _write(newest, datum)
        raw = _write(version, self._lowered(version, datum))
        # An older version leaves out what it has no field for, and a label may not lose anything on its way.
        held = self.decode(name, raw, name)
        if _write(newest, held) != whole:
            lost = dict.fromkeys(_unlike(self.decode(name, whole, name), held, name))
            raise EncodeError(
                f"{name}: version {version.version}, which the stream pins, cannot hold all of it: it has no room for "
                f"{', '.join(lost)}; the stream is too old for that, make it anew"
            )
        return raw

    def _lowered(self, version: _Version, datum: Datum) -> Datum:
        """Return what an older version can hold of a datum of the newest."""
        for number in range(self._newest(version.name).version - 1, version.version - 1, -1):
            if lift := LIFTS.get((version.name, number)):
                datum = lift.down(datum)
        return datum

    def _resolved(self, body: io.BytesIO, written: _Version) -> Datum:
        """Read one datum, as the newest version of its schema has it."""
        newest = self._newest(written.name)
        if not any((written.name, version) in LIFTS for version in range(written.version, newest.version)):
            datum: Datum = fastavro.schemaless_reader(
                body, written.parsed, None if written is newest else newest.parsed
            )
            return datum
        # Step by step: a lift takes what the version before it says, which resolved further would be left out.
        following = self._schemas.by_name[written.name][written.version + 1]
        if lift := LIFTS.get((written.name, written.version)):
            datum = lift.up(fastavro.schemaless_reader(body, written.parsed, None))
        else:
            datum = fastavro.schemaless_reader(body, written.parsed, following.parsed)
        lifted = io.BytesIO(_write(following, datum))
        lifted.seek(_HEADER)
        return self._resolved(lifted, following)

    def decode(self, name: str, raw: bytes, address: str) -> Datum:
        """Return the datum of a record of any known version, resolved to the newest.

        Anything else than one whole record of that name raises DecodeError and nothing but it. `address` says where
        the bytes lay (topic, partition and offset, or a file).
        """
        self._newest(name)  # refuses an unknown name
        written = self._schemas.by_fingerprint.get(raw[2:_HEADER]) if raw and raw[:2] == _MARKER else None
        if written is None or written.name != name:
            _refuse_header(name, raw, address, written)
        body = io.BytesIO(raw)
        body.seek(_HEADER)
        try:
            datum = self._resolved(body, written)
        except Exception as error:  # corrupt bytes raise whatever fastavro meets first, MemoryError included
            raise DecodeError(address, f"the {name} is cut or corrupt ({_reason(error)})", raw) from error
        if body.tell() != len(raw):
            raise DecodeError(address, f"{len(raw) - body.tell()} bytes too many behind the {name}", raw)
        return datum

    def decode_as(self, name: str, build: Callable[[Datum], T], raw: bytes, address: str) -> T:
        """Return `build(datum)` of the decoded record; whatever else `build` raises becomes a DecodeError."""
        datum = self.decode(name, raw, address)
        try:
            return build(datum)
        except DecodeError:
            raise
        except Exception as error:  # `build` meets values that no writer of ours wrote: none may escape as a crash
            raise DecodeError(address, f"the {name} is corrupt: {_reason(error)}", raw) from error


def _unlike(wanted: Any, held: Any, name: str) -> Iterator[str]:
    """Yield the names of the fields in which two datums of a schema differ, the innermost."""
    if isinstance(wanted, dict) and isinstance(held, dict):
        for field, value in wanted.items():
            yield from _unlike(value, held.get(field), field)
    elif isinstance(wanted, list) and isinstance(held, list) and len(wanted) == len(held) and wanted != held:
        for one, other in zip(wanted, held, strict=True):
            yield from _unlike(one, other, name)
    elif wanted != held:
        yield name


def _write(version: _Version, datum: Datum) -> bytes:
    out = io.BytesIO()
    out.write(_MARKER + version.fingerprint)
    try:
        fastavro.schemaless_writer(out, version.parsed, datum)
    except Exception as error:  # fastavro names no errors of its own: a wrong datum raises whatever it meets first
        raise EncodeError(f"{version.name}: {_reason(error)}") from error
    return out.getvalue()


def _refuse_header(name: str, raw: bytes, address: str, written: _Version | None) -> NoReturn:
    """Raise the DecodeError that says what stands where the header of a `name` was expected."""
    if not raw:
        reason = f"an empty value, not a {name}"
    elif raw[:2] != _MARKER[: len(raw)]:
        reason = f"no Avro record: it does not begin with C3 01, so it is not a {name}"
    elif len(raw) < _HEADER:
        reason = f"the {name} is cut: {len(raw)} bytes, less than a header"
    elif written is None:
        raise UnknownSchema(address, raw[2:_HEADER].hex(), name, raw)
    else:
        reason = f"a {written.name}, not a {name}"
    raise DecodeError(address, reason, raw or b"")


def _reason(error: Exception) -> str:
    """Return an error as one line; some of fastavro's have no text."""
    return " ".join(str(error).split())[:200] or type(error).__name__


REGISTRY = Registry()
