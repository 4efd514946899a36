"""A stream's manifest from its record: refused where only a newer Distillog knows what it announces."""

from __future__ import annotations

from schemas.avro import REGISTRY
from schemas.errors import ManifestMismatch, UnknownSchema
from schemas.manifest import Manifest


def decode_manifest(stream: str, raw: bytes, address: str) -> Manifest:
    """Return the manifest of a stream.

    Raises:
        ManifestMismatch: it, or a record that it announces, is of a schema version that is not known here.
        DecodeError: it is none.
    """
    try:
        manifest = Manifest.decode(raw, address)
        unknown = REGISTRY.unknown(manifest.schema_fingerprints)
    except UnknownSchema as error:
        unknown = {"manifest": error.fingerprint}
    if unknown:
        named = ", ".join(f"{name} {fingerprint}" for name, fingerprint in unknown.items())
        raise ManifestMismatch(
            f"stream {stream!r} was made by a newer Distillog: this one does not know its schemas ({named}); "
            "install the version that made it, or a later one"
        )
    return manifest
