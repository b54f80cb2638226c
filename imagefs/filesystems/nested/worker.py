"""The process in which a C library reads a volume; started by its file name, it imports nothing of ours.

It speaks with its starter through standard input and output. A message is its length and a letter (``<IB``),
then as many bytes. The starter asks ``O`` (open, JSON) and ``R`` (read: item, offset, length); while it
answers, the worker asks ``N`` (bytes of a file: file, offset, length) and is given ``D`` (data) or
``F`` (they can't be had). Answers are ``J`` (JSON), ``D`` (data) or ``E`` (an error's text).

Who starts it believes nothing that arrives from here: a library that was led astray can only send bytes.
"""

import json
import os
import signal
import struct
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

if sys.platform == "linux":
    import resource

HEADER = struct.Struct("<IB")
READ = struct.Struct("<IQI")  # item or file, offset, length
OPEN, ASK, NEED, DATA, FAILED, JSON, ERROR = b"ORNDFJE"

_CHUNK = 1 << 17  # bytes of a file that are asked for at once
_CHUNKS = 32  # kept
_BAD_CHUNKS = 4096  # remembered: only exactly what is needed is asked for in them
_OWN_LIMIT = 300  # seconds of one step, when nobody is there any more who would end it


class Channel:
    """The pipes to the starter."""

    def receive(self) -> tuple[int, bytes]:
        """Return the next message; the process ends with its starter."""
        length, kind = HEADER.unpack(self._exactly(HEADER.size))
        return kind, self._exactly(length)

    def send(self, kind: int, *parts: bytes) -> None:
        """Send a message."""
        message = memoryview(HEADER.pack(sum(map(len, parts)), kind) + b"".join(parts))
        while message:
            message = message[os.write(1, message) :]

    def _exactly(self, length: int) -> bytes:
        pieces = []
        while length:
            piece = os.read(0, min(length, 1 << 20))
            if not piece:
                os._exit(0)
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)


