"""File systems as The Sleuth Kit (pytsk3) interprets them.

TSK is asked by inode, under one lock per file system. What it tells of a file is kept in bounded
caches; a file's bytes are read from the volume by its data runs, outside the lock.
"""

import errno
import os
from calendar import timegm
from collections.abc import Iterable, Iterator, Sequence
from time import localtime
from typing import Any, NamedTuple

import pytsk3

from formats.blockreader import BlockReader, BytesReader
from formats.errors import DamagedError, UnsupportedError
from imagefs.filesystems.base import CachedFileSystem
from imagefs.filesystems.names import name_of_bytes
from imagefs.filesystems.runs import Run, RunsReader
from imagefs.filesystems.tsk_image import TskFile, TskImage, data_attribute
from mounters.tree import Attributes, Entry, NodeType, is_a_directory

_HFS_FIRST_USER = 16  # catalog nodes below are the file system's own

_TYPES = {
    int(pytsk3.TSK_FS_META_TYPE_REG): NodeType.FILE,
    int(pytsk3.TSK_FS_META_TYPE_DIR): NodeType.DIRECTORY,
    int(pytsk3.TSK_FS_META_TYPE_LNK): NodeType.LINK,
}
_NAME_TYPES = {
    int(pytsk3.TSK_FS_NAME_TYPE_REG): NodeType.FILE,
    int(pytsk3.TSK_FS_NAME_TYPE_DIR): NodeType.DIRECTORY,
    int(pytsk3.TSK_FS_NAME_TYPE_LNK): NodeType.LINK,
}
_VIRTUAL = {
    int(pytsk3.TSK_FS_NAME_TYPE_VIRT),
    int(pytsk3.TSK_FS_NAME_TYPE_VIRT_DIR),
}
_ALLOCATED = int(pytsk3.TSK_FS_NAME_FLAG_ALLOC)
_NONRESIDENT = int(pytsk3.TSK_FS_ATTR_NONRES)
_COMPRESSED = int(pytsk3.TSK_FS_ATTR_COMP)
_SPARSE_RUN = int(pytsk3.TSK_FS_ATTR_RUN_FLAG_SPARSE)
_FILLER_RUN = int(pytsk3.TSK_FS_ATTR_RUN_FLAG_FILLER)


class _RunTuple(NamedTuple):
    addr: int  # block of the volume
    length: int  # blocks
    offset: int  # block of the file
    flags: int


