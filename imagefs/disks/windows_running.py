"""The disks of the Windows that runs."""

import sys

assert sys.platform == "win32"

from imagefs.disks.shape import DiskList
from imagefs.disks.windows_listing import disks_of
from imagefs.machine.windows.api import load


def list_disks() -> DiskList:
    """Return the machine's disks; raises SourceReadError where Windows tells of none."""
    try:
        from imagefs.machine.windows.bitlocker import running_states  # noqa: PLC0415 - it needs pywin32
    except ImportError:
        return disks_of(load(), {})
    return disks_of(load(), running_states())
