"""Read at random with 20 threads until the mount goes away: python -m tests.mounters.read_on MOUNTPOINT.

Prints a line when reading has begun; exits 0 when the readers have ended and no byte was wrong.
"""

import os
import random
import sys
import threading
from contextlib import suppress
from pathlib import Path

from tests.mounters.memory_tree import MIB, MemoryTree, content

THREADS = 20


def main() -> int:
    root, tree = Path(sys.argv[1]), MemoryTree()
    inode = tree.resolve("big.bin")
    size = tree.attributes(inode).size
    wrong: list[int] = []
    begun = threading.Barrier(THREADS + 1)

    def read(seed: int) -> None:
        dice = random.Random(seed)
        fd = os.open(root / "big.bin", os.O_RDONLY)
        begun.wait()
        with suppress(OSError):  # the mount is gone
            while True:
                offset, length = dice.randrange(size - MIB), dice.choice((4096, 100_000, MIB))
                data = os.pread(fd, length, offset)
                expected = content(inode, offset, length)
                if data != expected[: len(data)]:
                    wrong.append(offset)
                if len(data) < length:
                    os.fstatvfs(fd)  # fails if that was the end of the mount in the middle of a read
                    wrong.append(offset)
                if dice.random() < 0.1:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.listdir(root / "odd")  # noqa: PTH208
        with suppress(OSError):
            os.close(fd)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    begun.wait()
    print("reading", flush=True)
    for thread in threads:
        thread.join()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