class TskFileSystem(CachedFileSystem):
    """A file system as pytsk3 shows it.

    ``direct`` says that a file's runs are the whole truth about where its bytes are; where they are
    not (ISO 9660 skips extended attributes inside them) TSK reads.
    """

    def __init__(
        self,
        reader: BlockReader,
        image: TskImage,
        fs: Any,
        *,
        kind: str,
        label: str = "",
        direct: bool = True,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.label = label
        self.root = int(fs.info.root_inum)
        self.block_size = self._unit = int(fs.info.block_size)
        self._reader = reader
        self._image = image
        self._fs = fs
        self._direct = direct

    def read_link(self, inode: int) -> str:
        """Return a symbolic link's target."""
        with self._image.calls(f"inode {inode}"):
            meta = self._fs.open_meta(inode).info.meta
            target = meta.link if int(meta.type) == int(pytsk3.TSK_FS_META_TYPE_LNK) else None
        if self.attributes(inode).type is not NodeType.LINK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if not target:
            raise DamagedError(f"inode {inode}: a link without a target")
        return name_of_bytes(target) if isinstance(target, bytes) else str(target)

    def open(self, inode: int) -> BlockReader:
        """Return a file's data."""
        attributes = self.attributes(inode)
        if attributes.type is NodeType.DIRECTORY:
            raise is_a_directory(str(inode))
        if attributes.type is not NodeType.FILE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        name = f"inode {inode}"
        with self._image.calls(name):
            data = data_attribute(node := self._fs.open_meta(inode))
            flags = 0 if data is None else int(data.info.flags)
            runs = [] if data is None else _runs_of(data)
            del data, node  # in this order: TSK's attribute is part of its file
        if not attributes.size:
            return BytesReader(b"")
        if not flags & _NONRESIDENT or flags & _COMPRESSED or not self._direct:
            return TskFile(self._image, self._fs, inode, attributes.size, name)
        placed = self._placed(runs, name)
        return RunsReader(self._reader, placed, attributes.size, name=name)

    def _placed(self, runs: Sequence[_RunTuple], name: str) -> Iterator[Run]:
        """Yield runs in bytes; sparse ones are holes, gaps between them damage."""
        unit, position = self._unit, 0
        for run in sorted(runs, key=lambda item: item.offset):
            if run.flags & _FILLER_RUN or run.offset != position:
                raise DamagedError(f"{name}: its block {position} has no place on the volume")
            position += run.length
            start = None if run.flags & _SPARSE_RUN else run.addr * unit
            yield Run(run.length * unit, start)

    def _load_attributes(self, inode: int) -> Attributes:
        with self._image.calls(f"inode {inode}"):
            return self._attributes_of(inode, self._fs.open_meta(inode))

    def _load_listing(self, inode: int) -> Iterable[Entry]:
        with self._image.calls(f"directory {inode}"):
            return [
                entry
                for node in self._fs.open_dir(inode=inode)
                if (entry := self._entry_of(inode, node)) is not None
            ]

    def _entry_of(self, directory: int, node: Any) -> Entry | None:
        """Return a TSK directory entry as ours, None where it is deleted or TSK's own."""
        name, meta = node.info.name, node.info.meta
        inode = int(name.meta_addr)
        if not int(name.flags) & _ALLOCATED or int(name.type) in _VIRTUAL:
            return None
        if self.kind == "HFS+" and inode < _HFS_FIRST_USER:
            return None
        raw: bytes = name.name
        if raw in (b"", b".", b".."):
            return None
        if b"/" in raw or b"\0" in raw:
            raise UnsupportedError(f"directory {directory}: the name {raw!r} can't be shown")
        if meta is None:
            kind = _NAME_TYPES.get(int(name.type), NodeType.OTHER)
        else:
            kind = _TYPES.get(int(meta.type), NodeType.OTHER)
        return Entry(name_of_bytes(raw), inode, kind)

    def _attributes_of(self, inode: int, node: Any) -> Attributes:
        meta = node.info.meta
        kind = _TYPES.get(int(meta.type), NodeType.OTHER)
        size = int(meta.size) if kind is not NodeType.OTHER else 0
        allocated = self._allocated(node) if kind is NodeType.FILE else None
        if self.kind == "ISO 9660":  # one time only, which TSK runs through the machine's time zone
            created = modified = timegm(localtime(int(meta.crtime))) * 1_000_000_000
        else:
            created = int(meta.crtime) * 1_000_000_000 + int(meta.crtime_nano)
            modified = int(meta.mtime) * 1_000_000_000 + int(meta.mtime_nano)
        return Attributes(
            inode=inode,
            type=kind,
            size=size,
            mode=int(meta.mode) & 0o7777 or (0o555 if kind is NodeType.DIRECTORY else 0o444),
            links=int(meta.nlink),
            uid=int(meta.uid),
            gid=int(meta.gid),
            modified=modified,
            accessed=int(meta.atime) * 1_000_000_000 + int(meta.atime_nano),
            changed=int(meta.ctime) * 1_000_000_000 + int(meta.ctime_nano),
            created=created,
            allocated=allocated,
        )

    def _allocated(self, node: Any) -> int:
        data = data_attribute(node)
        if data is None or not int(data.info.flags) & _NONRESIDENT:
            return 0
        blocks = sum(run.length for run in _runs_of(data) if not run.flags & (_SPARSE_RUN | _FILLER_RUN))
        return blocks * self._unit


def _runs_of(attribute: Any) -> list[_RunTuple]:
    return [_RunTuple(int(run.addr), int(run.len), int(run.offset), int(run.flags)) for run in attribute]
