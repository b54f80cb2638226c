"""Which files on a copied disk's volumes name ids that the copy has no more, so that it may not start.

Looked for are the ids of disks and partitions: as text in what Linux and boot loaders are configured by, as
bytes in what Windows keeps. UUIDs and serial numbers of file systems are copied and go on being right.
Bounded: known places alone, and of each file no more than its first 64 MiB.
"""

import errno
import fnmatch
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from formats.errors import ReportedError, UnsupportedError
from formats.partition_table import PartitionTable
from imagefs.filesystems import FileSystem, open_file_system
from imagefs.filesystems.contents import family_of
from imagefs.restore.layout import Volume
from mounters.tree import NodeType

_MOST_BYTES = 64 << 20  # of a file
_PIECE = 4 << 20  # bytes read at once
_OVERLAP = 256  # bytes; more than any id is long
_MOST_MATCHES = 500  # files of a folder with a pattern
_MOST_PROBLEMS = 3  # of a volume: then it is left
_MOST_LINKS = 16
_WITHOUT_CASE = ("NTFS", "FAT", "exFAT")

_BOOT = (  # below a folder or a volume that computers start from
    "grub/*.cfg",
    "grub/grubenv",
    "grub2/*.cfg",
    "grub2/grubenv",
    "loader/*.conf",
    "loader/entries/*.conf",
    "extlinux/*.conf",
    "syslinux/*.cfg",
    "isolinux/*.cfg",
    "*linux.cfg",
    "extlinux.conf",
    "refind_linux.conf",
    "cmdline*.txt",
    "uEnv.txt",
    "armbianEnv.txt",
    "EFI/*/*.cfg",
    "EFI/*/*.conf",
    "EFI/*/grubenv",
    "EFI/Linux/*.efi",
    "limine.conf",
)
_TEXTS = (
    "etc/fstab",
    "etc/crypttab",
    "etc/default/grub",
    "etc/default/grub.d/*.cfg",
    "etc/kernel/cmdline",
    "etc/lilo.conf",
    "etc/initramfs-tools/conf.d/*",
    "etc/systemd/system/*.mount",
    "etc/systemd/system/*.swap",
    *(f"{folder}{name}" for folder in ("", "boot/", "boot/efi/", "boot/firmware/", "efi/") for name in _BOOT),
)
_WINDOWS_BOOT = ("Boot/BCD", "EFI/Microsoft/Boot/BCD")
_WINDOWS_HIVE = ("Windows/System32/config/SYSTEM",)


@dataclass(frozen=True, slots=True)
class _Pattern:
    """What an id looks like in a file, and what it is called."""

    find: re.Pattern[bytes]
    old: str
    new: str
    number: int | None  # of the partition; None: the disk's


def references(
    volumes: Sequence[Volume], mapping: Mapping[str, str], table_before: PartitionTable | None
) -> list[str]:
    """Return a line for each file and old id in it, and for each volume that can't be searched.

    ``mapping`` is what ``with_new_ids`` returned for ``table_before``. Nothing that is wrong with a volume is
    raised.
    """
    if table_before is None or not mapping:
        return []
    told = []
    for volume in volumes:
        name = f"partition {volume.number}"
        try:
            told += [f"{name}: {line}" for line in _of_volume(volume, mapping, table_before)]
        except ReportedError as error:
            told.append(f"{name}: can't be searched for old ids: {error.what}")
    return told


def _of_volume(volume: Volume, mapping: Mapping[str, str], table: PartitionTable) -> Iterator[str]:
    family = family_of(volume.reader)
    try:
        opened = open_file_system(volume.reader, table.sector_size)
    except UnsupportedError:
        opened = None
    if opened is None:
        if family and family != "swap":
            yield f"{family} can't be searched for old ids"
        return
    problems = 0
    texts, boot, hive = _texts(mapping, table), _bytes(mapping, table), _mounted_devices(mapping, table)
    with opened:
        seen: set[int] = set()
        for pattern, wanted, meaning in (
            *((path, texts, "") for path in _TEXTS),
            *((path, boot, "; bcdboot makes it anew") for path in _WINDOWS_BOOT),
            *((path, hive, " for a drive letter") for path in _WINDOWS_HIVE),
        ):
            try:
                for path, inode in _matching(opened, pattern):
                    if inode not in seen:
                        seen.add(inode)
                        for line in _search(opened, inode, wanted):
                            yield f"/{path} {line}{meaning}"
            except ReportedError as error:
                problems += 1
                yield f"/{pattern} can't be searched for old ids: {error.what}"
                if problems == _MOST_PROBLEMS:
                    return


def _search(fs: FileSystem, inode: int, wanted: Sequence[_Pattern]) -> Iterator[str]:
    """Yield a line for each id that a file names."""
    reader = fs.open(inode)
    size = min(reader.size, _MOST_BYTES)
    missing = list(wanted)
    found = []
    for offset in range(0, size, _PIECE):
        start = max(0, offset - _OVERLAP)
        data = reader.read_at(start, min(offset + _PIECE, size) - start)
        hit = [pattern for pattern in missing if pattern.find.search(data)]
        missing = [pattern for pattern in missing if pattern not in hit]
        found += hit
    for pattern in found:
        which = "the disk" if pattern.number is None else f"partition {pattern.number}"
        yield f"names {which} by the old id {pattern.old}, which is now {pattern.new}"


