"""The Windows that runs, as pywin32 reaches it: COM, processes, a folder that administrators alone change.

For Windows only; imported where it is needed.
"""

import sys

assert sys.platform == "win32"

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pythoncom
import pywintypes
import win32com.client
import win32file
import win32security
from win32com.shell import shell

from imagefs.errors import SnapshotError
from imagefs.machine.processes import is_running, started

_MONIKER = r"winmgmts:{impersonationLevel=impersonate}!\\.\root\cimv2"
_ALREADY_EXISTS = 183  # winerror.h
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

        Everybody may make folders in ProgramData, and put another in the place of what is in their own: where
        an administrator did not make both, it is not believed.
        """
        folder = Path(shell.SHGetKnownFolderPath(shell.FOLDERID_ProgramData)) / "imagefs" / "shadow-copies"
        attributes = win32security.SECURITY_ATTRIBUTES()
        attributes.SECURITY_DESCRIPTOR = win32security.ConvertStringSecurityDescriptorToSecurityDescriptor(
            _RIGHTS, win32security.SDDL_REVISION_1
        )
        for one in (folder.parent, folder):
            try:
                try:
                    win32file.CreateDirectory(str(one), attributes)
                except pywintypes.error as error:
                    if error.winerror != _ALREADY_EXISTS:
                        raise
                owner = _owner(one)
            except pywintypes.error as error:
                raise SnapshotError(
                    f"the records of shadow copies can't be kept: {error.strerror}",
                    path=one,
                    hint="start the command line as an administrator",
                ) from error
            if owner not in _OWNERS:
                raise SnapshotError(
                    "was not made by an administrator; what it says of shadow copies is not believed",
                    path=one,
                    hint="look at it, and remove it",
                )
        return folder

    def myself(self) -> dict[str, Any]:
        """Return this process's number, and when it was started."""
        number = os.getpid()
        return {"pid": number, "started": started(number)}

    def is_alive(self, owner: dict[str, Any]) -> bool:
        """Whether a process still runs: another of its number was started at another time."""
        number = int(owner["pid"])
        return is_running(number) and started(number) in ("", owner["started"])


def _owner(folder: Path) -> str:
    """Return the SID of a folder's owner; pywintypes.error passes."""
    asked = win32security.OWNER_SECURITY_INFORMATION
    found = win32security.GetNamedSecurityInfo(str(folder), win32security.SE_FILE_OBJECT, asked)
    return str(win32security.ConvertSidToStringSid(found.GetSecurityDescriptorOwner()))
