"""Avro object container files with one record in each block, as Avro's specification 1.11 has them.

By hand and by no library: the body of a Kafka record is copied as it is, and a block is read from where an index says.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from schemas.errors import ConfigError
from schemas.names import did_you_mean

MAGIC = b"Obj\x01"
SYNC_BYTES = 16
_LONGEST_VARINT = 10
FRAME_BYTES = 2 * _LONGEST_VARINT
"""Of a block's beginning, in which both of its numbers stand."""
_MOST = (1 << 31) - 1
"""Bytes of a record of Kafka's, at most: what a block unpacks to more than is none of ours."""
_LEVEL = 1
"""Of deflate: a teacher's numbers hardly repeat. float16 log-probabilities come to 0.72 of their size at 52 MB/s of a
core, and at level 6 to 0.69 at 17 MB/s (zstandard: 0.70 at 173 MB/s)."""


@dataclass(frozen=True, slots=True)
class BlockCodec:
    """How the bytes of a block are packed."""

    name: str
    """Avro's."""
    pack: Callable[[bytes], bytes]
    unpack: Callable[[bytes], bytes]
    """Raises an error of the library's own, or ValueError."""


def _null() -> BlockCodec:
    return BlockCodec("null", bytes, bytes)


def _deflate() -> BlockCodec:
    """RFC 1951, without the header and the checksum of zlib."""

    def pack(data: bytes) -> bytes:
        packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        return packer.compress(data) + packer.flush()

    def unpack(data: bytes) -> bytes:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        unpacked = unpacker.decompress(data, _MOST)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError("its packed bytes are cut, too many, or of more than 2 GiB")
        return unpacked

    return BlockCodec("deflate", pack, unpack)


def _zstandard() -> BlockCodec:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]  # Python 3.14
    except ImportError:
        try:
            from backports import zstd  # type: ignore[import-not-found, no-redef, unused-ignore]
        except ImportError:
            raise ConfigError(
                "codec zstandard needs Python 3.14, or `pip install 'distillog[zstd]'`; or use another codec"
            ) from None

    def unpack(data: bytes) -> bytes:
        unpacker = zstd.ZstdDecompressor()
        unpacked: bytes = unpacker.decompress(data, _MOST)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError("its packed bytes are cut, too many, or of more than 2 GiB")
        return unpacked

    return BlockCodec("zstandard", zstd.compress, unpack)


CODECS: Mapping[str, Callable[[], BlockCodec]] = {"deflate": _deflate, "zstandard": _zstandard, "null": _null}
"""Avro's name -> what makes it."""


def block_codec(name: str) -> BlockCodec:
    """Return a codec by Avro's name. Raises ConfigError for one that is unknown, or that this machine does not have."""
    if name not in CODECS:
        raise ConfigError(f"no codec {name!r}: {did_you_mean(name, CODECS)}")
    return CODECS[name]()


def encode_long(value: int) -> bytes:
    """Return Avro's `int` or `long`: zigzag, seven bits a byte, the lowest first."""
    rest = value << 1 if value >= 0 else ((-value) << 1) - 1
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def decode_long(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that stands at a place, and the place behind it. Raises ValueError where none is."""
    rest = shift = 0
    for place in range(at, min(len(data), at + _LONGEST_VARINT)):
        byte = data[place]
        rest |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (rest >> 1) ^ -(rest & 1), place + 1
        shift += 7
    raise ValueError("a number is cut")


def _encode_bytes(data: bytes) -> bytes:
    return encode_long(len(data)) + data


def _decode_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    length, at = decode_long(data, at)
    if not 0 <= length <= len(data) - at:
        raise ValueError("a text is cut")
    return data[at : at + length], at + length


def header(metadata: Mapping[str, str]) -> bytes:
    """Return the beginning of a file.

    Its sync marker is of the metadata, so that equal captures are equal bytes, and other ones have another.
    """
    pairs = (_encode_bytes(key.encode()) + _encode_bytes(metadata[key].encode()) for key in sorted(metadata))
    start = MAGIC + encode_long(len(metadata)) + b"".join(pairs) + encode_long(0)
    return start + hashlib.sha256(start).digest()[:SYNC_BYTES]


def read_header(data: bytes) -> dict[str, str]:
    """Undo `header`; the sync marker is its last 16 bytes. Raises ValueError for anything else than one of ours."""
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("no Avro file: it does not begin with Obj and 1")
    count, at = decode_long(data, len(MAGIC))
    metadata: dict[str, str] = {}
    for _ in range(count):
        key, at = _decode_bytes(data, at)
        value, at = _decode_bytes(data, at)
        metadata[key.decode()] = value.decode()
    end, at = decode_long(data, at)
    if end != 0 or len(metadata) != count or at + SYNC_BYTES != len(data):
        raise ValueError("its header is cut or damaged")
    return metadata


def block(record: bytes, codec: BlockCodec, sync: bytes) -> bytes:
    """Return a block of one record."""
    packed = codec.pack(record)
    return b"".join((encode_long(1), encode_long(len(packed)), packed, sync))


def block_bytes(start: bytes) -> int:
    """Return the length of the block that begins so, with its sync marker. Raises ValueError where none does."""
    count, at = decode_long(start, 0)
    length, at = decode_long(start, at)
    if count != 1 or length < 0:
        raise ValueError(f"a block of {count} records in {length} bytes, not of one")
    return at + length + SYNC_BYTES


def unblock(data: bytes, codec: BlockCodec, sync: bytes) -> bytes:
    """Return the record of a block. Raises ValueError where these bytes are not one whole block of one record."""
    if block_bytes(data[:FRAME_BYTES]) != len(data) or data[-SYNC_BYTES:] != sync:
        raise ValueError("no block of one record, or another file's")
    _, at = decode_long(data, 0)
    _, at = decode_long(data, at)
    try:
        return codec.unpack(data[at:-SYNC_BYTES])
    except Exception as error:  # each library has errors of its own for bytes that were not packed by it
        raise ValueError(f"its block cannot be unpacked: {error}") from error
