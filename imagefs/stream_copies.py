"""What a copy gets of a file beside its data: streams, rights, file attributes, times."""

import posixpath
import sys
from collections.abc import Iterator
from pathlib import Path

from formats.errors import FormatError
from imagefs.tree import ImageTree, own_number
from mounters.tree import Attributes, NodeType

if sys.platform == "win32":
    from imagefs import copies_windows as system
else:
    from imagefs import copies_posix as system

__all__ = ["finish", "leads_to_directory", "system"]

_FLAGS, _TIMES, _DESCRIPTOR = "system.ntfs_attrib_be", "system.ntfs_times_be", "system.ntfs_acl"
_FLAG_DIRECTORY = 0x10  # FILE_ATTRIBUTE_DIRECTORY, also of a link to one

Failure = tuple[str, Exception]  # a stream's name, "" for the file itself; why it is not kept


def finish(
    tree: ImageTree, known: Attributes, copy: Path, *, streams: bool, security: bool, overwrite: bool
) -> Iterator[Failure]:
    """Give a copy what its node has beside data, in the order in which nothing undoes another.

    Yields what can't be kept. ``streams`` are named ones, on Linux with them the file attributes and times of
    NTFS; ``security`` is the security descriptor.
    """
    if streams:
        yield from _copy_streams(tree, known.inode, copy, overwrite=overwrite)
    if security:
        yield from _copy_security(tree, known.inode, copy)
    flags = times = None
    if streams or not system.FLAGS_ON_REQUEST:
        flags = None if _is_volume(tree, known.inode) else known.file_attributes
        try:
            times = _value(tree, known.inode, _TIMES)
        except FormatError as error:
            yield "", error
    try:
        system.set_attributes(copy, known, flags, times)
    except OSError as error:
        yield "", error


def leads_to_directory(tree: ImageTree, path: str, inode: int, text: str) -> bool:
    """Whether a link at ``path`` leads to a directory: its record says so, or what is there in the tree."""
    try:
        flags = _value(tree, inode, _FLAGS)
        if flags is not None and flags[3] & _FLAG_DIRECTORY:
            return True
        there = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), text))
        return tree.attributes(tree.resolve(there)).type is NodeType.DIRECTORY
    except (OSError, FormatError):
        return False


def _copy_streams(tree: ImageTree, inode: int, copy: Path, *, overwrite: bool) -> Iterator[Failure]:
    try:
        streams = tree.streams(inode)
    except FormatError as error:
        yield "", error
        return
    for name, _, _ in streams:
        try:
            system.write_stream(tree.open_stream(inode, name), copy, name, overwrite=overwrite)
        except (OSError, FormatError, ValueError) as error:  # ValueError: a name that no system takes
            yield name, error


def _copy_security(tree: ImageTree, inode: int, copy: Path) -> Iterator[Failure]:
    try:
        descriptor = _value(tree, inode, _DESCRIPTOR)
        if descriptor is not None:
            system.set_security(copy, descriptor)
    except (OSError, FormatError) as error:
        yield "", error


def _is_volume(tree: ImageTree, inode: int) -> bool:
    """Whether a node is the root of a volume: hidden and of the system, which a folder would be then."""
    file_system = tree.file_system(inode)
    return file_system is not None and own_number(inode) == file_system.root


def _value(tree: ImageTree, inode: int, name: str) -> bytes | None:
    """Return an extended attribute, None where there is none, as of another file system."""
    try:
        return tree.extended_attribute(inode, name)
    except OSError:
        return None
