"""The calls of Windows that disks and volumes are read through, behind a contract for a model to stand in.

Nothing is decided here: a call, its arguments, and its error. Source: Microsoft, "Windows API index", the
pages of fileapi.h, ioapiset.h, winbase.h, securitybaseapi.h (https://learn.microsoft.com/windows/win32/api/).
"""

import ctypes
import errno
import sys
from collections.abc import Mapping
from ctypes import wintypes
from typing import NamedTuple, Protocol

# Access, sharing, disposition and flags of CreateFileW
GENERIC_READ = 0x80000000
GENERIC_WRITE = 0x40000000
SHARE_ALL = 0x7  # FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE
OPEN_EXISTING = 3
FILE_FLAG_NO_BUFFERING = 0x20000000
FILE_FLAG_WRITE_THROUGH = 0x80000000
FILE_FLAG_BACKUP_SEMANTICS = 0x02000000  # for opening a folder

# winerror.h
ERROR_INVALID_FUNCTION = 1
ERROR_FILE_NOT_FOUND = 2
ERROR_PATH_NOT_FOUND = 3
ERROR_ACCESS_DENIED = 5
ERROR_INVALID_HANDLE = 6
ERROR_INVALID_DATA = 13
ERROR_NO_MORE_FILES = 18
ERROR_WRITE_PROTECT = 19
ERROR_NOT_READY = 21
ERROR_CRC = 23
ERROR_SEEK = 25
ERROR_SECTOR_NOT_FOUND = 27
ERROR_READ_FAULT = 30
ERROR_GEN_FAILURE = 31
ERROR_SHARING_VIOLATION = 32
ERROR_HANDLE_EOF = 38
ERROR_NOT_SUPPORTED = 50
ERROR_DEV_NOT_EXIST = 55
ERROR_INVALID_PARAMETER = 87
ERROR_DISK_FULL = 112
ERROR_INSUFFICIENT_BUFFER = 122
ERROR_MORE_DATA = 234
ERROR_IO_DEVICE = 1117
ERROR_DISK_OPERATION_FAILED = 1127
ERROR_UNRECOGNIZED_VOLUME = 1005
ERROR_NO_MEDIA_IN_DRIVE = 1112
ERROR_DEVICE_NOT_CONNECTED = 1167
ERROR_NOT_ALL_ASSIGNED = 1300
ERROR_DEVICE_REMOVED = 1617
FVE_LOCKED_VOLUME = 0x80310000  # of BitLocker, as an HRESULT

# A privilege of a token (winnt.h)
SE_RESTORE = "SeRestorePrivilege"

# GetDriveTypeW
DRIVE_REMOTE = 4
DRIVE_CDROM = 5

_ERRNO = {
    ERROR_FILE_NOT_FOUND: errno.ENOENT,
    ERROR_PATH_NOT_FOUND: errno.ENOENT,
    ERROR_ACCESS_DENIED: errno.EACCES,
    ERROR_SHARING_VIOLATION: errno.EBUSY,
    ERROR_WRITE_PROTECT: errno.EROFS,
    ERROR_DISK_FULL: errno.ENOSPC,
    ERROR_INVALID_PARAMETER: errno.EINVAL,
    ERROR_NOT_SUPPORTED: errno.ENOTSUP,
}


class ApiError(OSError):
    """A call failed. ``code`` is GetLastError's number, ``call`` the function's name.

    ``data`` is what DeviceIoControl gave all the same: with ERROR_MORE_DATA, the beginning of its answer.
    """

    def __init__(self, code: int, call: str, text: str = "", data: bytes = b"") -> None:
        self.code = code
        self.call = call
        self.data = data
        super().__init__(_ERRNO.get(code, errno.EIO), f"{text.strip() or call} (error {code})")


class VolumeInformation(NamedTuple):
    """What GetVolumeInformationW tells of a mounted file system."""

    label: str
    serial: int  # 32 bits
    flags: int
    file_system: str  # "NTFS", "FAT32", "exFAT", "ReFS"


