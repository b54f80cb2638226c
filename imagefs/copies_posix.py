"""Copies on Linux and its like: their names and places, and what NTFS keeps of a file beside its data."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from formats.blockreader import BlockReader
from imagefs.errors import RefusedError
from mounters.tree import Attributes, NodeType

# As ntfs-3g takes them. All times, not that of creation alone: others that are set after it are lost.
_TIMES, _FLAGS, _DESCRIPTOR = "system.ntfs_times_be", "system.ntfs_attrib_be", "system.ntfs_acl"
_NORMAL = 0x80  # FILE_ATTRIBUTE_NORMAL: none of the others
_UNKNOWN = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)  # what other file systems say to them
_LIMIT = 1 << 16  # bytes of an extended attribute; Linux takes no larger ones
_TOO_LARGE = (errno.E2BIG, errno.ENOSPC, errno.ERANGE)

FLAGS_ON_REQUEST = True  # the file attributes of NTFS have no meaning here


def target_path(path: str | os.PathLike[str]) -> Path:
    """Return a path in the form that everything below it is reached by."""
    return Path(path)


def target_names(names: Sequence[str]) -> Sequence[str]:
    """Return the names that what is in a directory gets: its own."""
    return names


def link_text(text: str) -> str:
    """Return a link's text as it is written here: as it is."""
    return text


def make_link(link: Path, text: str, leads_to_directory: Callable[[], bool]) -> None:
    """Make a symbolic link."""
    del leads_to_directory  # Windows wants to know
    link.symlink_to(text)


def make_sparse(fd: int) -> None:
    """Let what is not written of a file be a hole: it is one."""


def put(made: Path, target: Path, *, overwrite: bool) -> None:
    """Give a finished file its name; FileExistsError where there is one, unless that is to be replaced."""
    if overwrite:
        made.replace(target)
        return
    if not made.is_symlink():
        # A link, unlike a rename, fails when someone has put a file there meanwhile.
        try:
            os.link(made, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            pass
        else:
            made.unlink()
            return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    made.rename(target)


def discard(made: Path) -> None:
    """Remove a file that is not to be kept, or has its name already."""
    made.unlink(missing_ok=True)


def write_stream(reader: BlockReader, target: Path, name: str, *, overwrite: bool) -> None:
    """Write a stream as a ``user.`` extended attribute; raises OSError where that can't be."""
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, "streams can't be kept in files here")
    if reader.size > _LIMIT:
        raise OSError(errno.E2BIG, f"{reader.size:,} bytes are too many for an extended attribute")
    value = reader.read_at(0, reader.size)
    try:
        os.setxattr(target, f"user.{name}", value, 0 if overwrite else os.XATTR_CREATE, follow_symlinks=False)
    except OSError as error:
        if error.errno in _TOO_LARGE:
            said = f"the target takes no extended attribute of {reader.size:,} bytes here"
            raise OSError(error.errno, said) from error
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            raise OSError(error.errno, "the target takes no extended attributes here") from error
        raise


def require_security(folder: Path) -> None:
    """Raise RefusedError where no file of a folder can be given a security descriptor."""
    if sys.platform == "linux":
        try:
            os.getxattr(folder, _DESCRIPTOR)
        except OSError as error:
            if error.errno not in (*_UNKNOWN, errno.ENODATA):  # ntfs-3g finds some values too large
                return
        else:
            return
    raise RefusedError(
        "its file system takes no security descriptors", path=folder, hint="NTFS does, mounted by ntfs-3g"
    )


def set_security(path: Path, descriptor: bytes) -> None:
    """Give a file a self-relative security descriptor."""
    if sys.platform == "linux":
        os.setxattr(path, _DESCRIPTOR, descriptor, follow_symlinks=False)


def set_attributes(path: Path, known: Attributes, flags: int | None, times: bytes | None) -> None:
    """Give a file its times; on NTFS also ``flags``, its file attributes, and all its ``times``."""
    try:
        if flags is not None and known.type is not NodeType.LINK:  # a link of ntfs-3g is one by them
            _set(path, _FLAGS, (flags or _NORMAL).to_bytes(4, "big"))
        if times is not None:
            _set(path, _TIMES, times)
    finally:
        with suppress(NotImplementedError, OverflowError):
            os.utime(path, ns=(known.accessed, known.modified), follow_symlinks=False)


def _set(path: Path, name: str, value: bytes) -> None:
    if sys.platform == "linux":
        try:
            os.setxattr(path, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
