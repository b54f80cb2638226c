"""Processes of Windows by their numbers, which it gives again soon: their start tells them apart.

Sources: Microsoft's pages of OpenProcess, GetProcessTimes and GetExitCodeProcess, "Process Security and
Access Rights". os.kill is no question there: it ends the process that it names.
"""

import sys

assert sys.platform == "win32"

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import wintypes

_QUERY_LIMITED_INFORMATION = 0x1000
_STILL_ACTIVE = 259
_ERROR_INVALID_PARAMETER = 87  # there is no process of this number

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel32.OpenProcess.argtypes = (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
_kernel32.OpenProcess.restype = wintypes.HANDLE
_kernel32.GetExitCodeProcess.argtypes = (wintypes.HANDLE, ctypes.POINTER(wintypes.DWORD))
_kernel32.GetProcessTimes.argtypes = (wintypes.HANDLE, *[ctypes.POINTER(wintypes.FILETIME)] * 4)
_kernel32.CloseHandle.argtypes = (wintypes.HANDLE,)


@contextmanager
def _opened(pid: int) -> Iterator[int | None]:
    handle = _kernel32.OpenProcess(_QUERY_LIMITED_INFORMATION, False, pid)
    if not handle:
        yield None
        return
    try:
        yield handle
    finally:
        _kernel32.CloseHandle(handle)


def is_running(pid: int) -> bool:
    """Whether there is a process of this number; True where that may not be asked."""
    with _opened(pid) as handle:
        if handle is None:
            return ctypes.get_last_error() != _ERROR_INVALID_PARAMETER
        code = wintypes.DWORD()
        # Who still has a handle keeps the number of a process that has ended.
        return not _kernel32.GetExitCodeProcess(handle, ctypes.byref(code)) or code.value == _STILL_ACTIVE


def started(pid: int) -> str:
    """Return when a process was started, in steps of 100 ns since 1601; "" where that can't be told."""
    with _opened(pid) as handle:
        times = [wintypes.FILETIME() for _ in range(4)]
        if handle is None or not _kernel32.GetProcessTimes(handle, *map(ctypes.byref, times)):
            return ""
        return str(times[0].dwHighDateTime << 32 | times[0].dwLowDateTime)
