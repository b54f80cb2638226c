"""Run by Windows' Python: mount the memory tree through mfusepy, and end that."""

import sys
import threading

from mounters.fusepy_windows import open_session
from mounters.session import MountOptions
from tests.mounters.memory_tree import MemoryTree


def main() -> int:
    tree = MemoryTree()
    session = open_session(tree, sys.argv[1], MountOptions(label="Dätä, 1", serial=0x12345678, created=10**9))
    mounted = threading.Event()
    thread = threading.Thread(target=session.run, args=(mounted.set,))
    thread.start()
    try:
        assert mounted.wait(60)
    finally:
        session.stop()
        thread.join(30)
    assert not thread.is_alive()
    session.stop()  # which has nothing to end any more
    assert tree.opened == []
    return 0


if __name__ == "__main__":
    sys.exit(main())
