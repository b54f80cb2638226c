"""Mount as an ordinary user: python -m tests.mounters.as_user FOLDER MECHANISM; exits 0 if all went well."""

import os
import signal
import sys
import time
from pathlib import Path

from mounters.controller import MountError, start_in_background, unmount
from mounters.mountpoints import is_mounted
from tests.mounters.memory_tree import MemoryTree
from tests.mounters.mounting import argv, process_runs


def main() -> None:
    folder, mechanism = Path(sys.argv[1]), sys.argv[2]
    assert os.geteuid() != 0
    try:
        start_in_background(argv(folder, mechanism, "allow_other"), 30)
    except MountError as error:
        assert "user_allow_other" in str(error), error
    else:
        raise AssertionError("allow_other was not refused")
    pid = start_in_background(argv(folder, mechanism), 30).pid
    try:
        tree = MemoryTree()
        # Modes and owners are of the image; the mount is the user's alone.
        assert (folder / "big.bin").read_bytes() == tree.bytes_of("big.bin")
        assert (folder / "dir/sub/leaf.txt").read_bytes() == tree.bytes_of("dir/sub/leaf.txt")
        os.kill(pid, signal.SIGKILL)
        unmount(folder)
        assert not is_mounted(str(folder))
        pid = start_in_background(argv(folder, mechanism), 30).pid
        fd = os.open(folder / "big.bin", os.O_RDONLY)
        try:
            unmount(folder)
        except MountError as error:
            assert "force" in str(error), error
        else:
            raise AssertionError("a mount in use was unmounted")
        os.close(fd)
        unmount(folder)
        pid = start_in_background(argv(folder, mechanism), 30).pid
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while process_runs(pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not is_mounted(str(folder))
    finally:
        if is_mounted(str(folder)):
            unmount(folder, force=True)
        if process_runs(pid):
            os.kill(pid, signal.SIGTERM)


if __name__ == "__main__":
    main()
