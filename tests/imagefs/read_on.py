"""Read a mounted image with twenty threads: python -m tests.imagefs.read_on ROOT MANIFEST SECONDS.

MANIFEST is JSON: "files" maps paths to hashes, "raw" maps paths to files of the same bytes, "folders" maps
directories to their names. Says "reading" once all threads have read something right. Ends with 0 after
SECONDS; with 0 SECONDS it reads until every thread has met an error of a mount that has gone. Wrong bytes,
or an error before that, end it with 1.
"""

import errno
import hashlib
import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

THREADS = 20
GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENOENT, errno.ENODEV}


class Reader(threading.Thread):
    def __init__(self, root: Path, manifest: dict[str, Any], seed: int, deadline: float | None) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.manifest = manifest
        self.random = random.Random(seed)
        self.deadline = deadline
        self.rounds = 0
        self.problem = ""

    def run(self) -> None:
        while self.deadline is None or time.monotonic() < self.deadline:
            try:
                self.read_something()
            except OSError as error:
                if self.deadline is not None or not self.rounds or error.errno not in GONE:
                    self.problem = repr(error)
                return
            except AssertionError as error:
                self.problem = f"wrong: {error}"
                return
            self.rounds += 1

    def read_something(self) -> None:
        kind = self.random.choice(["files", "files", "raw", "folders"])
        path, expected = self.random.choice(list(self.manifest[kind].items()))
        if kind == "folders":
            assert sorted(os.listdir(self.root / path)) == expected, path  # noqa: PTH208
            return
        fd = os.open(self.root / path, os.O_RDONLY)
        try:
            if kind == "files":
                digest = hashlib.sha256()
                while data := os.read(fd, 300_000):
                    digest.update(data)
                assert digest.hexdigest() == expected, path
            else:
                self.read_pieces(fd, path, expected)
            # Else the kernel would answer from what it has, and the mount would have nothing to do.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            try:
                os.close(fd)
            except OSError:
                if self.deadline is not None:
                    raise

    def read_pieces(self, fd: int, path: str, same: str) -> None:
        size = os.fstat(fd).st_size
        with Path(same).open("rb") as source:
            for _ in range(8):
                offset, length = self.random.randrange(size), self.random.choice([1, 4096, 70_000, 1 << 20])
                source.seek(offset)
                expected, received = source.read(length), b""
                while len(received) < len(expected):  # a mount that goes cuts a read short before it fails
                    part = os.pread(fd, length - len(received), offset + len(received))
                    assert part, f"{path} ends at {offset + len(received)}"
                    received += part
                assert received == expected, f"{path} at {offset}"


def main() -> int:
    root, manifest, seconds = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), float(sys.argv[3])
    deadline = time.monotonic() + seconds if seconds else None
    readers = [Reader(root, manifest, seed, deadline) for seed in range(THREADS)]
    for reader in readers:
        reader.start()
    while not all(reader.rounds or not reader.is_alive() for reader in readers):
        time.sleep(0.01)
    print("reading", flush=True)
    for reader in readers:
        reader.join()
    problems = [reader.problem for reader in readers if reader.problem]
    print(sum(reader.rounds for reader in readers), *problems, sep="\n", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
