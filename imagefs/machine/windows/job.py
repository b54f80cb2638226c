"""A job of Windows around a process: it ends with its starter, however that ends; its memory can be bounded.

https://learn.microsoft.com/en-us/windows/win32/procthread/job-objects
"""

import sys

assert sys.platform == "win32"

import subprocess
from collections.abc import Callable

import pywintypes
import win32api
import win32con
import win32job


def confine(process: "subprocess.Popen[bytes]", memory: int | None = None) -> Callable[[], None]:
    """Put a process into a job of its own; return what ends the job, and all that runs in it.

    With ``memory``, its bytes of address space, it can start no other. Raises OSError.
    """
    try:
        job = win32job.CreateJobObject(None, "")
        kind = win32job.JobObjectExtendedLimitInformation
        limits = win32job.QueryInformationJobObject(job, kind)
        limits["BasicLimitInformation"]["LimitFlags"] = (
            win32job.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
            | win32job.JOB_OBJECT_LIMIT_DIE_ON_UNHANDLED_EXCEPTION  # no window that tells of it
        )
        if memory is not None:
            limits["BasicLimitInformation"]["LimitFlags"] |= (
                win32job.JOB_OBJECT_LIMIT_PROCESS_MEMORY | win32job.JOB_OBJECT_LIMIT_ACTIVE_PROCESS
            )
            limits["BasicLimitInformation"]["ActiveProcessLimit"] = 1
            limits["ProcessMemoryLimit"] = memory
        win32job.SetInformationJobObject(job, kind, limits)
        rights = win32con.PROCESS_SET_QUOTA | win32con.PROCESS_TERMINATE
        handle = win32api.OpenProcess(rights, False, process.pid)
        win32job.AssignProcessToJobObject(job, handle)
        handle.Close()
    except pywintypes.error as error:
        raise OSError(None, error.strerror, None, error.winerror) from error

    def release() -> None:
        job.Close()

    return release
