r"""Copies on Windows: their names and places, and what NTFS keeps of a file beside its data.

Sources: Microsoft, "Naming Files, Paths, and Namespaces", "MoveFileExW", "FILE_BASIC_INFO",
"FSCTL_SET_SPARSE", "File Security and Access Rights", "SetKernelObjectSecurity".
"""

import sys

assert sys.platform == "win32"

import ctypes
import errno
import msvcrt
import ntpath
import os
import stat
import struct
import time
from collections.abc import Callable, Sequence
from ctypes import wintypes
from functools import cache
from pathlib import Path

from formats.blockreader import BlockReader
from formats.files import open_file, write_at
from formats.files_windows import windows_error
from imagefs.errors import RefusedError
from imagefs.machine.windows import api
from mounters.tree import Attributes
from mounters.winfsp_names import unique_names, windows_name

_STEP = 1 << 20  # bytes read at a time
_WAITS = (0.05, 0.1, 0.2, 0.4)  # seconds: what looks through new files, as virus scanners do, is soon done

# winerror.h
_PRIVILEGE_NOT_HELD = 1314
_BUSY = (api.ERROR_ACCESS_DENIED, api.ERROR_SHARING_VIOLATION)
_NO_LINKS = (api.ERROR_INVALID_FUNCTION, api.ERROR_NOT_SUPPORTED)  # FAT says the former

# GetVolumeInformationW
_PERSISTENT_ACLS, _NAMED_STREAMS = 0x8, 0x40000

# CreateFileW
_WRITE_ATTRIBUTES, _WRITE_DAC, _WRITE_OWNER, _SYSTEM_SECURITY = 0x100, 0x40000, 0x80000, 0x1000000
_ITSELF = api.FILE_FLAG_BACKUP_SEMANTICS | 0x00200000  # also a folder, and a link: OPEN_REPARSE_POINT

_SET_SPARSE = 0x000900C4  # FSCTL_SET_SPARSE
_BASIC_INFO = struct.Struct("<4QI4x")  # FILE_BASIC_INFO: created, accessed, modified, changed; attributes
_FILE_BASIC_INFO = 0  # of FILE_INFO_BY_HANDLE_CLASS
_SETTABLE = 0x1 | 0x2 | 0x4 | 0x20 | 0x2000  # read-only, hidden, system, archive, not to be indexed
_NORMAL = 0x80
_SINCE_1601 = 116_444_736_000_000_000  # of 100 ns, until 1970

# SECURITY_DESCRIPTOR ([MS-DTYP] 2.4.6) and SECURITY_INFORMATION (2.4.7)
_OWNER, _GROUP, _DACL, _SACL = 1, 2, 4, 8
_DACL_PRESENT, _SACL_PRESENT = 0x4, 0x10
_DACL_INHERITED, _SACL_INHERITED = 0x400, 0x800
_DACL_INHERIT_REQUEST, _SACL_INHERIT_REQUEST = 0x100, 0x200
_PRIVILEGES = (api.SE_RESTORE, "SeSecurityPrivilege", "SeTakeOwnershipPrivilege")

FLAGS_ON_REQUEST = False


@cache
def _windows() -> api.Api:
    return api.load()


@cache
def _set_information() -> Callable[..., int]:
    function = ctypes.WinDLL("kernel32", use_last_error=True).SetFileInformationByHandle
    function.argtypes = (wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, wintypes.DWORD)
    return function


@cache
def _set_object_security() -> Callable[..., int]:
    function = ctypes.WinDLL("advapi32", use_last_error=True).SetKernelObjectSecurity
    function.argtypes = (wintypes.HANDLE, wintypes.DWORD, ctypes.c_void_p)
    return function


def target_path(path: str | os.PathLike[str]) -> Path:
    r"""Return a path as ``\\?\…``: it may be long, and its names are taken as they are."""
    given = os.fspath(path)
    name = ntpath.basename(ntpath.splitdrive(given)[1].rstrip("\\/"))
    if name not in ("", ".", "..") and windows_name(name) != name:
        raise OSError(errno.EINVAL, "no file of Windows can have this name", given)
    full = ntpath.abspath(given)
    if full.startswith(("\\\\?\\", "\\\\.\\")):
        return Path(full)
    return Path("\\\\?\\UNC" + full[1:] if full.startswith("\\\\") else "\\\\?\\" + full)


def target_names(names: Sequence[str]) -> Sequence[str]:
    """Return the names that what is in a directory gets: as a mount shows them."""
    return unique_names(names)


def link_text(text: str) -> str:
    """Return a link's text as it is written here."""
    parts = text.split("/")
    return "\\".join(part if part in ("", ".", "..") else windows_name(part) for part in parts)


def make_link(link: Path, text: str, leads_to_directory: Callable[[], bool]) -> None:
    """Make a symbolic link; says what it takes."""
    is_directory = leads_to_directory()
    try:
        link.symlink_to(text, target_is_directory=is_directory)
    except OSError as error:
        if error.winerror == _PRIVILEGE_NOT_HELD:
            said = "making a symbolic link takes Windows' Developer Mode, or an administrator"
            raise PermissionError(errno.EPERM, said) from error
        if error.winerror in _NO_LINKS:
            raise OSError(errno.ENOTSUP, "the target's file system has no symbolic links") from error
        raise


def make_sparse(fd: int) -> None:
    """Let what is not written of a file be a hole, where the file system has such: else it is zeros."""
    try:
        _windows().device_io_control(msvcrt.get_osfhandle(fd), _SET_SPARSE)
    except api.ApiError as error:
        if error.code not in (*_NO_LINKS, api.ERROR_INVALID_PARAMETER):
            raise


