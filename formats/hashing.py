"""MD5 of blocks, which is what the container's speed hangs on: of many at once where they share a processor.

``native/md5_lanes.c`` hashes up to 16 blocks together, some four times as fast as one after the other. It is
there where a compiler was when the package was installed, and used when it agrees with hashlib; else, and for
few blocks, hashlib does it.
"""

import ctypes
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

Buffer = bytes | memoryview
_LIBRARY = Path(__file__).with_name("native") / "md5_lanes.so"
_CHUNK = 64  # bytes; what MD5 takes at a time
_WIDTH = 16  # blocks that are hashed together
_FEW = 2  # blocks up to which hashlib is as quick, also behind full groups

# Addresses of blocks, their number, the length of each -> 16 bytes for each.
Lanes = Callable[[Sequence[int], int], bytes]


def md5(block: Buffer) -> bytes:
    """Return the MD5 of one block."""
    return hashlib.md5(block, usedforsecurity=False).digest()


def md5_of_each(blocks: Sequence[Buffer]) -> list[bytes]:
    """Return the MD5 of each block. The interpreter's lock is released meanwhile; safe from any thread."""
    if _lanes is None or len(blocks) <= _FEW:
        return [md5(block) for block in blocks]
    length = len(blocks[0])
    alike = [number for number, block in enumerate(blocks) if _can_share(block, length)]
    rest = len(alike) % _WIDTH
    alike = alike[: len(alike) - rest] if rest <= _FEW else alike
    found = _lanes([_address(blocks[number]) for number in alike], length) if alike else b""
    if len(alike) == len(blocks):
        return [found[at : at + 16] for at in range(0, len(found), 16)]
    known = {number: found[16 * at : 16 * at + 16] for at, number in enumerate(alike)}
    return [known.get(number) or md5(block) for number, block in enumerate(blocks)]


def _can_share(block: Buffer, length: int) -> bool:
    if len(block) != length or length % _CHUNK or not length:
        return False
    return isinstance(block, bytes) or block.c_contiguous


def _address(block: Buffer) -> int:
    """Return where a block's bytes are; they stay there as long as the caller keeps it."""
    if isinstance(block, bytes):
        return ctypes.cast(ctypes.c_char_p(block), ctypes.c_void_p).value or 0
    if block.readonly:  # which ctypes refuses
        return int(np.frombuffer(block, np.uint8).ctypes.data)
    return ctypes.addressof(ctypes.c_char.from_buffer(block))


def _load(path: Path) -> Lanes | None:
    """Return what hashes many blocks; None where it was not built or can't be believed."""
    try:
        function = ctypes.CDLL(str(path)).md5_lanes
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]

    def lanes(addresses: Sequence[int], length: int) -> bytes:
        count = len(addresses)
        digests = ctypes.create_string_buffer(16 * count)
        if function((ctypes.c_void_p * count)(*addresses), count, length, digests):
            raise ValueError(f"blocks of {length} bytes can't be hashed together")
        return digests.raw

    samples = [bytes((number + 7 * at) % 256 for at in range(192)) for number in range(20)]
    if lanes([_address(sample) for sample in samples], 192) != b"".join(map(md5, samples)):
        log.warning("%s: does not agree with hashlib, and is not used", path)
        return None
    return lanes


_lanes = _load(_LIBRARY)
