"""Reads the idx files of the MNIST family, plain or gzip-compressed, and refuses damaged ones. The checksum is that of
the decompressed contents, since repackaging changes the compressed bytes. The format:
two zero bytes, the type code (8: unsigned bytes), the number of dimensions, big-endian sizes, the data."""

import functools
import gzip
import hashlib
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

_UNSIGNED_BYTE = 8
_CHUNK = 1 << 20


class CorruptFileError(ValueError):
    """A data file does not hold what it should; the message names the file and both checksums."""


def read_contents(path: Path, sha256: str | None = None) -> bytearray:
    """The decompressed contents of `path`.

    Args:
        path: A plain file, or one that is gzip-compressed, whatever its name.
        sha256: Expected checksum of the decompressed contents in hexadecimal; None: not checked.

    Raises:
        CorruptFileError: The checksum is another one, or the compressed stream is broken.
    """
    contents, damage = _decompress(path)
    found = hashlib.sha256(contents).hexdigest()
    if damage is None and sha256 in (None, found):
        return contents
    cause = f" ({damage} after {len(contents)} bytes)" if damage else f" ({len(contents)} bytes)"
    raise CorruptFileError(
        f"{path} is corrupt{cause}: expected sha256 {sha256 or 'not given'} of the decompressed contents, "
        f"found {found}; delete the file and fetch it again"
    )


def parse_idx(contents: bytearray, name: str) -> Tensor:
    """The unsigned-byte tensor that idx `contents` hold; it shares their memory.

    Raises:
        CorruptFileError: The header is not that of an unsigned-byte idx file, or the size does not agree with it.
    """
    dimensions = contents[3] if len(contents) > 3 else 0
    start = 4 + 4 * dimensions
    if bytes(contents[:3]) != bytes((0, 0, _UNSIGNED_BYTE)) or len(contents) < start:
        raise CorruptFileError(f"{name} is no idx file of unsigned bytes: it begins with {bytes(contents[:4])!r}")
    shape = [int.from_bytes(contents[at : at + 4], "big") for at in range(4, start, 4)]
    if len(contents) - start != math.prod(shape):
        raise CorruptFileError(f"{name} holds {len(contents) - start} data bytes, its header says {shape}")
    if math.prod(shape) == 0:  # torch.frombuffer refuses an empty buffer
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(contents, dtype=torch.uint8, offset=start).view(shape)


def load_idx(path: Path, sha256: str | None = None) -> Tensor:
    """Read, check and parse the idx file at `path`: once per process, for as long as the file stays the same.

    The tensor is shared by all callers: do not change it in place.

    Raises:
        CorruptFileError: See `read_contents` and `parse_idx`.
    """
    status = path.stat()
    return _load_once(path.resolve(), sha256, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _load_once(path: Path, sha256: str | None, _size: int, _modified: int) -> Tensor:
    return parse_idx(read_contents(path, sha256), str(path))


def _decompress(path: Path) -> tuple[bytearray, str | None]:
    """All the bytes up to the first damage, and that damage in words."""
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
    contents = bytearray()
    with gzip.open(path) if compressed else path.open("rb") as stream:
        try:
            while chunk := stream.read(_CHUNK):
                contents += chunk
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            return contents, str(error)
    return contents, None