class Api(Protocol):
    r"""The calls; each raises ApiError where Windows tells an error. Safe from several threads.

    A handle is a number, to be closed by ``close_handle``. Volumes are named as FindFirstVolumeW does, with
    the backslash at the end: ``\\?\Volume{…}\``; a root is ``C:\`` or such a name.
    """

    def create_file(self, path: str, access: int, share: int, disposition: int, flags: int) -> int:
        """CreateFileW; ``access`` 0 asks for answers to questions only, for which no rights are needed."""

    def close_handle(self, handle: int) -> None:
        """CloseHandle."""

    def device_io_control(self, handle: int, code: int, data: bytes = b"", size: int = 0) -> bytes:
        """DeviceIoControl with ``data``; returns its answer, of ``size`` bytes at the most."""

    def read_file(self, handle: int, offset: int, buffer: memoryview) -> int:
        """ReadFile at an offset into writable memory; returns the bytes read, 0 at the end."""

    def write_file(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """WriteFile at an offset; returns the bytes written."""

    def flush_file_buffers(self, handle: int) -> None:
        """FlushFileBuffers."""

    def volumes(self) -> list[str]:
        """FindFirstVolumeW, FindNextVolumeW: the names of all volumes."""

    def volume_path_names(self, volume: str) -> list[str]:
        r"""GetVolumePathNamesForVolumeNameW: where a volume is mounted, ``C:\``, ``D:\folder\``."""

    def volume_at(self, root: str) -> str:
        """GetVolumeNameForVolumeMountPointW: the name of the volume that is mounted there."""

    def volume_path_name(self, path: str) -> str:
        """GetVolumePathNameW: where the volume is mounted that a file or folder is on."""

    def volume_information(self, root: str) -> VolumeInformation:
        """GetVolumeInformationW."""

    def query_dos_device(self, name: str | None) -> list[str]:
        """QueryDosDeviceW: what a name leads to, the newest first; None gives all names."""

    def drive_type(self, root: str) -> int:
        """GetDriveTypeW."""

    def enable_privilege(self, name: str) -> bool:
        """OpenProcessToken, AdjustTokenPrivileges: whether the process has the privilege now."""

    def is_administrator(self) -> bool:
        """IsUserAnAdmin: whether the process runs with an administrator's rights."""


class Luid(ctypes.Structure):
    """LUID."""

    _fields_ = (("low", wintypes.DWORD), ("high", wintypes.LONG))


class TokenPrivilege(ctypes.Structure):
    """TOKEN_PRIVILEGES with one LUID_AND_ATTRIBUTES."""

    _fields_ = (("count", wintypes.DWORD), ("luid", Luid), ("attributes", wintypes.DWORD))


class _Half(ctypes.Structure):
    _fields_ = (("offset", wintypes.DWORD), ("offset_high", wintypes.DWORD))


class Overlapped(ctypes.Structure):
    """OVERLAPPED: the offset of a read or write; on a handle that isn't asynchronous it says no more."""

    _fields_ = (
        ("internal", ctypes.c_size_t),
        ("internal_high", ctypes.c_size_t),
        ("place", _Half),
        ("event", wintypes.HANDLE),
    )

    @classmethod
    def at(cls, offset: int) -> "Overlapped":
        """Return one that names an offset in bytes."""
        return cls(0, 0, _Half(offset & 0xFFFFFFFF, offset >> 32), None)


def split_strings(text: str) -> list[str]:
    """Split a list of strings that each end with a zero, and that ends with an empty one."""
    return [part for part in text.split("\0") if part]


if sys.platform == "win32":
    _SE_PRIVILEGE_ENABLED = 2
    _SEM_FAILCRITICALERRORS = 1
    _TOKEN_RIGHTS = 0x28  # TOKEN_ADJUST_PRIVILEGES | TOKEN_QUERY
    _INVALID_HANDLE = ctypes.c_void_p(-1).value
    _PATH_CHARS = 32768
    _NAME_CHARS = 261

    _HANDLE, _DWORD, _BOOL, _TEXT, _MEMORY = (
        wintypes.HANDLE, wintypes.DWORD, wintypes.BOOL, wintypes.LPCWSTR, ctypes.c_void_p
    )  # fmt: skip
    _SIGNATURES = {
        "CreateFileW": (_HANDLE, _TEXT, _DWORD, _DWORD, _MEMORY, _DWORD, _DWORD, _HANDLE),
        "CloseHandle": (_BOOL, _HANDLE),
        "DeviceIoControl": (
            _BOOL, _HANDLE, _DWORD, _MEMORY, _DWORD, _MEMORY, _DWORD, _MEMORY, _MEMORY
        ),
        "ReadFile": (_BOOL, _HANDLE, _MEMORY, _DWORD, _MEMORY, _MEMORY),
        "WriteFile": (_BOOL, _HANDLE, _MEMORY, _DWORD, _MEMORY, _MEMORY),
        "FlushFileBuffers": (_BOOL, _HANDLE),
        "FindFirstVolumeW": (_HANDLE, _MEMORY, _DWORD),
        "FindNextVolumeW": (_BOOL, _HANDLE, _MEMORY, _DWORD),
        "FindVolumeClose": (_BOOL, _HANDLE),
        "GetVolumePathNamesForVolumeNameW": (_BOOL, _TEXT, _MEMORY, _DWORD, _MEMORY),
        "GetVolumeNameForVolumeMountPointW": (_BOOL, _TEXT, _MEMORY, _DWORD),
        "GetVolumePathNameW": (_BOOL, _TEXT, _MEMORY, _DWORD),
        "GetVolumeInformationW": (
            _BOOL, _TEXT, _MEMORY, _DWORD, _MEMORY, _MEMORY, _MEMORY, _MEMORY, _DWORD
        ),
        "QueryDosDeviceW": (_DWORD, _TEXT, _MEMORY, _DWORD),
        "GetDriveTypeW": (wintypes.UINT, _TEXT),
        "GetCurrentProcess": (_HANDLE,),
        "SetErrorMode": (wintypes.UINT, wintypes.UINT),
    }  # fmt: skip
    _TOKEN_SIGNATURES = {
        "OpenProcessToken": (_BOOL, _HANDLE, _DWORD, _MEMORY),
        "LookupPrivilegeValueW": (_BOOL, _TEXT, _TEXT, _MEMORY),
        "AdjustTokenPrivileges": (_BOOL, _HANDLE, _BOOL, _MEMORY, _DWORD, _MEMORY, _MEMORY),
    }

    def _declared(name: str, signatures: Mapping[str, tuple[type, ...]]) -> ctypes.WinDLL:
        library = ctypes.WinDLL(name, use_last_error=True)
        for function, (result, *arguments) in signatures.items():
            declared = getattr(library, function)
            declared.restype, declared.argtypes = result, arguments
        return library

    def _failed(call: str, data: bytes = b"") -> ApiError:
        code = ctypes.get_last_error() & 0xFFFFFFFF
        return ApiError(code, call, ctypes.FormatError(ctypes.get_last_error()), data)

    class WindowsApi:
        """The calls of the system that runs; see Api."""

        def __init__(self) -> None:
            self._kernel = _declared("kernel32", _SIGNATURES)
            self._tokens = _declared("advapi32", _TOKEN_SIGNATURES)
            self._kernel.SetErrorMode(_SEM_FAILCRITICALERRORS)  # a drive without a medium opens no window

        def create_file(self, path: str, access: int, share: int, disposition: int, flags: int) -> int:
            """Open a file or device."""
            handle = self._kernel.CreateFileW(path, access, share, None, disposition, flags, None)
            if handle is None or handle == _INVALID_HANDLE:
                raise _failed("CreateFileW")
            return int(handle)

        def close_handle(self, handle: int) -> None:
            """Close a handle."""
            if not self._kernel.CloseHandle(handle):
                raise _failed("CloseHandle")

        def device_io_control(self, handle: int, code: int, data: bytes = b"", size: int = 0) -> bytes:
            """Ask a driver."""
            given = ctypes.create_string_buffer(data, len(data)) if data else None
            answer = ctypes.create_string_buffer(size) if size else None
            count = wintypes.DWORD()
            done = self._kernel.DeviceIoControl(
                handle, code, given, len(data), answer, size, ctypes.byref(count), None
            )
            if done:
                return answer.raw[: count.value] if answer is not None else b""
            error = _failed("DeviceIoControl")
            if error.code == ERROR_MORE_DATA and answer is not None:
                error.data = answer.raw[: count.value]
            raise error

        def read_file(self, handle: int, offset: int, buffer: memoryview) -> int:
            """Read at an offset."""
            count = wintypes.DWORD()
            memory = (ctypes.c_char * len(buffer)).from_buffer(buffer)
            place = Overlapped.at(offset)
            if self._kernel.ReadFile(handle, memory, len(buffer), ctypes.byref(count), ctypes.byref(place)):
                return count.value
            error = _failed("ReadFile")
            if error.code == ERROR_HANDLE_EOF:
                return 0
            raise error

        def write_file(self, handle: int, offset: int, data: bytes | memoryview) -> int:
            """Write at an offset."""
            count = wintypes.DWORD()
            if isinstance(data, memoryview) and not data.readonly:
                memory = (ctypes.c_char * len(data)).from_buffer(data)
            else:
                memory = ctypes.create_string_buffer(bytes(data), len(data))
            place = Overlapped.at(offset)
            if not self._kernel.WriteFile(
                handle, memory, len(data), ctypes.byref(count), ctypes.byref(place)
            ):
                raise _failed("WriteFile")
            return count.value

        def flush_file_buffers(self, handle: int) -> None:
            """Put what was written on stable storage."""
            if not self._kernel.FlushFileBuffers(handle):
                raise _failed("FlushFileBuffers")

        def volumes(self) -> list[str]:
            """List the volumes."""
            name = ctypes.create_unicode_buffer(_NAME_CHARS)
            handle = self._kernel.FindFirstVolumeW(name, _NAME_CHARS)
            if handle is None or handle == _INVALID_HANDLE:
                raise _failed("FindFirstVolumeW")
            found = [name.value]
            try:
                while self._kernel.FindNextVolumeW(handle, name, _NAME_CHARS):
                    found.append(name.value)
                error = _failed("FindNextVolumeW")
            finally:
                self._kernel.FindVolumeClose(handle)
            if error.code != ERROR_NO_MORE_FILES:
                raise error
            return found

        def volume_path_names(self, volume: str) -> list[str]:
            """Tell where a volume is mounted."""
            size = _NAME_CHARS
            while True:
                text = ctypes.create_unicode_buffer(size)
                needed = wintypes.DWORD()
                if self._kernel.GetVolumePathNamesForVolumeNameW(volume, text, size, ctypes.byref(needed)):
                    return split_strings(ctypes.wstring_at(text, needed.value))
                error = _failed("GetVolumePathNamesForVolumeNameW")
                if error.code != ERROR_MORE_DATA:
                    raise error
                size = max(needed.value, size + 1)

        def volume_at(self, root: str) -> str:
            """Name the volume that is mounted at a root."""
            name = ctypes.create_unicode_buffer(_NAME_CHARS)
            if not self._kernel.GetVolumeNameForVolumeMountPointW(root, name, _NAME_CHARS):
                raise _failed("GetVolumeNameForVolumeMountPointW")
            return name.value

        def volume_path_name(self, path: str) -> str:
            """Tell where the volume of a path is mounted."""
            text = ctypes.create_unicode_buffer(_PATH_CHARS)
            if not self._kernel.GetVolumePathNameW(path, text, _PATH_CHARS):
                raise _failed("GetVolumePathNameW")
            return text.value

        def volume_information(self, root: str) -> VolumeInformation:
            """Tell of a mounted file system."""
            label = ctypes.create_unicode_buffer(_NAME_CHARS)
            kind = ctypes.create_unicode_buffer(_NAME_CHARS)
            serial, longest, flags = wintypes.DWORD(), wintypes.DWORD(), wintypes.DWORD()
            if not self._kernel.GetVolumeInformationW(
                root, label, _NAME_CHARS, ctypes.byref(serial), ctypes.byref(longest), ctypes.byref(flags),
                kind, _NAME_CHARS,
            ):  # fmt: skip
                raise _failed("GetVolumeInformationW")
            return VolumeInformation(label.value, serial.value, flags.value, kind.value)

        def query_dos_device(self, name: str | None) -> list[str]:
            """Tell what names of devices lead to."""
            size = 4096
            while True:
                text = ctypes.create_unicode_buffer(size)
                got = self._kernel.QueryDosDeviceW(name, text, size)
                if got:
                    return split_strings(ctypes.wstring_at(text, got))
                error = _failed("QueryDosDeviceW")
                if error.code != ERROR_INSUFFICIENT_BUFFER:
                    raise error
                size *= 4

        def drive_type(self, root: str) -> int:
            """Tell what kind of drive a root is on."""
            return int(self._kernel.GetDriveTypeW(root))

        def enable_privilege(self, name: str) -> bool:
            """Switch a privilege on, where the token has it."""
            token = wintypes.HANDLE()
            process = self._kernel.GetCurrentProcess()
            if not self._tokens.OpenProcessToken(process, _TOKEN_RIGHTS, ctypes.byref(token)):
                raise _failed("OpenProcessToken")
            try:
                wanted = TokenPrivilege(1, Luid(), _SE_PRIVILEGE_ENABLED)
                if not self._tokens.LookupPrivilegeValueW(None, name, ctypes.byref(wanted.luid)):
                    raise _failed("LookupPrivilegeValueW")
                ctypes.set_last_error(0)
                if not self._tokens.AdjustTokenPrivileges(token, False, ctypes.byref(wanted), 0, None, None):
                    raise _failed("AdjustTokenPrivileges")
                return ctypes.get_last_error() != ERROR_NOT_ALL_ASSIGNED
            finally:
                self._kernel.CloseHandle(token)

        def is_administrator(self) -> bool:
            """Tell whether the process may do an administrator's work."""
            return bool(ctypes.WinDLL("shell32").IsUserAnAdmin())


def load() -> Api:
    """Return the calls of the Windows that runs; raises OSError on another system."""
    if sys.platform == "win32":
        return WindowsApi()
    raise OSError(errno.ENOSYS, "this is not Windows")
