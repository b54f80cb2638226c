"""From plain blocks to stored ones: compressed, then encrypted."""

import threading
from collections.abc import Sequence

import zstandard

from formats.mrimgx.cipher import BlockCipher

# Reflect's "medium" is zstd level 1, byte for byte. What its "high" is, nobody published: any level reads.
ZSTD_LEVELS = {"medium": 1, "high": 6}
# Several blocks in one call hold the interpreter's lock half as often; only the library's C build knows it.
_MANY_AT_ONCE = "multi_compress_to_buffer" in zstandard.backend_features

Bytes = bytes | memoryview


class BlockEncoder:
    """Makes stored bytes of plain blocks. Safe from several threads.

    With compression on, every block is one zstd frame with its content size and no checksum, also one that
    grows by it: the vendor's reader expects that.
    """

    def __init__(self, compression: str, cipher: BlockCipher | None = None) -> None:
        self._level = ZSTD_LEVELS.get(compression)
        self._cipher = cipher
        self._local = threading.local()

    def compress(self, blocks: Sequence[Bytes]) -> list[Bytes]:
        """Return one zstd frame for each block, or copies of the blocks where compression is off."""
        if self._level is None:
            return [bytes(block) for block in blocks]
        try:
            compressor: zstandard.ZstdCompressor = self._local.compressor
        except AttributeError:
            compressor = zstandard.ZstdCompressor(self._level, write_checksum=False, write_dict_id=False)
            self._local.compressor = compressor
        if _MANY_AT_ONCE and len(blocks) > 1:
            frames = compressor.multi_compress_to_buffer(list(blocks), threads=1)
            # Segments are buffers, which their type does not tell.
            return [memoryview(frames[at]) for at in range(len(blocks))]  # type: ignore[arg-type]
        return [compressor.compress(block) for block in blocks]

    def encode(
        self, blocks: Sequence[Bytes], disk: int, partition: int, numbers: Sequence[int]
    ) -> list[Bytes]:
        """Return the stored bytes of blocks; the numbers are those of ``BlockCipher.encrypt_block``."""
        stored = self.compress(blocks)
        if self._cipher is None:
            return stored
        encrypt = self._cipher.encrypt_block
        return [
            encrypt(bytes(frame), disk, partition, number)
            for frame, number in zip(stored, numbers, strict=True)
        ]
