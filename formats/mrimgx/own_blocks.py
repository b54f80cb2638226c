"""The $IMAGEFS block: what imagefs says of a file beyond what the format has a place for.

Specified in FORMAT.md, "Blocks of our own".
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from formats.errors import DamagedError, UnsupportedError
from formats.mrimgx.authentication import ALGORITHM, FILE_TAG_SIZE

_VERSION = 1
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class UnreadableSource:
    """Bytes of the source that could not be read; they are stored as zeros."""

    disk: int  # its position in the document
    partition: int  # its position in the disk
    offset: int  # bytes from the partition's start
    length: int  # bytes


@dataclass(frozen=True, slots=True)
class AuthenticationRecord:
    """What an authenticated file says of its own tag and of its set."""

    data_length: int  # bytes from the file's start that blocks fill; what follows, the file's tag covers
    files: frozenset[int]  # the numbers of the files that were written in one run with this one
    members: Mapping[int, bytes]  # file number -> tag of every other authenticated file at that time


@dataclass(frozen=True, slots=True)
class OwnRecord:
    """The content of an $IMAGEFS block; a file without one has said nothing."""

    excluded: tuple[str, ...] = ()  # patterns of files whose contents were left out as asked
    left_out: tuple[str, ...] = ()  # paths of files whose contents were left out
    unreadable: tuple[UnreadableSource, ...] = ()
    authentication: AuthenticationRecord | None = field(default=None)


def parse_own(data: bytes, path: Path) -> OwnRecord:
    """Return what an $IMAGEFS payload says. Keys that are not known are passed over.

    Raises DamagedError where it is not what the specification says, UnsupportedError for a later version.
    """
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"the $IMAGEFS block is not JSON: {error}", path=path) from error
    root = _Object(loaded, "the block", path)
    version = root.integer("version")
    if version != _VERSION:
        raise UnsupportedError(f"the $IMAGEFS block has version {version}", path=path)
    authentication = root.value.get("authentication")
    return OwnRecord(
        excluded=root.texts("excluded"),
        left_out=root.texts("left_out"),
        unreadable=tuple(
            UnreadableSource(*(entry.integer(key) for key in ("disk", "partition", "offset", "length")))
            for entry in root.objects("unreadable")
        ),
        authentication=(
            _authentication(_Object(authentication, "authentication", path))
            if authentication is not None
            else None
        ),
    )


def _authentication(record: "_Object") -> AuthenticationRecord:
    algorithm = record.value.get("algorithm")
    if algorithm != ALGORITHM:
        raise UnsupportedError(f"authentication by {algorithm!r} is not known", path=record.path)
    members = {}
    for entry in record.objects("members"):
        number = entry.integer("file_number", highest=65535)
        if number in members:
            raise record.wrong("members", "a list of different files")
        members[number] = entry.tag("tag")
    files = record.value.get("files")
    if not isinstance(files, list) or not all(type(item) is int and 0 <= item <= 65535 for item in files):
        raise record.wrong("files", "a list of file numbers")
    return AuthenticationRecord(record.integer("data_length"), frozenset(files), members)


class _Object:
    """A JSON object whose values are taken by key and kind."""

    def __init__(self, value: object, place: str, path: Path) -> None:
        self.place = place
        self.path = path
        self.value: dict[str, Any] = value if isinstance(value, dict) else {}
        if value is not self.value:
            raise self.wrong("", "an object")

    def wrong(self, key: str, wanted: str) -> DamagedError:
        place = f"{self.place}.{key}" if key else self.place
        return DamagedError(f"$IMAGEFS: {place} is not {wanted}", path=self.path)

    def integer(self, key: str, *, highest: int = _LARGEST) -> int:
        value = self.value.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= highest:
            raise self.wrong(key, f"a whole number from 0 to {highest}")
        return value

    def tag(self, key: str) -> bytes:
        value = self.value.get(key)
        try:
            tag = bytes.fromhex(value) if isinstance(value, str) else b""
        except ValueError:
            tag = b""
        if len(tag) != FILE_TAG_SIZE:
            raise self.wrong(key, "64 hex digits")
        return tag

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._list(key)
        if not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of texts")
        # JSON can spell halves of characters, which nobody could print.
        return tuple(item.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for item in value)

    def objects(self, key: str) -> Iterable["_Object"]:
        return [
            _Object(item, f"{self.place}.{key}[{at}]", self.path) for at, item in enumerate(self._list(key))
        ]

    def _list(self, key: str) -> list[Any]:
        value = self.value.get(key, [])
        if not isinstance(value, list):
            raise self.wrong(key, "a list")
        return value
