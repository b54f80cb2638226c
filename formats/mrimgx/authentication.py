"""Tags that authenticate files and stored blocks of an encrypted set. The format has none: these are ours.

Specified in FORMAT.md, "Authentication". All keys come from the set's own key, so that whoever has the
password can check, and nobody else can make, a tag.
"""

import hmac
import struct

TAG_SIZE = 16  # bytes of a stored block's tag
FILE_TAG_SIZE = 32  # bytes of a file's tag
ALGORITHM = "hmac-sha256"

_FILE_KEY = b"imagefs authentication of files 1"
_BLOCK_KEY = b"imagefs authentication of blocks 1"
_FILE_MARK = b"imagefs file 1\0"
_FILE_HEAD = struct.Struct("<8sHQ")  # image id, file number, data length


class FileTag:
    """The tag of one file, as its bytes are passed through. For one thread."""

    def __init__(self, key: bytes, head: bytes) -> None:
        self._hmac = hmac.new(key, head, "sha256")

    def update(self, data: bytes | memoryview) -> None:
        """Go on with the file's next bytes."""
        self._hmac.update(data)

    def digest(self) -> bytes:
        """Return the tag of all bytes so far: 32 bytes."""
        return self._hmac.digest()


class AuthenticationKeys:
    """Makes the tags of a set, from its 32-byte key (``cipher.derive_key``). Safe from several threads."""

    def __init__(self, set_key: bytes) -> None:
        self._file_key = hmac.digest(set_key, _FILE_KEY, "sha256")
        self._block_key = hmac.digest(set_key, _BLOCK_KEY, "sha256")

    def block_tag(self, stored: bytes | memoryview) -> bytes:
        """Return the 16-byte tag of a block as it is stored: compressed, padded and encrypted."""
        return hmac.digest(self._block_key, stored, "sha256")[:TAG_SIZE]

    def file_tag(self, image_id: bytes, file_number: int, data_length: int) -> FileTag:
        """Return the beginning of a file's tag.

        ``image_id`` are its 8 bytes, ``data_length`` the bytes from the file's start that block tags cover.
        What is to be passed through: the bytes from ``data_length`` up to the header of $IFSAUTH, then
        the 20 bytes of the footer.
        """
        head = _FILE_MARK + _FILE_HEAD.pack(image_id, file_number, data_length)
        return FileTag(self._file_key, head)
