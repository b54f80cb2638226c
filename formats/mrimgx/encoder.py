"""From plain blocks to stored ones: compressed, then encrypted."""

import threading

import zstandard

from formats.mrimgx.cipher import BlockCipher

# Reflect's "medium" is zstd level 1, byte for byte. What its "high" is, nobody published: any level reads.
ZSTD_LEVELS = {"medium": 1, "high": 6}


class BlockEncoder:
    """Makes stored bytes of plain blocks. Safe from several threads.

    With compression on, every block is one zstd frame with its content size and no checksum, also one that
    grows by it: the vendor's reader expects that.
    """

    def __init__(self, compression: str, cipher: BlockCipher | None = None) -> None:
        self._level = ZSTD_LEVELS.get(compression)
        self._cipher = cipher
        self._local = threading.local()

    def compress(self, data: bytes | memoryview) -> bytes:
        """Return one zstd frame, or the bytes themselves where compression is off."""
        if self._level is None:
            return bytes(data)
        try:
            compressor: zstandard.ZstdCompressor = self._local.compressor
        except AttributeError:
            compressor = zstandard.ZstdCompressor(self._level, write_checksum=False, write_dict_id=False)
            self._local.compressor = compressor
        return compressor.compress(data)

    def encode(self, data: bytes | memoryview, disk: int, partition: int, block: int) -> bytes:
        """Return a block's stored bytes; the numbers as in ``BlockCipher.encrypt_block``."""
        stored = self.compress(data)
        if self._cipher is None:
            return stored
        return self._cipher.encrypt_block(stored, disk, partition, block)