def put(made: Path, target: Path, *, overwrite: bool) -> None:
    """Give a finished file its name; FileExistsError where there is one, unless that is to be replaced.

    A file that is there is replaced also when it is read-only, never when another program has it open.
    """
    if not overwrite:
        _patiently(lambda: made.rename(target))
        return
    try:
        made.replace(target)
    except PermissionError:
        if target.is_dir() and not target.is_symlink():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
        if _replace_read_only(made, target):
            return
        try:
            _patiently(lambda: made.replace(target))
        except PermissionError as error:
            said = "it can't be replaced: another program has it open, or this user may not"
            raise PermissionError(errno.EACCES, said) from error


def _replace_read_only(made: Path, target: Path) -> bool:
    """Replace a read-only file; False, and it is as before, where it is none or can't be replaced either."""
    try:
        if not target.lstat().st_file_attributes & stat.FILE_ATTRIBUTE_READONLY:
            return False
        target.chmod(stat.S_IWRITE)
    except OSError:
        return False
    try:
        made.replace(target)
    except OSError:
        target.chmod(stat.S_IREAD)
        return False
    return True


def _patiently(move: Callable[[], object]) -> None:
    for wait in _WAITS:
        try:
            move()
        except PermissionError as error:
            if error.winerror not in _BUSY:
                raise
            time.sleep(wait)
        else:
            return
    move()


def discard(made: Path) -> None:
    """Remove a file that is not to be kept, or has its name already."""
    try:
        made.unlink(missing_ok=True)
    except PermissionError:  # as read-only as it is in the image
        made.chmod(stat.S_IWRITE)
        made.unlink(missing_ok=True)


def write_stream(reader: BlockReader, target: Path, name: str, *, overwrite: bool) -> None:
    """Write a stream; raises OSError where that can't be."""
    if not _has(target.parent, _NAMED_STREAMS):
        raise OSError(errno.ENOTSUP, "the target's file system keeps no streams")
    disposition = os.O_TRUNC if overwrite else os.O_EXCL
    fd = open_file(f"{target}:{name}", os.O_WRONLY | os.O_CREAT | disposition)
    try:
        for offset in range(0, reader.size, _STEP):
            write_at(fd, reader.read_at(offset, min(_STEP, reader.size - offset)), offset)
    finally:
        os.close(fd)


@cache
def _features(folder: str) -> int | None:
    """Return what the file system of a folder can do; None where it doesn't tell."""
    try:
        return _windows().volume_information(_windows().volume_path_name(folder)).flags
    except api.ApiError:
        return None


def _has(folder: Path, feature: int) -> bool:
    known = _features(str(folder))
    return known is None or bool(known & feature)


def require_security(folder: Path) -> None:
    """Raise RefusedError where no file of a folder can be given a security descriptor."""
    if not _has(folder, _PERSISTENT_ACLS):
        raise RefusedError("its file system takes no security descriptors", path=folder, hint="NTFS does")
    if not all(_windows().enable_privilege(name) for name in _PRIVILEGES):
        raise RefusedError(
            "giving files their owners and rights takes an administrator",
            hint='start the command prompt with "Run as administrator"',
        )


def set_security(path: Path, descriptor: bytes) -> None:
    """Give a file a self-relative security descriptor, as it is: nothing is inherited anew."""
    parts, ready = settable(descriptor)
    access = _WRITE_DAC | _WRITE_OWNER | (_SYSTEM_SECURITY if parts & _SACL else 0)
    handle = _windows().create_file(str(path), access, api.SHARE_ALL, api.OPEN_EXISTING, _ITSELF)
    try:
        if not _set_object_security()(handle, parts, ready):
            raise windows_error(ctypes.get_last_error())
    finally:
        _windows().close_handle(handle)


def settable(descriptor: bytes) -> tuple[int, bytes]:
    """Return which parts of a descriptor are there to be set, and it as the system is to be given it.

    That entries were inherited is kept only where that is asked for (SE_DACL_AUTO_INHERIT_REQ).
    """
    _, _, control, owner, group, _, _ = struct.unpack_from("<BBH4I", descriptor)
    parts = (_OWNER if owner else 0) | (_GROUP if group else 0)
    parts |= (_DACL if control & _DACL_PRESENT else 0) | (_SACL if control & _SACL_PRESENT else 0)
    if control & _DACL_INHERITED:
        control |= _DACL_INHERIT_REQUEST
    if control & _SACL_INHERITED:
        control |= _SACL_INHERIT_REQUEST
    return parts, descriptor[:2] + struct.pack("<H", control) + descriptor[4:]


def set_attributes(path: Path, known: Attributes, flags: int | None, times: bytes | None) -> None:
    """Give a file, folder or link its times, and its file attributes where ``flags`` has them."""
    del times  # in full, as NTFS has them: those in ``known`` are as exact
    settable_flags = 0 if flags is None else flags & _SETTABLE or _NORMAL
    moments = (known.created, known.accessed, known.modified, known.changed)
    info = _BASIC_INFO.pack(*map(_file_time, moments), settable_flags)
    handle = _windows().create_file(str(path), _WRITE_ATTRIBUTES, api.SHARE_ALL, api.OPEN_EXISTING, _ITSELF)
    try:
        if not _set_information()(handle, _FILE_BASIC_INFO, info, len(info)):
            raise windows_error(ctypes.get_last_error())
    finally:
        _windows().close_handle(handle)


def _file_time(nanoseconds: int) -> int:
    """Return a time as Windows has it; 0, by which it stays as it is, where that is none."""
    if not nanoseconds:
        return 0
    since = nanoseconds // 100 + _SINCE_1601
    return since if 0 < since < 1 << 63 else 0
