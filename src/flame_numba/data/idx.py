"""The idx format of the MNIST family: a big-endian header, then the bytes of one array.

Header: two zero bytes, a type code (8 = unsigned byte, the only one these sets use), the number of
dimensions, then each dimension as a 32-bit integer. (LeCun, Cortes & Burges 1998)
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import FlameError

UNSIGNED_BYTE = 8
GZIP_MAGIC = b"\x1f\x8b"


class DatasetError(FlameError, ValueError):
    """The files of a data set are absent, damaged or not what they should be."""


def read_bytes(path: Path) -> bytes:
    """The file's content, unpacked if it is gzipped. Raises DatasetError if it is cut short or unreadable."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == GZIP_MAGIC else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(f"{path}: the gzip file is truncated or damaged ({error})") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse(content: bytes, shape: tuple[int, ...], name: str) -> NDArray[np.uint8]:
    """The array in `content`, which must hold unsigned bytes of exactly this shape. `name` is for messages."""
    header = 4 + 4 * len(shape)
    if len(content) < header:
        raise DatasetError(f"{name}: truncated: {len(content)} bytes, the header alone has {header}")
    magic = bytes([0, 0, UNSIGNED_BYTE, len(shape)])
    if content[:4] != magic:
        raise DatasetError(
            f"{name}: wrong magic number 0x{content[:4].hex()}; "
            f"an idx file of {len(shape)}-d unsigned bytes begins with 0x{magic.hex()}"
        )
    found = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4))
    if found != shape:
        raise DatasetError(f"{name}: wrong size: it holds an array {found}, expected {shape}")
    expected = header + math.prod(shape)
    if len(content) != expected:
        problem = "truncated" if len(content) < expected else "too long"
        raise DatasetError(f"{name}: {problem}: {len(content)} bytes, expected {expected} for an array {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()  # frombuffer's is read-only