# --- What is looked for ---


def _texts(mapping: Mapping[str, str], table: PartitionTable) -> list[_Pattern]:
    """Return the patterns of ids that are written out, in any case, in ASCII or UTF-16."""
    if table.scheme == "mbr":
        old, new = table.disk_id, mapping.get(table.disk_id, "")
        if not int(old or "0", 16):
            return []
        found = [_Pattern(_written(f"0x{old}"), old, new, None)]
        for entry in table.partitions:
            suffix = f"-{entry.number:02x}"
            found.append(_Pattern(_written(old + suffix), f"{old}{suffix}", f"{new}{suffix}", entry.number))
        return found
    return [_Pattern(_written(old), old, new, number) for old, new, number in _guids(mapping, table)]


def _written(text: str) -> re.Pattern[bytes]:
    forms = (re.escape(text.encode("ascii")), re.escape(text.encode("utf-16-le")))
    return re.compile(rb"(?<![0-9a-f-])%b(?![0-9a-f-])|%b" % forms, re.IGNORECASE)


def _guids(mapping: Mapping[str, str], table: PartitionTable) -> Iterator[tuple[str, str, int | None]]:
    numbers = {entry.id: entry.number for entry in reversed(table.partitions)}
    for old, new in mapping.items():
        if uuid.UUID(old).int:
            yield old, new, numbers.get(old)


def _bytes(mapping: Mapping[str, str], table: PartitionTable) -> list[_Pattern]:
    """Return the patterns of ids as they are stored."""
    if table.scheme == "mbr":
        number = int(table.disk_id or "0", 16)
        find = re.compile(re.escape(number.to_bytes(4, "little")), re.DOTALL)
        return [_Pattern(find, table.disk_id, mapping.get(table.disk_id, ""), None)] if number else []
    return [
        _Pattern(re.compile(re.escape(uuid.UUID(old).bytes_le), re.DOTALL), old, new, number)
        for old, new, number in _guids(mapping, table)
    ]


def _mounted_devices(mapping: Mapping[str, str], table: PartitionTable) -> list[_Pattern]:
    """Return the patterns of the values of MountedDevices in the registry.

    GPT: "DMIO:ID:" and the partition's GUID; MBR: the signature and the partition's offset in bytes.
    """
    if table.scheme == "mbr":
        old, new = table.disk_id, mapping.get(table.disk_id, "")
        signature = int(old or "0", 16).to_bytes(4, "little")
        return [
            _Pattern(
                re.compile(re.escape(signature + entry.offset.to_bytes(8, "little"))), old, new, entry.number
            )
            for entry in table.partitions
            if any(signature)
        ]
    return [
        _Pattern(re.compile(re.escape(b"DMIO:ID:" + uuid.UUID(old).bytes_le)), old, new, number)
        for old, new, number in _guids(mapping, table)
    ]


# --- Where ---


def _matching(fs: FileSystem, pattern: str) -> Iterator[tuple[str, int]]:
    """Yield the paths and inode numbers of the files that a pattern means, links followed."""
    places = [("", fs.root)]
    *folders, last = pattern.split("/")
    for part in folders:
        places = [
            (path, target)
            for folder, inode in places
            for path, child in _children(fs, folder, inode, part)
            if (target := _followed(fs, path, child)) is not None
        ]
    for folder, inode in places:
        for path, child in _children(fs, folder, inode, last):
            target = _followed(fs, path, child)
            if target is not None and fs.attributes(target).type is NodeType.FILE:
                yield path, target


def _children(fs: FileSystem, path: str, folder: int, pattern: str) -> list[tuple[str, int]]:
    """Return the names in a folder that a pattern means, none where it is no folder."""
    prefix = f"{path}/" if path else ""
    without_case = fs.kind.startswith(_WITHOUT_CASE)
    try:
        if "*" not in pattern:
            try:
                return [(prefix + pattern, fs.lookup(folder, pattern))]
            except OSError as error:
                if error.errno != errno.ENOENT or not without_case:
                    raise
        names = fs.entries(folder)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return []
        raise
    find = re.compile(fnmatch.translate(pattern), re.IGNORECASE if without_case else 0)
    matches = [entry.name for entry in names if find.match(entry.name)][:_MOST_MATCHES]
    return [(prefix + name, fs.lookup(folder, name)) for name in matches]


def _followed(fs: FileSystem, path: str, inode: int) -> int | None:
    """Return what is at a path, or what a link there leads to on its volume; None for nothing."""
    if fs.attributes(inode).type is not NodeType.LINK:
        return inode
    trail, links = [fs.root], 0
    todo = path.split("/")[::-1]
    while todo:
        part = todo.pop()
        if part == "..":
            trail = trail[:-1] or [fs.root]
        if part in {"", ".", ".."}:
            continue
        try:
            inode = fs.lookup(trail[-1], part)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR}:
                return None
            raise
        if fs.attributes(inode).type is not NodeType.LINK:
            trail.append(inode)
            continue
        links += 1
        target = fs.read_link(inode)
        if links > _MOST_LINKS:
            return None
        trail = [fs.root] if target.startswith("/") else trail
        todo += target.split("/")[::-1]
    return trail[-1]
