"""Decoding what Windows compresses by chunks: XPRESS Huffman and LZX (WOF, WIM), LZNT1 (NTFS).

``native/unpack.c`` does it where there was a compiler when the package was installed, and samples come out
right; else ``unpacking_slow`` does, some hundred times as slowly. libfwnt's binding is not used: of LZX it
decoded some chunks of machine code wrong, without an error, and it took three to five times as long.
"""

import ctypes
import logging
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from formats import unpacking_slow

log = logging.getLogger(__name__)

_LIBRARY = Path(__file__).with_name("native") / "unpack.so"
_EIGHTS = bytes([0x99]) * 256  # the lengths of an XPRESS code whose words all have 9 bits


class Method(IntEnum):
    """How a chunk is compressed."""

    XPRESS_HUFFMAN = 0
    LZX = 1


# Method, input, edges, output, bytes of a chunk -> the first chunk that can't be decoded
Chunks = Callable[[Method, bytes, NDArray[np.uint64], memoryview, int], int]
# Input, bytes wanted at most -> what there is, None for what can't be decoded
Lznt1 = Callable[[bytes, int], bytes | None]


def unpack_chunks(method: Method, data: bytes, edges: NDArray[np.uint64], out: memoryview, chunk: int) -> int:
    """Decode neighbouring chunks into ``out``: ``chunk`` bytes of it each, the last one what is left.

    Chunk n is ``data[edges[n]:edges[n + 1]]``; one as long as what it stands for is not compressed. What is
    left of one behind its last byte is not looked at. Returns how many could be decoded before the first that
    could not; what ``out`` holds from there on is undefined. The interpreter's lock is released meanwhile.
    """
    count = len(edges) - 1
    if not 0 <= (count - 1) * chunk < len(out) <= count * chunk:
        raise ValueError(f"{count} chunks of {chunk} bytes are not {len(out)} bytes")
    return _chunks(method, data, np.ascontiguousarray(edges, np.uint64), out, chunk)


def unpack_lznt1(data: bytes, size: int) -> bytes | None:
    """Return up to ``size`` bytes that were compressed; fewer where the input, or a header of 0, ends them.

    None for what can't be decoded. The interpreter's lock is released meanwhile.
    """
    return _lznt1(data, size)


def _slow_chunks(method: Method, data: bytes, edges: NDArray[np.uint64], out: memoryview, chunk: int) -> int:
    decode = unpacking_slow.lzx if method is Method.LZX else unpacking_slow.xpress_huffman
    places = edges.tolist()
    for number, (start, end) in enumerate(pairwise(places)):
        into = out[number * chunk : (number + 1) * chunk]
        piece = data[start:end]
        if not start <= end <= len(data):
            return number
        try:
            into[:] = piece if len(piece) == len(into) else decode(piece, len(into))
        except (ValueError, IndexError):
            return number
    return len(places) - 1


def _slow_lznt1(data: bytes, size: int) -> bytes | None:
    try:
        return unpacking_slow.lznt1(data, size)
    except (ValueError, IndexError):
        return None


def _native_chunks(
    function: Callable[..., int],
    method: Method,
    data: bytes,
    edges: NDArray[np.uint64],
    out: memoryview,
    chunk: int,
) -> int:
    count = len(edges) - 1
    last = len(out) - (count - 1) * chunk
    into = (ctypes.c_char * len(out)).from_buffer(out)
    return function(method, data, len(data), edges.ctypes.data, count, into, chunk, last)


def _native_lznt1(function: Callable[..., int], data: bytes, size: int) -> bytes | None:
    out = ctypes.create_string_buffer(size)
    made = function(data, len(data), out, size)
    return None if made < 0 else memoryview(out)[:made].tobytes()


def _load(path: Path) -> tuple[Chunks, Lznt1]:
    """Return what decodes: the library, or what stands in where it was not built or can't be believed."""
    try:
        library = ctypes.CDLL(str(path))
        chunks, lznt1 = library.unpack_chunks, library.unpack_lznt1
    except (OSError, AttributeError):
        return _slow_chunks, _slow_lznt1
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    chunks.restype, lznt1.restype = size, ctypes.c_ssize_t
    chunks.argtypes = [ctypes.c_int, ctypes.c_char_p, size, pointer, size, pointer, size, size]
    lznt1.argtypes = [ctypes.c_char_p, size, pointer, size]
    native = partial(_native_chunks, chunks), partial(_native_lznt1, lznt1)
    if not _is_right(*native):
        log.warning("%s: decodes samples wrong, and is not used", path)
        return _slow_chunks, _slow_lznt1
    return native


# A sample of each: what is compressed, and what it stands for. The LZX one is wimlib's; the others are put
# together after [MS-XCA].
_SAMPLES = (
    (Method.XPRESS_HUFFMAN, _EIGHTS + bytes.fromhex("9830718c00f800000a"), b"abc" * 10 + b"a"),
    (
        Method.LZX,
        bytes.fromhex(
            "162000330000000040142000220e22298af84a4adb49641b9f2da552954a552af6d357dd0042000000006000040616"
            "21c5ef7d9f40f000000000000008003084dfa7f47d4ef45d787593534719331a23a6cd89f3eaccf4543e7b4f1ff2c7"
            "f3d24403a3e2b86172e00000"
        ),
        b"\xe8\0\1\0\0".join([b"a rose is "] * 24),
    ),
)
_LZNT1_SAMPLE = bytes.fromhex("05b0086162630320"), b"abc" * 3


def _is_right(chunks: Chunks, lznt1: Lznt1) -> bool:
    for method, packed, plain in _SAMPLES:
        out = memoryview(bytearray(len(plain)))
        if chunks(method, packed, np.array([0, len(packed)], np.uint64), out, 4096) != 1 or out != plain:
            return False
    packed, plain = _LZNT1_SAMPLE
    return lznt1(packed, 4096) == plain


_chunks, _lznt1 = _load(_LIBRARY)
