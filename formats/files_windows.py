r"""Windows' side of ``formats.files``; what the functions promise is told there.

Sources: Microsoft's pages of CreateFileW, ReadFile, WriteFile, SetFileInformationByHandle, "System Error
Codes", "Maximum Path Length Limitation" and, of the C runtime, _open_osfhandle.
"""

import sys

assert sys.platform == "win32"

import ctypes
import errno
import msvcrt
import ntpath
import os
import struct
import time
from collections.abc import Callable, Sequence
from ctypes import wintypes
from pathlib import Path

import numpy as np

_GENERIC_READ, _GENERIC_WRITE = 0x80000000, 0x40000000
_SHARE_READ, _SHARE_WRITE, _SHARE_DELETE = 1, 2, 4
_SHARE_ALL = _SHARE_READ | _SHARE_WRITE | _SHARE_DELETE
_CREATE_NEW, _CREATE_ALWAYS, _OPEN_EXISTING, _OPEN_ALWAYS, _TRUNCATE_EXISTING = 1, 2, 3, 4, 5
_ATTRIBUTE_NORMAL = 0x80
_ATTRIBUTE_DIRECTORY = 0x10
_INVALID_HANDLE = ctypes.c_void_p(-1).value
_INVALID_ATTRIBUTES = _INVALID_SIZE = 0xFFFFFFFF
_END_OF_FILE_INFO, _RENAME_INFO_EX = 6, 22  # FileEndOfFileInfo, FileRenameInfoEx
_DELETE, _SYNCHRONIZE = 0x10000, 0x100000
_REPLACE_IF_EXISTS, _POSIX_SEMANTICS = 0x1, 0x2  # FILE_RENAME_FLAG_…
_RENAME_INFO = struct.Struct("@IPI")  # FILE_RENAME_INFO: Flags, RootDirectory, FileNameLength; the name
_MOVE_REPLACE, _MOVE_WRITE_THROUGH = 0x1, 0x8  # MOVEFILE_…
_LOCK_NOW = 0x1 | 0x2  # LOCKFILE_FAIL_IMMEDIATELY, _EXCLUSIVE_LOCK
_LOCKED_BYTE = 1 << 62
_PATIENCE, _PAUSE = 3.0, 0.05  # seconds

SHARING_VIOLATION = 32  # ERROR_SHARING_VIOLATION: another program's handle does not allow it
_ERROR_ACCESS_DENIED = 5
_ERROR_LOCK_VIOLATION = 33
_ERROR_IO_PENDING = 997
_ERROR_USER_MAPPED_FILE = 1224
IN_USE = {_ERROR_ACCESS_DENIED, SHARING_VIOLATION, _ERROR_LOCK_VIOLATION, _ERROR_USER_MAPPED_FILE}
_NO_SUCH_RENAME = {1, 50, 87}  # ERROR_INVALID_FUNCTION, _NOT_SUPPORTED, _INVALID_PARAMETER
_ERROR_HANDLE_EOF = 38
_ERROR_HANDLE_DISK_FULL = 39
_ERROR_MORE_DATA = 234

_LONG = 248  # characters from which on some calls need \\?\: CreateDirectory leaves room for a name of 8.3
_STEP = 16 << 20  # bytes for one call: network drives and drivers refuse far longer ones

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)


class _Overlapped(ctypes.Structure):
    _fields_ = (
        ("Internal", ctypes.c_size_t),
        ("InternalHigh", ctypes.c_size_t),
        ("Offset", wintypes.DWORD),
        ("OffsetHigh", wintypes.DWORD),
        ("hEvent", wintypes.HANDLE),
    )


_create_file = _kernel32.CreateFileW
_create_file.argtypes = (
    wintypes.LPCWSTR,
    wintypes.DWORD,
    wintypes.DWORD,
    ctypes.c_void_p,
    wintypes.DWORD,
    wintypes.DWORD,
    wintypes.HANDLE,
)
_create_file.restype = wintypes.HANDLE
_read_file = _kernel32.ReadFile
_write_file = _kernel32.WriteFile
for _function in (_read_file, _write_file):
    _function.argtypes = (
        wintypes.HANDLE,
        ctypes.c_void_p,
        wintypes.DWORD,
        ctypes.POINTER(wintypes.DWORD),
        ctypes.POINTER(_Overlapped),
    )
    _function.restype = wintypes.BOOL
