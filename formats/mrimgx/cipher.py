"""Keys, encryption and decryption of encrypted sets.

Source: Macrium, "Encryption Implementation Overview for Macrium Reflect X",
https://github.com/macrium/mrimgx_file_layout (docs/ENCRYPTION.md).
"""

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from formats.errors import PasswordError
from formats.mrimgx.document import Encryption

KEY_SIZE = 32  # bytes that PBKDF2 gives; AES-128 and AES-192 use the first 16 and 24
AES_BLOCK_SIZE = 16


def key_check(key: bytes) -> bytes:
    """Return what a document records to tell the right password: 32 bytes."""
    return hmac.digest(key, b"", "sha256")


def derive_key(password: str, image_id: bytes, iterations: int) -> bytes:
    """Return a set's 32-byte key. It depends on nothing but the password, the image id and the rounds.

    Raises PasswordError for a text that can't be UTF-8; undecodable bytes of a file or an environment
    variable, which Python hands on as surrogates, are the bytes that they were.
    """
    try:
        secret = password.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise PasswordError("the password can't be written in UTF-8") from None
    salt = hashlib.sha256(image_id).digest()
    return hashlib.pbkdf2_hmac("sha256", secret, salt, iterations, KEY_SIZE)


class BlockCipher:
    """Encrypts and decrypts the blocks of a set. Safe from several threads."""

    def __init__(self, key: bytes, encryption: Encryption, image_id: bytes) -> None:
        self._algorithm = algorithms.AES(key[: encryption.key_size])
        vector_algorithm = algorithms.AES(hashlib.sha256(key).digest())
        self._vector_cipher = Cipher(vector_algorithm, modes.ECB())  # noqa: S305
        self._image_id = image_id
        self._key = key

    def fits(self, encryption: Encryption) -> bool:
        """Whether the key is the one that a file was encrypted with."""
        return hmac.compare_digest(key_check(self._key), encryption.hmac)

    def encrypt_block(self, data: bytes, disk: int, partition: int, block: int) -> bytes:
        """Return a data block's stored bytes: ``data`` padded with zeros to a multiple of 16, encrypted.

        The numbers are those of ``decrypt_block``.
        """
        mode = modes.CBC(self._vector(disk, partition, block))
        encryptor = Cipher(self._algorithm, mode).encryptor()
        return encryptor.update(data + bytes(-len(data) % AES_BLOCK_SIZE)) + encryptor.finalize()

    def decrypt_block(self, data: bytes | memoryview, disk: int, partition: int, block: int) -> bytes:
        """Return a data block's plain bytes with their padding; ``data`` is a multiple of 16 bytes.

        ``disk`` and ``partition`` are the recorded numbers; ``block`` counts from 0 in its own array.
        """
        return self._decrypt(data, modes.CBC(self._vector(disk, partition, block)))

    def decrypt_metadata(self, data: bytes) -> bytes:
        """Return a metadata block's plain bytes; ``data`` is a multiple of 16 bytes."""
        return self._decrypt(data, modes.ECB())  # noqa: S305  (what the format uses)

    def _vector(self, disk: int, partition: int, block: int) -> bytes:
        encryptor = self._vector_cipher.encryptor()
        return encryptor.update(struct.pack("<8sHHI", self._image_id, disk, partition, block))

    def _decrypt(self, data: bytes | memoryview, mode: modes.CBC | modes.ECB) -> bytes:
        decryptor = Cipher(self._algorithm, mode).decryptor()
        return decryptor.update(data) + decryptor.finalize()
