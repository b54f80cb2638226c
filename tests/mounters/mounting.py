"""Mounts for tests: started in the background, ended by their own process number and mount point."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from mounters.controller import MountError, MountOptions, start_in_background, unavailable, unmount
from mounters.mountpoints import is_mounted
from tests.mounters.memory_tree import MemoryTree

ROOT = Path(__file__).parents[2]
WATCHDOG = 90.0  # seconds until a mount that may be stuck loses its process, which ends every wait for it
MECHANISMS = ("devfuse", "mfusepy")


@dataclass(frozen=True)
class Mounted:
    path: Path
    pid: int
    tree: MemoryTree
    log: Path
    mechanism: str

    def wait_ended(self, timeout: float = 15.0) -> bool:
        deadline = time.monotonic() + timeout
        while process_runs(self.pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def skip_or_fail(reason: str) -> None:
    """Skip for a reason, or fail where everything has to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def need(mechanism: str) -> None:
    reason = unavailable(MountOptions(mechanism=mechanism))
    if reason:
        skip_or_fail(reason)


def process_runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def argv(path: Path, mechanism: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", "tests.mounters.serve_memory", str(path), mechanism, *flags]


@contextmanager
def memory_mount(folder: Path, mechanism: str, *flags: str) -> Iterator[Mounted]:
    """Mount the memory tree below ``folder`` and take the mount and its process away at the end."""
    path, log = folder / "mnt", folder / "log"
    path.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pid = start_in_background(argv(path, mechanism, *flags), 60, log=log, environment=environment).pid
    mounted = Mounted(path, pid, MemoryTree(), log, mechanism)
    watchdog = threading.Timer(WATCHDOG, kill, [pid])
    watchdog.daemon = True
    watchdog.start()
    try:
        yield mounted
    finally:
        watchdog.cancel()
        with suppress(MountError):
            unmount(path, force=True)
        if not mounted.wait_ended():
            kill(pid)
            mounted.wait_ended()
        assert not is_mounted(str(path))


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
