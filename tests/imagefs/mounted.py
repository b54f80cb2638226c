"""The process that serves a mount of the command line."""

import os
import time
from contextlib import suppress
from pathlib import Path


def serving_processes(mountpoint: Path) -> list[int]:
    """Return the numbers of the processes that serve a mount point, found by their arguments."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                arguments = (folder / "cmdline").read_bytes().split(b"\0")
                if b"--foreground" in arguments and os.fsencode(mountpoint) in arguments:
                    found.append(int(folder.name))
    return found


def wait_until_none_serves(mountpoint: Path, timeout: float = 20.0) -> None:
    """Wait for the end of the processes that serve a mount point."""
    deadline = time.monotonic() + timeout
    while serving_processes(mountpoint):
        assert time.monotonic() < deadline, f"{mountpoint} is still served"
        time.sleep(0.02)
