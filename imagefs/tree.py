"""The one tree: what ``ls``, ``cat``, ``cp``, every mount and every view show.

A point shows ``disk4.raw``, ``disk4/p1.raw`` and, where a file system is recognised, ``disk4/p1/…``. A
folder shows its sets, each with its readable points. Inode numbers are ``volume << 48 | own number``:
volume 0 is what is made here, the others are file systems with their own inode numbers. The root of a
volume may show more than its file system has: nodes that are added behind its entries, where none of
these has their name.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from formats.blockreader import BlockReader
from formats.container import Container, Disk, Partition, Point
from formats.errors import FormatError, UnsupportedError
from imagefs.drive_letters import DriveLetters, KnownAs
from imagefs.errors import UsageError
from imagefs.filesystems import (
    FileSystem,
    Recovery,
    Stream,
    VolumeOptions,
    open_deleted,
    open_file_system,
)
from imagefs.filesystems.nested.bitlocker import BitLocker
from imagefs.filesystems.nested.encrypted import open_encrypted
from imagefs.filesystems.nested.luks import Luks
from imagefs.filesystems.nested.lvm import LogicalVolume, logical_volumes
from imagefs.filesystems.nested.lvm_metadata import is_physical_volume
from imagefs.filesystems.nested.shadows import Shadows, has_shadows
from imagefs.readahead import ReadAheadHandle
from mounters.tree import (
    Attributes,
    Columns,
    Entry,
    Handle,
    NodeType,
    Tree,
    is_a_directory,
    no_such_attribute,
    not_a_directory,
    not_found,
)

log = logging.getLogger(__name__)

_VOLUME_SHIFT = 48
_OWN = (1 << _VOLUME_SHIFT) - 1


@dataclass(eq=False)
class _Directory:
    """A directory that is made here; its entries are made when they are first asked for."""

    inode: int
    created: int  # nanoseconds
    load: "Callable[[], Mapping[str, _Node]]"
    left_out: Mapping[str, FormatError] = field(default_factory=dict)  # names not listed, and why
    children: "Mapping[str, _Node] | None" = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(eq=False)
class _Raw:
    """A disk or partition as bytes."""

    inode: int
    created: int
    size: int
    open: Callable[[], BlockReader]


@dataclass(eq=False)
class _Volume:
    """A directory that is the root of a file system, or tells why it can't be shown."""

    inode: int  # made here; where there is a file system, its own root is shown instead
    created: int
    number: int = 0  # of the volume
    file_system: FileSystem | None = None
    problem: FormatError | None = None


class _Place(NamedTuple):
    """Where a volume lies."""

    point: Point
    name: str  # "disk4/p1"
    sector_size: int  # bytes
    known_as: KnownAs


_Node = _Directory | _Raw | _Volume


