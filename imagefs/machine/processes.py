"""Processes of this machine: whether one that left its name behind still runs. None is ever signalled."""

import os
import sys
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

if sys.platform == "win32":
    from imagefs.machine.windows.processes import is_running, started

    def boot() -> str:
        """Return what tells this boot from others: nothing, a process's start does."""
        return ""

else:

    def boot() -> str:
        """Return what tells this boot from others, "" where the system tells nothing."""
        try:
            return _BOOT_ID.read_text().strip()
        except OSError:
            return ""

    def started(pid: int) -> str:
        """Return when a process was started, so that another of the same number is not taken for it."""
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        except (OSError, IndexError):
            return ""

    def is_running(pid: int) -> bool:
        """Whether there is a process of this number."""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True


__all__ = ["boot", "is_running", "started"]
