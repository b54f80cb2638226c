"""Where stored blocks go: the data parts of an image that is being written."""

import errno
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from formats.files import open_file, sync, truncate, write_at, write_many
from formats.mrimgx.encoder import Bytes
from imagefs.errors import RefusedError, TargetWriteError
from imagefs.machine.system_errors import ACCESS_DENIED, is_in_use, is_transient, windows_code

_MOST_BUFFERS = 1024  # of one call
_Written = TypeVar("_Written")


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a write that failed is tried again, and the wait before the first time, which doubles."""

    count: int = 5
    seconds: float = 1.0


def write_error(error: OSError, path: Path) -> TargetWriteError:
    """Return what an OSError of the target means."""
    hint = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "make room, then go on with --resume"
    elif error.errno == errno.EFBIG:
        hint = "the file system takes no file of this size: --split makes smaller ones"
    elif is_in_use(error):
        hint = "another program has it open: end that, or have it leave this folder alone (a virus scanner)"
    elif windows_code(error) == ACCESS_DENIED:
        hint = "it is read-only, this user may not write there, or another program has it open"
    return TargetWriteError(error.strerror or str(error), path=path, hint=hint)


def with_retries(
    action: Callable[[], _Written], retries: Retries, path: Path, wait: Callable[[float], None] = time.sleep
) -> _Written:
    """Do what writes, and again where that fails for a moment; return what it does.

    It must be harmless to be done again. Raises TargetWriteError.
    """
    tries, seconds = retries.count, retries.seconds
    while True:
        try:
            return action()
        except OSError as error:
            if not is_transient(error) or tries <= 0:
                raise write_error(error, path) from error
        wait(seconds)
        tries, seconds = tries - 1, seconds * 2


def write_all(fd: int, data: bytes | memoryview, position: int) -> None:
    """Write bytes at a position, however many calls that takes; OSErrors pass."""
    rest = memoryview(data)
    while rest:
        written = write_at(fd, rest, position)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest, position = rest[written:], position + written


class Syncer:
    """Makes a file durable. Once that has failed it fails for good.

    What the system then holds of the file is unknown, and asked again it may say that all is well.
    """

    def __init__(self) -> None:
        self._failure: TargetWriteError | None = None

    def sync(self, fd: int, path: Path) -> None:
        """Make what was written durable; raises TargetWriteError."""
        if self._failure is not None:
            raise self._failure
        try:
            sync(fd)
        except OSError as error:
            self._failure = write_error(error, path)
            raise self._failure from error


class Parts:
    """The data of an image, in one file or, where ``limit`` bytes are not enough, in several.

    Part i is ``folder/data-i``; what it holds gets the file number ``first_number + i``. Blocks are appended
    without gaps. Nothing is durable before ``sync``. ``lengths`` are those of parts that are there already;
    RefusedError where one is shorter.
    """

    def __init__(
        self,
        folder: Path,
        first_number: int,
        limit: int | None,
        retries: Retries,
        lengths: Sequence[int] = (),
        *,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.folder = folder
        self.first_number = first_number
        self.lengths = list(lengths) or [0]  # bytes of data in each part
        self._limit = limit
        self._retries = retries
        self._wait = wait
        self._fd = -1
        self._syncer = Syncer()
        for part, length in enumerate(self.lengths):
            self._check(part, length)
        self._open()

    def path(self, part: int) -> Path:
        """Return a part's file."""
        return self.folder / f"data-{part}"

    @property
    def number(self) -> int:
        """The file number of the part that is being written."""
        return self.first_number + len(self.lengths) - 1

    @property
    def stored(self) -> int:
        """The bytes in all parts."""
        return sum(self.lengths)

    def append(self, blocks: Sequence[Bytes]) -> list[tuple[int, int]]:
        """Write blocks; return the file number and the position of each. Raises TargetWriteError."""
        places: list[tuple[int, int]] = []
        while len(places) < len(blocks):
            start = position = self.lengths[-1]
            first = len(places)
            for block in blocks[first : first + _MOST_BUFFERS]:
                if self._limit is not None and position and position + len(block) > self._limit:
                    break
                places.append((self.number, position))
                position += len(block)
            fitting = blocks[first : len(places)]
            if fitting:
                self._write(fitting, start, position - start)
                self.lengths[-1] = position
            if len(fitting) < len(blocks[first : first + _MOST_BUFFERS]):
                self.next_part()
        return places

    def next_part(self) -> None:
        """Close the part that is being written and begin another."""
        self.sync()
        self.lengths.append(0)
        self.close()
        self._open()

    def sync(self) -> None:
        """Make what was written durable; a failure is final, the run must not go on."""
        if self._fd >= 0:  # else the last part is closed, and synced before, and the next is not there
            self._syncer.sync(self._fd, self.path(len(self.lengths) - 1))

    def cut(self, lengths: Sequence[int]) -> None:
        """Drop what is behind these lengths, where it is at hand: room for the state on a full target."""
        if self._fd >= 0 and len(lengths) == len(self.lengths):
            with suppress(OSError):
                truncate(self._fd, lengths[-1])

    def close(self) -> None:
        """Close the part that is being written."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, part: int, length: int) -> None:
        try:
            size = self.path(part).stat().st_size
        except FileNotFoundError:
            size = 0
        except OSError as error:
            raise write_error(error, self.path(part)) from error
        if size < length:
            raise RefusedError(
                f"the data of an unfinished backup is cut off at {size}, {length} bytes were stored",
                path=self.path(part),
                hint="--discard drops it",
            )

    def _open(self) -> None:
        path = self.path(len(self.lengths) - 1)
        try:
            self._fd = open_file(path, os.O_RDWR | os.O_CREAT, 0o600)
            truncate(self._fd, self.lengths[-1])
        except OSError as error:
            raise write_error(error, path) from error

    def _write(self, blocks: Sequence[Bytes], position: int, length: int) -> None:
        """Write at a position, and again where that failed: the same bytes at the same place do no harm."""
        path = self.path(len(self.lengths) - 1)
        with_retries(lambda: self._write_once(blocks, position, length), self._retries, path, wait=self._wait)

    def _write_once(self, blocks: Sequence[Bytes], position: int, length: int) -> None:
        written = write_many(self._fd, blocks, position)
        if written < length:
            write_all(self._fd, memoryview(b"".join(blocks))[written:], position + written)