@dataclass(eq=False)
class ImageTree(Tree):
    """A tree of disks, partitions and files. Safe from several threads."""

    options: VolumeOptions = field(default_factory=VolumeOptions)
    _nodes: dict[int, _Node] = field(default_factory=dict)  # volume 0, by own number
    _volumes: dict[int, FileSystem] = field(default_factory=dict)
    _added: dict[int, dict[str, _Node]] = field(default_factory=dict)  # by inode number of a volume's root
    _added_inodes: set[int] = field(default_factory=set)
    _nested: list[Shadows | BitLocker | Luks] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _total: int = 0

    @classmethod
    def of_point(cls, point: Point, options: VolumeOptions | None = None) -> "ImageTree":
        """Return the tree of one backup point; raises FormatError when it can't be read."""
        if point.problem is not None:
            raise point.problem
        point.require_key()
        tree = cls(options or VolumeOptions())
        tree._total = sum(disk.size for disk in point.disks)
        tree.root = tree._add_directory(point, partial(tree._load_point, point)).inode
        return tree

    @classmethod
    def of_sets(cls, sets: Sequence[Container], options: VolumeOptions | None = None) -> "ImageTree":
        """Return the tree of a folder's sets.

        Points that can't be read, and sets without any other, are not listed; who asks for them by name
        is told why.
        """
        tree = cls(options or VolumeOptions())
        shown: dict[str, _Node] = {}
        left_out: dict[str, FormatError] = {}
        for container in sets:
            reasons = [(point, unreadable_reason(point)) for point in container.points]
            points = [point for point, reason in reasons if reason is None]
            refused = [(point, reason) for point, reason in reasons if reason is not None]
            if points:
                names = {name: reason for point, reason in refused if (name := _name_of(point)) is not None}
                shown[container.image_id] = tree._add_directory(
                    points[-1], partial(tree._load_set, points), names
                )
                tree._total += sum(disk.size for disk in points[-1].disks)
            elif refused:
                left_out[container.image_id] = refused[-1][1]
        created = max((node.created for node in shown.values()), default=0)
        tree.root = tree._add(_Directory(0, created, lambda: shown, left_out)).inode
        return tree

    def set_root(self, path: str) -> None:
        """Make a directory of the tree its root: a volume's own, or one above it.

        ENOENT and ENOTDIR as ``resolve`` raises them; UsageError for a directory inside a volume, whose links
        would lead out of it, into the running system. Raises FormatError when it can't be listed.
        """
        inode = self.resolve(path)
        if self.attributes(inode).type is not NodeType.DIRECTORY:
            raise not_a_directory(path)
        file_system = self.file_system(inode)
        if file_system is not None and own_number(inode) != file_system.root:
            raise UsageError(f"{path}: a disk or a volume can be shown alone, not a directory in one")
        self.entries(inode)
        self.root = inode

    # What is made here

    def _add(self, node: _Node) -> "_Node":
        with self._lock:
            node.inode = len(self._nodes) + 1
            self._nodes[node.inode] = node
            return node

    def _add_directory(
        self,
        point: Point,
        load: "Callable[[], Mapping[str, _Node]]",
        left_out: Mapping[str, FormatError] | None = None,
    ) -> "_Node":
        return self._add(_Directory(0, _nanoseconds(point), load, left_out or {}))

    def _load_set(self, points: Sequence[Point]) -> "Mapping[str, _Node]":
        return {point.name: self._add_directory(point, partial(self._load_point, point)) for point in points}

    def _load_point(self, point: Point) -> "Mapping[str, _Node]":
        children: dict[str, _Node] = {}
        letters = DriveLetters(point.disks)
        for disk in point.disks:
            children[disk.name] = self._add_directory(point, partial(self._load_disk, point, disk, letters))
            raw = _Raw(0, _nanoseconds(point), disk.size, disk.reader)
            children[f"{disk.name}.raw"] = self._add(raw)
        return children

    def _load_disk(self, point: Point, disk: Disk, letters: DriveLetters) -> "Mapping[str, _Node]":
        children: dict[str, _Node] = {}
        for partition in disk.partitions:
            raw = _Raw(0, _nanoseconds(point), partition.size, partition.reader)
            children[f"{partition.name}.raw"] = self._add(raw)
            known_as = partial(letters.names_of, disk, partition)
            place = _Place(point, f"{disk.name}/{partition.name}", disk.sector_size, known_as)
            for name, node in self._load_partition(place, partition).items():
                children[name] = self._add(node)
        return children

    def _load_partition(self, place: _Place, partition: Partition) -> "Mapping[str, _Node]":
        """Return what is inside a partition. Damage under it shows as a directory that says so."""
        children: dict[str, _Node] = {}
        try:
            reader = partition.reader()
            is_held = place.point.holds_free_space
            encrypted = open_encrypted(reader, place.name, self.options.keys)
            if encrypted is not None:
                reader = self._unlocked(encrypted)
                raw = _Raw(0, _nanoseconds(place.point), reader.size, partial(_same, reader))
                children[f"{partition.name}.decrypted.raw"] = raw
                is_held = True  # what is free inside is not free outside
            volume: _Node | None
            if is_physical_volume(reader):
                volume = self._volume_group(place)
            else:
                volume = self._load_volume(place, reader, is_held=is_held)
        except UnsupportedError as error:
            log.info("%s is shown as bytes alone: %s", place.name, error)
            return children
        except FormatError as error:
            volume = _Volume(0, _nanoseconds(place.point), problem=error)
        if volume is not None:
            children[partition.name] = volume
        return children

    def _volume_group(self, place: _Place) -> _Directory | None:
        """Return a directory of logical volumes, None where another partition shows them."""
        partitions = (
            (f"{disk.name}/{partition.name}", partition.reader())
            for disk in place.point.disks
            for partition in disk.partitions
        )
        volumes = logical_volumes(place.name, partitions)
        if volumes is None:
            return None
        return _Directory(0, _nanoseconds(place.point), partial(self._load_logical, place, volumes))

    def _load_logical(self, place: _Place, volumes: Mapping[str, LogicalVolume]) -> "Mapping[str, _Node]":
        children: dict[str, _Node] = {}
        created = _nanoseconds(place.point)
        for name, logical in volumes.items():
            inner: _Volume | None
            try:
                reader = logical.open()
                raw = _Raw(0, created, reader.size, partial(_same, reader))
                children[f"{name}.raw"] = self._add(raw)
                inner = self._load_volume(place._replace(name=f"{place.name}/{name}"), reader, is_held=True)
            except FormatError as error:
                inner = _Volume(0, created, problem=error)
            if inner is not None:
                children[name] = self._add(inner)
        return children

    def _unlocked(self, encrypted: BitLocker | Luks) -> BlockReader:
        """Return what an encrypted volume holds; PasswordError where no key has opened it."""
        if encrypted.reader is None:
            encrypted.close()
            raise encrypted.problem
        self._nested.append(encrypted)
        return encrypted.reader

    def _load_volume(self, place: _Place, reader: BlockReader, *, is_held: bool) -> _Volume | None:
        """Return a file system; raises what opening it does. ``is_held``: its free clusters are there."""
        file_system = open_file_system(reader, place.sector_size, self.options, place.known_as)
        if file_system is None:
            return None
        volume = self._new_volume(_nanoseconds(place.point), file_system)
        if file_system.kind == "NTFS" and has_shadows(reader):
            load = partial(self._load_shadows, place, reader, is_held=is_held)
            self._add_to_root(volume, "$Shadow", _Directory(0, volume.created, load))
        if self.options.deleted:
            self._add_deleted(volume, reader, place.sector_size, is_held=is_held)
        return volume

    def _add_deleted(self, volume: _Volume, reader: BlockReader, sector_size: int, *, is_held: bool) -> None:
        """Show a volume's deleted files; ``is_held``: its reader has what is in free clusters."""
        try:
            deleted = open_deleted(reader, sector_size, self.options, is_held=is_held)
        except FormatError as error:
            self._add_to_root(volume, "$Deleted", _Volume(0, volume.created, problem=error))
        else:
            if deleted is not None:
                self._add_to_root(volume, "$Deleted", self._new_volume(volume.created, deleted))

    def _load_shadows(self, place: _Place, volume: BlockReader, *, is_held: bool) -> "Mapping[str, _Node]":
        # What makes images needs trees: it is loaded when shadow copies are.
        from imagefs.filesystems.nested.known import known_shadows  # noqa: PLC0415

        opened = known_shadows(
            volume,
            place.sector_size,
            place.name,
            excluded=place.point.excluded,
            is_held=is_held,
            is_ours=place.point.is_made_by_imagefs,
        )
        self._nested.append(opened)
        children: dict[str, _Node] = {}
        for shadow in opened.shadows:
            raw = _Raw(0, _nanoseconds(place.point), shadow.reader.size, partial(_same, shadow.reader))
            children[f"{shadow.name}.raw"] = self._add(raw)
            inner = self._inner_volume(place, shadow.reader)
            if inner is not None:
                children[shadow.name] = self._add(inner)
        return children

    def _inner_volume(self, place: _Place, reader: BlockReader) -> _Volume | None:
        """Return the file system of a volume inside a volume."""
        created = _nanoseconds(place.point)
        try:
            file_system = open_file_system(reader, place.sector_size, self.options, place.known_as)
        except FormatError as error:
            return _Volume(0, created, problem=error)
        return None if file_system is None else self._new_volume(created, file_system)

    def _new_volume(self, created: int, file_system: FileSystem) -> _Volume:
        with self._lock:
            number = len(self._volumes) + 1
            self._volumes[number] = file_system
        return _Volume(0, created, number, file_system)

    def _add_to_root(self, volume: _Volume, name: str, node: "_Node") -> None:
        """Show a node in the root of a volume, before anyone has seen that."""
        self._added.setdefault(self._inode_of(volume), {})[name] = self._add(node)
        self._added_inodes.add(self._inode_of(node))

    def _children(self, directory: _Directory) -> "Mapping[str, _Node]":
        with directory.lock:
            if directory.children is None:
                directory.children = directory.load()
            return directory.children

    @staticmethod
    def _inode_of(node: "_Node") -> int:
        """Return the number that a node is shown under: a volume's root has its file system's."""
        if isinstance(node, _Volume) and node.file_system is not None:
            return node.number << _VOLUME_SHIFT | node.file_system.root
        return node.inode

    # The Tree contract

    def attributes(self, inode: int) -> Attributes:
        """Return a node's attributes."""
        volume, own = inode >> _VOLUME_SHIFT, inode & _OWN
        if volume:
            return _with_inode(self._volume(volume).attributes(own), inode)
        return self._attributes_of(self._node(own))

    def _attributes_of(self, node: "_Node") -> Attributes:
        kind, size, mode, links = NodeType.DIRECTORY, 0, 0o555, 2
        if isinstance(node, _Raw):
            kind, size, mode, links = NodeType.FILE, node.size, 0o444, 1
        time = node.created
        return Attributes(
            self._inode_of(node),
            kind,
            size,
            mode,
            links,
            modified=time,
            accessed=time,
            changed=time,
            created=time,
        )

    def entries(self, inode: int) -> Sequence[Entry]:
        """Return a directory's entries."""
        volume, own = inode >> _VOLUME_SHIFT, inode & _OWN
        if volume:
            found = self._volume(volume).entries(own)
            entries = [Entry(name, volume << _VOLUME_SHIFT | at, kind) for name, at, kind in found]
            return entries + self._added_entries(inode, entries)
        return [self._entry(name, node) for name, node in self._children(self._directory(own)).items()]

    def columns(self, inode: int) -> Columns:
        """Return a directory's entries column by column, as its file system has them."""
        volume, own = inode >> _VOLUME_SHIFT, inode & _OWN
        if not volume or inode in self._added:
            return super().columns(inode)
        names, numbers, types = self._volume(volume).columns(own)
        return Columns(names, numbers | np.uint64(volume << _VOLUME_SHIFT), types)

    def _entry(self, name: str, node: "_Node") -> Entry:
        kind = NodeType.FILE if isinstance(node, _Raw) else NodeType.DIRECTORY
        return Entry(name, self._inode_of(node), kind)

    def _added_entries(self, inode: int, others: Iterable[Entry]) -> list[Entry]:
        """Return the entries that are added to others; a name that is there already is not added."""
        added = self._added.get(inode)
        if not added:
            return []
        taken = {entry.name for entry in others}
        return [self._entry(name, node) for name, node in added.items() if name not in taken]

    def is_added(self, inode: int) -> bool:
        """Whether a node was added to a volume's root: it stands beside the volume's files."""
        return inode in self._added_inodes

    def entries_with_attributes(self, inode: int) -> Sequence[tuple[Entry, Attributes | None]]:
        """Return a directory's entries with their attributes; None where they can't be read."""
        volume, own = inode >> _VOLUME_SHIFT, inode & _OWN
        if not volume:
            return super().entries_with_attributes(inode)
        high = volume << _VOLUME_SHIFT
        found = [
            (
                Entry(entry.name, high | entry.inode, entry.type),
                _with_inode(known, high | known.inode) if known is not None else None,
            )
            for entry, known in self._volume(volume).entries_with_attributes(own)
        ]
        added = self._added_entries(inode, (entry for entry, _ in found))
        return found + [(entry, self._attributes_if_readable(entry.inode)) for entry in added]

    def lookup(self, inode: int, name: str) -> int:
        """Return the inode number of a name in a directory."""
        volume, own = inode >> _VOLUME_SHIFT, inode & _OWN
        if volume:
            try:
                return volume << _VOLUME_SHIFT | self._volume(volume).lookup(own, name)
            except (OSError, FormatError):  # what is added can be had where the root itself is damaged
                added = self._added.get(inode, {}).get(name)
                if added is None:
                    raise
                return self._inode_of(added)
        directory = self._directory(own)
        if name in directory.left_out:
            raise _again(directory.left_out[name])
        node = self._children(directory).get(name)
        if node is None:
            raise not_found(name)
        return self._inode_of(node)

    def read_link(self, inode: int) -> str:
        """Return a symbolic link's target."""
        volume, own = inode >> _VOLUME_SHIFT, inode & _OWN
        if not volume:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self._volume(volume).read_link(own)

    def open(self, inode: int) -> Handle:
        """Open a file for reading."""
        return ReadAheadHandle(self.open_reader(inode))

    def open_reader(self, inode: int) -> BlockReader:
        """Return a file's data with its holes; raises FormatError when it can't be had."""
        volume, own = inode >> _VOLUME_SHIFT, inode & _OWN
        if volume:
            return self._volume(volume).open(own)
        node = self._node(own)
        if isinstance(node, _Raw):
            return node.open()
        raise is_a_directory("")

    def streams(self, inode: int) -> Sequence[Stream]:
        """Return the named streams of a node."""
        volume, own = inode >> _VOLUME_SHIFT, inode & _OWN
        return self._volume(volume).streams(own) if volume else ()

    def open_stream(self, inode: int, name: str) -> BlockReader:
        """Return the data of a node's named stream; ENOENT when it has none of this name."""
        volume, own = inode >> _VOLUME_SHIFT, inode & _OWN
        if not volume:
            raise not_found(name)
        return self._volume(volume).open_stream(own, name)

    def recovery(self, inode: int) -> Recovery | None:
        """Return what is left of a deleted file, None for anything else."""
        volume, own = inode >> _VOLUME_SHIFT, inode & _OWN
        return self._volume(volume).recovery(own) if volume else None

    def extended_attributes(self, inode: int) -> Sequence[str]:
        """Return the names of a node's extended attributes that are listed."""
        volume, own = inode >> _VOLUME_SHIFT, inode & _OWN
        return self._volume(volume).extended_attributes(own) if volume else ()

    def extended_attribute(self, inode: int, name: str) -> bytes:
        """Return the value of an extended attribute; ENODATA when there is none."""
        volume, own = inode >> _VOLUME_SHIFT, inode & _OWN
        if not volume:
            raise no_such_attribute(name)
        return self._volume(volume).extended_attribute(own, name)

    def resolve(self, path: str) -> int:
        """Return the inode number of a path; an OSError names all of it."""
        try:
            return super().resolve(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error

    def size(self) -> int:
        """Return the bytes of the disks shown."""
        return self._total

    def file_system(self, inode: int) -> FileSystem | None:
        """Return the file system that a node is in, if it is in one."""
        return self._volumes.get(inode >> _VOLUME_SHIFT)

    def close(self) -> None:
        """Release the file systems, and end the processes that read volumes inside volumes."""
        for volume in list(self._volumes.values()):  # others may still be adding to them
            volume.close()
        for nested in list(self._nested):
            nested.close()

    def _volume(self, volume: int) -> FileSystem:
        try:
            return self._volumes[volume]
        except KeyError:
            raise not_found(f"volume {volume}") from None

    def _node(self, own: int) -> "_Node":
        try:
            return self._nodes[own]
        except KeyError:
            raise not_found(f"inode {own}") from None

    def _directory(self, own: int) -> _Directory:
        node = self._node(own)
        if isinstance(node, _Volume) and node.problem is not None:
            raise _again(node.problem)
        if not isinstance(node, _Directory):
            raise not_a_directory("")
        return node


def _with_inode(known: Attributes, inode: int) -> Attributes:
    """Return attributes under another number; in half the time of ``replace``, for 100,000 in a directory."""
    return Attributes(
        inode,
        known.type,
        known.size,
        known.mode,
        known.links,
        known.uid,
        known.gid,
        known.modified,
        known.accessed,
        known.changed,
        known.created,
        known.allocated,
        known.file_attributes,
    )


def unreadable_reason(point: Point) -> FormatError | None:
    """Return why a point can't be read now, None when it can."""
    if point.problem is not None:
        return point.problem
    try:
        point.require_key()
    except FormatError as error:
        return error
    return None


def _name_of(point: Point) -> str | None:
    """Return a point's name; one that is part of a broken set may have none."""
    with suppress(FormatError):
        return point.name
    return None


def _again(error: FormatError) -> FormatError:
    """Return an error that is kept and raised many times; else each time would lengthen its traceback."""
    return error.with_traceback(None)


def _same(reader: BlockReader) -> BlockReader:
    return reader


def own_number(inode: int) -> int:
    """Return the inode number that a node has in its own file system."""
    return inode & _OWN


def _nanoseconds(point: Point) -> int:
    return int(point.created.timestamp()) * 1_000_000_000
