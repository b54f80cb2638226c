"""The Windows that runs, as pywin32 reaches it: COM, processes, a folder that administrators alone change.

For Windows only; imported where it is needed.
"""

import sys

assert sys.platform == "win32"

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pythoncom
import pywintypes
import win32api
import win32com.client
import win32con
import win32file
import win32process
import win32security
from win32com.shell import shell

from imagefs.errors import SnapshotError

_MONIKER = r"winmgmts:{impersonationLevel=impersonate}!\\.\root\cimv2"
_STILL_ACTIVE = 259
_ACCESS_DENIED, _ALREADY_EXISTS = 5, 183  # winerror.h
# Administrators own it; they and the system may do anything, nobody else, nothing is inherited.
_RIGHTS = "O:BAG:BAD:P(A;OICI;FA;;;BA)(A;OICI;FA;;;SY)"
_OWNERS = ("S-1-5-32-544", "S-1-5-18")  # Administrators, SYSTEM


class Pywin32:
    """See ``wmi.System``."""

    error = pywintypes.com_error

    @contextmanager
    def initialized(self) -> Iterator[None]:
        """Let the thread use COM meanwhile."""
        pythoncom.CoInitializeEx(pythoncom.COINIT_MULTITHREADED)
        try:
            yield
        finally:
            pythoncom.CoUninitialize()

    def services(self) -> Any:
        """Connect to WMI on this machine."""
        return win32com.client.GetObject(_MONIKER)

    def records_folder(self) -> Path:
        """Return the folder of records, made where it is not there.

        Everybody may make folders in ProgramData: one that an administrator did not make is not believed.
        """
        folder = Path(shell.SHGetKnownFolderPath(shell.FOLDERID_ProgramData)) / "imagefs" / "shadow-copies"
        attributes = win32security.SECURITY_ATTRIBUTES()
        attributes.SECURITY_DESCRIPTOR = win32security.ConvertStringSecurityDescriptorToSecurityDescriptor(
            _RIGHTS, win32security.SDDL_REVISION_1
        )
        try:
            for one in (folder.parent, folder):
                try:
                    win32file.CreateDirectory(str(one), attributes)
                except pywintypes.error as error:
                    if error.winerror != _ALREADY_EXISTS:
                        raise
            found = win32security.GetNamedSecurityInfo(
                str(folder), win32security.SE_FILE_OBJECT, win32security.OWNER_SECURITY_INFORMATION
            )
        except pywintypes.error as error:
            raise SnapshotError(
                f"the records of shadow copies can't be kept: {error.strerror}",
                path=folder,
                hint="start the command line as an administrator",
            ) from error
        owner = win32security.ConvertSidToStringSid(found.GetSecurityDescriptorOwner())
        if owner not in _OWNERS:
            raise SnapshotError(
                "was not made by an administrator; what it says of shadow copies is not believed",
                path=folder,
                hint="look at it, and remove it",
            )
        return folder

    def myself(self) -> dict[str, Any]:
        """Return this process's number, and when it was started."""
        number = win32api.GetCurrentProcessId()
        return {"pid": number, "started": _started(number)}

    def is_alive(self, owner: dict[str, Any]) -> bool:
        """Whether a process still runs: another of its number was started at another time."""
        try:
            return _started(int(owner["pid"])) == str(owner["started"])
        except pywintypes.error as error:
            return bool(error.winerror == _ACCESS_DENIED)  # there is one: it may be that


def _started(number: int) -> str:
    """Return when a process was started, "" where it has ended; raises pywintypes.error."""
    process = win32api.OpenProcess(win32con.PROCESS_QUERY_LIMITED_INFORMATION, False, number)
    try:
        if win32process.GetExitCodeProcess(process) != _STILL_ACTIVE:
            return ""
        return f"{win32process.GetProcessTimes(process)['CreationTime'].timestamp():.6f}"
    finally:
        process.Close()