_lock_file = _kernel32.LockFileEx
_lock_file.argtypes = (
    wintypes.HANDLE,
    wintypes.DWORD,
    wintypes.DWORD,
    wintypes.DWORD,
    wintypes.DWORD,
    ctypes.POINTER(_Overlapped),
)
_lock_file.restype = wintypes.BOOL
_move_file = _kernel32.MoveFileExW
_move_file.argtypes = (wintypes.LPCWSTR, wintypes.LPCWSTR, wintypes.DWORD)
_move_file.restype = wintypes.BOOL
_volume_path = _kernel32.GetVolumePathNameW
_volume_path.argtypes = (wintypes.LPCWSTR, wintypes.LPWSTR, wintypes.DWORD)
_volume_path.restype = wintypes.BOOL
_volume_information = _kernel32.GetVolumeInformationW
_volume_information.argtypes = (
    wintypes.LPCWSTR,
    wintypes.LPWSTR,
    wintypes.DWORD,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    wintypes.LPWSTR,
    wintypes.DWORD,
)
_volume_information.restype = wintypes.BOOL
_compressed_size = _kernel32.GetCompressedFileSizeW
_compressed_size.argtypes = (wintypes.LPCWSTR, ctypes.POINTER(wintypes.DWORD))
_compressed_size.restype = wintypes.DWORD
_close_handle = _kernel32.CloseHandle
_close_handle.argtypes = (wintypes.HANDLE,)
_device_io_control = _kernel32.DeviceIoControl
_device_io_control.argtypes = (
    wintypes.HANDLE,
    wintypes.DWORD,
    ctypes.c_void_p,
    wintypes.DWORD,
    ctypes.c_void_p,
    wintypes.DWORD,
    ctypes.POINTER(wintypes.DWORD),
    ctypes.c_void_p,
)
_device_io_control.restype = wintypes.BOOL
_get_attributes = _kernel32.GetFileAttributesW
_get_attributes.argtypes = (wintypes.LPCWSTR,)
_get_attributes.restype = wintypes.DWORD
_set_information = _kernel32.SetFileInformationByHandle
_set_information.argtypes = (wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, wintypes.DWORD)
_set_information.restype = wintypes.BOOL