class RemoteFile:
    """A file of the starter's, as the libraries ask for one."""

    def __init__(self, channel: Channel, number: int, size: int) -> None:
        self._channel = channel
        self._number = number
        self._size = size
        self._position = 0
        self._chunks: OrderedDict[int, bytes | None] = OrderedDict()  # None: not to be had whole
        self._good = 0

    def get_size(self) -> int:
        """Return the bytes of the file."""
        return self._size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return bytes from the position on, fewer at the end."""
        left = max(0, self._size - self._position)
        length = left if size < 0 else min(size, left)
        data = self._bytes(self._position, length)
        self._position += length
        return data

    def close(self) -> None:
        """Do nothing."""

    def _bytes(self, offset: int, length: int) -> bytes:
        if length >= _CHUNK:
            step = _CHUNK * 8
            return b"".join(
                self._needed(at, min(step, offset + length - at))
                for at in range(offset, offset + length, step)
            )
        pieces = []
        while length:
            index, inside = divmod(offset, _CHUNK)
            step = min(length, _CHUNK - inside)
            chunk = self._chunk(index)
            piece = self._needed(offset, step) if chunk is None else chunk[inside : inside + step]
            pieces.append(piece)
            offset, length = offset + step, length - step
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _chunk(self, index: int) -> bytes | None:
        if index in self._chunks:
            self._chunks.move_to_end(index)
            return self._chunks[index]
        at = index * _CHUNK
        try:
            chunk = self._needed(at, min(_CHUNK, self._size - at), maybe=1)
        except OSError:
            chunk = None
        self._chunks[index] = chunk
        self._good += chunk is not None
        while self._good > _CHUNKS or len(self._chunks) > _BAD_CHUNKS:
            _, gone = self._chunks.popitem(last=False)
            self._good -= gone is not None
        return chunk

    def _needed(self, offset: int, length: int, maybe: int = 0) -> bytes:
        if not length:
            return b""
        self._channel.send(NEED, READ.pack(self._number, offset, length), bytes([maybe]))
        _limit(0)
        kind, data = self._channel.receive()
        _limit(_OWN_LIMIT)
        if kind != DATA or len(data) != length:
            raise OSError("not to be had")
        return data


Opened = tuple[dict[str, Any], list[Any]]  # what is told of it, and the items that are read


def _open_shadows(files: list[RemoteFile], _: list[bytes]) -> Opened:
    import pyvshadow  # noqa: PLC0415  (each process needs one of the libraries)

    volume = pyvshadow.volume()
    volume.open_file_object(files[0])
    stores = list(volume.stores)
    told = [
        {
            "size": store.volume_size,
            "created": store.get_creation_time_as_integer(),
            "is_here": bool(store.has_in_volume_data()),
        }
        for store in stores
    ]
    return {"stores": told, "volume": None}, [*stores, volume]


def _open_bitlocker(files: list[RemoteFile], keys: list[bytes]) -> Opened:
    import pybde  # noqa: PLC0415

    volume = pybde.volume()
    volume.open_file_object(files[0])
    method = volume.get_encryption_method()
    protectors = [(protector.type, protector.identifier) for protector in volume.key_protectors]
    for key in keys:
        if not volume.is_locked():
            break
        attempt = pybde.volume()
        try:
            _give_key(attempt, key[:1], key[1:])
        except (OSError, ValueError):
            continue  # no key of this kind
        attempt.open_file_object(files[0])
        volume = attempt
    size = None if volume.is_locked() else volume.get_size()
    return {"method": method, "protectors": protectors, "size": size}, [volume]


def _open_luks(files: list[RemoteFile], keys: list[bytes]) -> Opened:
    import pyluksde  # noqa: PLC0415

    volume = pyluksde.volume()
    volume.open_file_object(files[0])
    for key in keys:
        if not volume.is_locked():
            break
        attempt = pyluksde.volume()
        attempt.set_password(key.decode())
        attempt.open_file_object(files[0])
        volume = attempt
    return {"size": None if volume.is_locked() else volume.get_size()}, [volume]


def _give_key(volume: Any, kind: bytes, key: bytes) -> None:
    if kind == b"R":
        volume.set_recovery_password(key.decode())
    elif kind == b"P":
        volume.set_password(key.decode())
    elif sys.platform == "linux":  # the library opens a file: one that is nowhere
        file = os.memfd_create("key")
        os.write(file, key)
        volume.read_startup_key(f"/proc/self/fd/{file}")
        os.close(file)
    else:
        with tempfile.TemporaryDirectory() as folder:  # Windows opens no file that is to go
            copy = Path(folder, "key")
            copy.touch(0o600)
            copy.write_bytes(key)
            volume.read_startup_key(str(copy))


_OPENERS: dict[str, Callable[[list[RemoteFile], list[bytes]], Opened]] = {
    "shadows": _open_shadows,
    "bitlocker": _open_bitlocker,
    "luks": _open_luks,
}


def _limit(seconds: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _confine(memory: int) -> None:
    """Bound the memory above what is used now, leave no core behind; Control-C is for the starter.

    On Windows the starter has bounded it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Open what the first message tells, then answer reads until the starter closes its pipe."""
    channel = Channel()
    items: list[Any] = []
    while True:
        kind, message = channel.receive()
        _limit(_OWN_LIMIT)
        try:
            if kind == OPEN:
                asked = json.loads(message)
                _confine(asked["memory"])
                files = [RemoteFile(channel, number, size) for number, size in enumerate(asked["sizes"])]
                keys = [bytes.fromhex(key) for key in asked["keys"]]
                told, items = _OPENERS[asked["kind"]](files, keys)
                channel.send(JSON, json.dumps(told).encode())
            else:
                item, offset, length = READ.unpack(message)
                channel.send(DATA, items[item].read_buffer_at_offset(length, offset))
        except (OSError, ValueError, TypeError, SystemError, OverflowError, MemoryError) as error:
            channel.send(ERROR, (" ".join(str(error).split()) or type(error).__name__).encode()[:1000])
        _limit(0)


if __name__ == "__main__":
    main()
