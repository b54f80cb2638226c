"""A file system that passes everything on to a folder: it keeps a log, or can't read some bytes of a file.

As a program it is mounted until its mount point is unmounted.
"""

import errno
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mounters.fusepy_mount import mfusepy  # with the library that it chooses: a process has one
from tests.conftest import need_fuse

# A name, its arguments; bytes are what was written.
Operation = tuple[Any, ...]


@contextmanager
def faulty(
    backing: Path,
    mountpoint: Path,
    *,
    log: Path | None = None,
    bad: Sequence[tuple[int, int]] = (),
    direct_io: bool = False,
) -> Iterator[Path]:
    """Mount the folder; ``bad`` are (offset, length) of bytes that no file of it gives."""
    need_fuse()
    mountpoint.mkdir(exist_ok=True)
    rules = {"log": str(log or ""), "bad": list(bad), "direct_io": direct_io}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.imagefs.imaging.faulty_fs", backing, mountpoint, json.dumps(rules)],
        cwd=Path(__file__).parents[3],
    ) as process:
        try:
            end = time.monotonic() + 30
            while not mountpoint.is_mount():
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.01)
            yield mountpoint
        finally:
            subprocess.run(["umount", "--lazy", mountpoint], check=False, capture_output=True)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def logged(log: Path) -> list[Operation]:
    """Return what was done, in its order."""
    found: list[Operation] = []
    with log.open("rb") as stream:
        while True:
            try:
                found.append(pickle.load(stream))
            except EOFError:
                return found


class _Passing(mfusepy.Operations):  # type: ignore[misc,name-defined]
    use_ns = True

    def __init__(self, backing: str, rules: dict[str, Any]) -> None:
        self._backing = backing
        self._bad = rules["bad"]
        self._log = open(rules["log"], "ab", buffering=0) if rules["log"] else None  # noqa: SIM115, PTH123

    def _real(self, path: str) -> str:
        return self._backing + path

    def _note(self, *operation: Any) -> None:
        if self._log is not None:
            self._log.write(pickle.dumps(operation))

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.lstat(self._real(path))
        names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino", "st_blocks")
        times = {f"st_{name}": getattr(found, f"st_{name}_ns") for name in ("atime", "mtime", "ctime")}
        return {name: getattr(found, name) for name in names} | times

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *(each.name for each in Path(self._real(path)).iterdir())]

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._backing)
        return {"f_bsize": found.f_bsize, "f_blocks": found.f_blocks, "f_bavail": found.f_bavail}

    def open(self, path: str, flags: int) -> int:
        assert not flags & os.O_TRUNC  # comes as truncate
        return os.open(self._real(path), flags)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        fd = os.open(self._real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        self._note("create", path)
        return fd

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        if any(offset < start + length and start < offset + size for start, length in self._bad):
            raise OSError(errno.EIO, "bad")
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._note("write", path, offset, bytes(data))
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._note("truncate", path, length)
        os.truncate(self._real(path), length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._note("fsync", path)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self._note("fsyncdir", path)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        Path(self._real(path)).mkdir(mode)
        self._note("mkdir", path)
        return 0

    def rmdir(self, path: str) -> int:
        Path(self._real(path)).rmdir()
        self._note("rmdir", path)
        return 0

    def unlink(self, path: str) -> int:
        Path(self._real(path)).unlink()
        self._note("unlink", path)
        return 0

    def rename(self, old: str, new: str) -> int:
        Path(self._real(old)).rename(self._real(new))
        self._note("rename", old, new)
        return 0

    def link(self, target: str, source: str) -> int:
        os.link(self._real(source), self._real(target))
        self._note("link", source, target)
        return 0


if __name__ == "__main__":
    _rules = json.loads(sys.argv[3])
    mfusepy.FUSE(
        _Passing(sys.argv[1], _rules),
        sys.argv[2],
        foreground=True,
        nothreads=True,
        **({"direct_io": True} if _rules["direct_io"] else {}),
    )