def open_file(path: str | Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """Open a file; sharing it for reading, writing and deleting."""
    del mode  # rights come from the folder
    return _open(path, flags, _SHARE_ALL)


def open_alone(path: str | Path, flags: int) -> int:
    """Open a file for writing, so that nobody else can; SHARING_VIOLATION where somebody has."""
    return _open(path, flags, _SHARE_READ | _SHARE_DELETE)


def open_unwritten(path: str | Path) -> int:
    """Open a file for reading so that nobody can open it for writing; SHARING_VIOLATION where one has."""
    return _open(path, os.O_RDONLY, _SHARE_READ | _SHARE_DELETE)


def _open(path: str | Path, flags: int, share: int) -> int:
    name = system_path(path)
    access = {os.O_RDONLY: _GENERIC_READ, os.O_WRONLY: _GENERIC_WRITE}.get(
        flags & (os.O_WRONLY | os.O_RDWR), _GENERIC_READ | _GENERIC_WRITE
    )
    handle = _create_file(name, access, share, None, _disposition(flags), _ATTRIBUTE_NORMAL, None)
    if handle == _INVALID_HANDLE:
        code = ctypes.get_last_error()
        if code == _ERROR_ACCESS_DENIED and _is_folder(name):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise windows_error(code, path)
    kept = flags & (os.O_WRONLY | os.O_RDWR | os.O_APPEND)
    try:
        return msvcrt.open_osfhandle(handle, kept | os.O_BINARY | os.O_NOINHERIT)
    except OSError:  # no descriptor is left
        _close_handle(handle)
        raise


def _disposition(flags: int) -> int:
    if flags & os.O_CREAT:
        if flags & os.O_EXCL:
            return _CREATE_NEW
        return _CREATE_ALWAYS if flags & os.O_TRUNC else _OPEN_ALWAYS
    return _TRUNCATE_EXISTING if flags & os.O_TRUNC else _OPEN_EXISTING


def _is_folder(name: str) -> bool:
    attributes = int(_get_attributes(name))
    return attributes != _INVALID_ATTRIBUTES and bool(attributes & _ATTRIBUTE_DIRECTORY)


def windows_error(code: int, path: str | Path | None = None) -> OSError:
    """Return the OSError of a Windows error code, of the class and with the errno that ``os`` would give."""
    error = OSError(0, ctypes.FormatError(code).strip(), None if path is None else str(path), code)
    if code == _ERROR_HANDLE_DISK_FULL:  # the one of the two that Python takes for EINVAL
        error.errno = errno.ENOSPC
    return error


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Return bytes; fewer only at the end of the file."""
    if not length:
        return b""
    buffer = np.empty(length, np.uint8)
    done = _read(fd, buffer.ctypes.data, length, offset)
    return buffer[:done].tobytes()


def read_into(fd: int, buffer: memoryview | bytearray, offset: int) -> int:
    """Fill a buffer; fewer bytes only at the end of the file."""
    view = memoryview(buffer)
    if not view.nbytes:
        return 0
    return _read(fd, np.frombuffer(view, np.uint8).ctypes.data, view.nbytes, offset)


def _read(fd: int, address: int, length: int, offset: int) -> int:
    handle = msvcrt.get_osfhandle(fd)
    got = wintypes.DWORD()
    done = 0
    while done < length:
        place = _at(offset + done)
        step = min(_STEP, length - done)
        if not _read_file(handle, address + done, step, ctypes.byref(got), ctypes.byref(place)):
            code = ctypes.get_last_error()
            if code == _ERROR_HANDLE_EOF:
                break
            raise windows_error(code)
        if not got.value:
            break
        done += got.value
    return done


def write_at(fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
    """Write bytes; all of them, or it raises."""
    view = memoryview(data)
    if not view.nbytes:
        return 0
    handle = msvcrt.get_osfhandle(fd)
    address = np.frombuffer(view, np.uint8).ctypes.data
    written = wintypes.DWORD()
    done = 0
    while done < view.nbytes:
        place = _at(offset + done)
        step = min(_STEP, view.nbytes - done)
        if not _write_file(handle, address + done, step, ctypes.byref(written), ctypes.byref(place)):
            raise windows_error(ctypes.get_last_error())
        if not written.value:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done += written.value
    return done


def write_many(fd: int, pieces: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
    """Write pieces; all of them, or it raises."""
    return write_at(fd, pieces[0] if len(pieces) == 1 else b"".join(pieces), offset)


def _at(offset: int) -> _Overlapped:
    if offset < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return _Overlapped(Offset=offset & 0xFFFFFFFF, OffsetHigh=offset >> 32)


def truncate(fd: int, size: int) -> None:
    """Set a file's end; os.ftruncate would write out the zeros that it adds."""
    end = ctypes.c_int64(size)
    handle = msvcrt.get_osfhandle(fd)
    if not _set_information(handle, _END_OF_FILE_INFO, ctypes.byref(end), ctypes.sizeof(end)):
        raise windows_error(ctypes.get_last_error())


def control(fd: int, code: int, data: bytes, room: int) -> tuple[bytes, bool]:
    """Ask a file system; return its answer of up to ``room`` bytes, and whether there is more of it."""
    answer = ctypes.create_string_buffer(max(1, room))
    got = wintypes.DWORD()
    handle = msvcrt.get_osfhandle(fd)
    done = _device_io_control(handle, code, data, len(data), answer, room, ctypes.byref(got), None)
    if not done and (more := ctypes.get_last_error()) != _ERROR_MORE_DATA:
        raise windows_error(more)
    return answer.raw[: got.value], not done


def lock_file(fd: int) -> None:
    """Lock a byte far behind an open file's end: Windows keeps others from what is locked."""
    place = _at(_LOCKED_BYTE)
    if not _lock_file(msvcrt.get_osfhandle(fd), _LOCK_NOW, 0, 1, 0, ctypes.byref(place)):
        code = ctypes.get_last_error()
        if code in (_ERROR_LOCK_VIOLATION, _ERROR_IO_PENDING):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        raise windows_error(code)


def replace_file(source: Path, target: Path) -> None:
    """Rename a file in the place of another, as POSIX systems do: who has that open keeps reading it.

    Where the file system knows no such renaming, nobody may have it open.
    """

    def rename() -> int:
        code = _replace_open(source, target)
        return _move(source, target, _MOVE_REPLACE) if code in _NO_SUCH_RENAME else code

    _patiently(rename, target)


def move_new(source: Path, target: Path) -> None:
    """Rename a file; Windows itself refuses a name that is there."""
    _patiently(lambda: _move(source, target, 0), target)


def _move(source: Path, target: Path, flags: int) -> int:
    done = _move_file(system_path(source), system_path(target), flags | _MOVE_WRITE_THROUGH)
    return 0 if done else ctypes.get_last_error()


def _replace_open(source: Path, target: Path) -> int:
    """Rename so that whoever has the target open keeps it (Windows 10, NTFS); return the error code, or 0."""
    handle = _create_file(
        system_path(source), _DELETE | _SYNCHRONIZE, _SHARE_ALL, None, _OPEN_EXISTING, _ATTRIBUTE_NORMAL, None
    )
    if handle == _INVALID_HANDLE:
        return ctypes.get_last_error()
    name = system_path(target.absolute()).encode("utf-16-le", "surrogatepass")
    flags = _REPLACE_IF_EXISTS | _POSIX_SEMANTICS
    info = _RENAME_INFO.pack(flags, 0, len(name)) + name + b"\0\0"
    try:
        done = _set_information(handle, _RENAME_INFO_EX, info, len(info))
        return 0 if done else ctypes.get_last_error()
    finally:
        _close_handle(handle)


def _patiently(rename: Callable[[], int], target: Path) -> None:
    """Rename, and again for a while where another program is in the way: a virus scanner, a listing."""
    deadline = time.monotonic() + _PATIENCE
    while code := rename():
        if code not in IN_USE or time.monotonic() > deadline:
            raise windows_error(code, target)
        time.sleep(_PAUSE)


def file_system_of(folder: Path) -> str:
    """Return the name of the file system that a folder, on a share as well, lies on: "NTFS", "FAT32"."""
    name = str(folder.absolute())
    root = ctypes.create_unicode_buffer(len(name) + 260)
    kind = ctypes.create_unicode_buffer(260)
    found = _volume_path(name, root, len(root)) and _volume_information(
        root, None, 0, None, None, None, kind, len(kind)
    )
    if not found:
        raise windows_error(ctypes.get_last_error(), folder)
    return kind.value


def stored_size(file: Path) -> int:
    """Return the bytes that a file takes on its disk: less than its size where it has holes."""
    high = wintypes.DWORD()
    ctypes.set_last_error(0)
    low = int(_compressed_size(system_path(file), ctypes.byref(high)))
    if low == _INVALID_SIZE and (code := ctypes.get_last_error()):
        raise windows_error(code, file)
    return high.value << 32 | low


def sync(fd: int) -> None:
    """Write a file through to its disk."""
    os.fsync(fd)  # FlushFileBuffers


def forget_cached(fd: int) -> None:
    """Do nothing: Windows forgets a file only when it is opened past the cache."""


def sync_folder(folder: Path) -> None:
    """Do nothing: NTFS keeps names in its journal, and flushing a folder takes an administrator."""


def system_path(path: str | Path) -> str:
    r"""Return a path, absolute and with ``\\?\`` where it is too long without.

    Such a path is taken as it stands, so names are normalised here first, as Windows would do.
    """
    name = os.fspath(path)
    if len(name) < _LONG and ntpath.isabs(name):
        return name
    if name.startswith(("\\\\?\\", "\\\\.\\")):
        return name
    full = ntpath.abspath(name)
    if len(full) < _LONG or full.startswith("\\\\.\\"):
        return name
    return "\\\\?\\UNC" + full[1:] if full.startswith("\\\\") else "\\\\?\\" + full
