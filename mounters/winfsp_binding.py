"""The one place that loads winfspy, the binding of WinFsp, and what is asked of it beyond its classes."""

import importlib
import sys
from types import ModuleType
from typing import Any, NamedTuple

from mounters.errors import MountError, MountPointError

# The licence of WinFsp asks programs under other free licences for this (https://github.com/winfsp/winfsp,
# License.txt): shown to users, with a link.
NOTICE = (
    "WinFsp - Windows File System Proxy, Copyright (C) Bill Zissimopoulos (https://github.com/winfsp/winfsp)"
)

INSTALL_WINFSP = "install WinFsp from https://winfsp.dev (or: winget install WinFsp.WinFsp)"
INSTALL_WINFSPY = "pip install imagefs[windows]"  # without quotes, which cmd.exe would pass on
NO_WHEELS = (
    "winfspy has no wheels for Python 3.12 and later: use Python 3.11, or the mechanism mfusepy "
    f"({INSTALL_WINFSPY} brings it)"
)
_LAST_WITH_WHEELS = (3, 11)
GLOBAL = "\\\\.\\"  # before a letter: one that the whole machine sees
# [MS-ERREF] 2.3.1
_COLLISION = 0xC0000035  # STATUS_OBJECT_NAME_COLLISION
_NO_DRIVER = (0xC000000E, 0xC0000034)  # STATUS_NO_SUCH_DEVICE, STATUS_OBJECT_NAME_NOT_FOUND


class Binding(NamedTuple):
    """What is used of winfspy."""

    winfspy: ModuleType
    ffi: Any
    lib: Any


def load() -> Binding:
    """Import winfspy. Raises ImportError where it is missing, RuntimeError where WinFsp is."""
    try:
        winfspy = importlib.import_module("winfspy")
        bindings = importlib.import_module("winfspy.plumbing.bindings")
    except ImportError as error:
        hint = INSTALL_WINFSPY if sys.version_info[:2] <= _LAST_WITH_WHEELS else NO_WHEELS
        raise ImportError(f"winfspy cannot be imported ({error}): {hint}") from error
    except (RuntimeError, OSError) as error:  # winfspy looks for the library as it is imported
        raise RuntimeError(f"WinFsp cannot be used ({error}): {INSTALL_WINFSP}") from error
    return Binding(winfspy, bindings.ffi, bindings.lib)


def succeeded(status: int) -> bool:
    """Tell whether an NTSTATUS is one of success or information."""
    return not status & 0x80000000


def preflight(binding: Binding, mountpoint: str, *, network: bool) -> bool:
    """Tell whether WinFsp could mount there now; False where a letter or directory is taken.

    SetMountPoint itself would put a letter above one that is in use. Raises MountError where WinFsp says that
    nothing can be mounted there.
    """
    lib = binding.lib
    device = lib.WFSPY_FSP_FSCTL_NET_DEVICE_NAME if network else lib.WFSPY_FSP_FSCTL_DISK_DEVICE_NAME
    status = lib.FspFileSystemPreflight(device, mountpoint.removeprefix(GLOBAL)) & 0xFFFFFFFF
    if status == _COLLISION:
        return False
    if succeeded(status):
        return True
    name = binding.winfspy.plumbing.cook_ntstatus(status).name
    hint = f": {INSTALL_WINFSP}" if status in _NO_DRIVER else ""
    raise MountError(f"{mountpoint}: WinFsp cannot mount there ({name}){hint}")


def create(binding: Binding, mountpoint: str, operations: Any, parameters: dict[str, Any]) -> Any:
    """Return winfspy's FileSystem, which the kernel knows already but shows nowhere. Raises MountError."""
    try:
        return binding.winfspy.FileSystem(mountpoint, operations, **parameters)
    except binding.winfspy.WinFSPyError as error:
        raise MountError(f"{mountpoint}: {error}: {INSTALL_WINFSP}") from None


def start(binding: Binding, file_system: Any) -> None:
    """Show the file system and begin to answer; where that fails nothing is left of it. Raises MountError."""
    mountpoint = file_system.mountpoint
    try:
        file_system.start()
    except BaseException as error:
        delete(binding, file_system)
        if isinstance(error, binding.winfspy.WinFSPyError):
            hint = ": administrators alone can give the machine a letter" if mountpoint[:4] == GLOBAL else ""
            kind = MountPointError if "Cannot mount" in str(error) else MountError
            raise kind(f"{mountpoint}: {error}{hint}") from None
        if isinstance(error, OSError):  # it looks at the root, to know that it is answered
            raise MountError(f"{mountpoint}: cannot read the root: {error.strerror or error}") from None
        raise


def delete(binding: Binding, file_system: Any) -> None:
    """Take the file system away, started or not; callbacks that run end first. Never from a callback."""
    if file_system.started:
        file_system.stop()
    else:
        binding.lib.FspFileSystemDelete(file_system._file_system_ptr[0])


def dispatcher_result(binding: Binding, file_system: Any) -> int:
    """Return the status with which the dispatcher has ended, 0 as long as it runs."""
    result = binding.ffi.new("NTSTATUS *")
    binding.lib.FspFileSystemGetDispatcherResultF(file_system._file_system_ptr[0], result)
    return int(result[0]) & 0xFFFFFFFF
