"""Files of NTFS whose contents are left out: found by the file records, which tell all of a file's names."""

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from formats.errors import DamagedError
from imagefs.filesystems.names import decode_name
from imagefs.filesystems.ntfs.index import read_index
from imagefs.filesystems.ntfs.layout import (
    DIRECTORY,
    DOS_NAME,
    IN_USE,
    PAGING_FILES,
    REFERENCE_MASK,
    ROOT,
    Attribute,
    AttributeType,
    Boot,
    parse_record,
)
from imagefs.filesystems.ntfs.mft import MasterFileTable, find
from imagefs.imaging.used_space.base import Runs
from imagefs.imaging.used_space.cluster_runs import NO_RUNS, subtract, union
from imagefs.imaging.used_space.left_out import LeftOut
from imagefs.imaging.used_space.patterns import Patterns

_RESERVED = 24  # records below are the file system's own, or kept for it
_FILES_AT_ONCE = 1 << 14  # held against the files excluded


class _Name(NamedTuple):
    """One of a file's names."""

    parent: int  # reference
    name: str


class _File(NamedTuple):
    """A file or directory by its base record."""

    number: int
    sequence: int
    is_directory: bool
    names: list[_Name]  # without 8.3 twins
    attributes: list[Attribute]


def cluster_runs(mft: MasterFileTable, boot: Boot, attributes: Iterable[Attribute], what: str) -> Runs:
    """Return the clusters of some attributes' data runs, in runs (start, end).

    Raises DamagedError where they lie outside the volume, or can't be read.
    """
    streams: dict[tuple[int, str], list[Attribute]] = {}
    for attribute in attributes:
        if attribute.value is None:
            streams.setdefault((attribute.type, attribute.name), []).append(attribute)
    found = [
        (run.start // boot.cluster_size, (run.start + run.length) // boot.cluster_size)
        for extents in streams.values()
        for run in mft.runs(sorted(extents, key=lambda extent: extent.first_vcn), what)
        if run.start is not None
    ]
    runs = np.array(found, np.int64).reshape(-1, 2)
    if len(runs) and int(runs[:, 1].max()) > boot.clusters:
        raise DamagedError(f"{what}: its data lie outside the volume")
    return runs


def paging_files(mft: MasterFileTable, boot: Boot) -> LeftOut:
    """Return the files in the root directory that Windows writes anew at each start.

    One that has another name elsewhere, or is damaged, is kept. That no other file uses their clusters as
    well is taken for granted: it would take reading all file records.
    """
    left_out = LeftOut()
    size = boot.clusters * boot.cluster_size
    try:
        nodes = list(read_index(mft, ROOT, boot.cluster_size, size))
    except DamagedError:
        return left_out
    names = (pair for node in nodes for pair in zip(node.names, node.references.tolist(), strict=True))
    for name, reference in names:
        number = reference & REFERENCE_MASK
        if name.lower() not in PAGING_FILES or number < _RESERVED:
            continue
        try:
            file = _parse(mft, mft.raw_record(number), number)
            is_paging = file is not None and file.sequence == reference >> 48 and not file.is_directory
            if file is None or not is_paging or not _has_only(file, lambda known: _is_paging(mft, known)):
                continue
            clusters = cluster_runs(mft, boot, find(file.attributes, AttributeType.DATA), name)
        except DamagedError:
            continue
        if len(clusters):
            left_out += LeftOut((name,), clusters)
    return left_out


def excluded_files(mft: MasterFileTable, boot: Boot, patterns: Iterable[str]) -> LeftOut:
    """Return the files all of whose names match; what another file uses as well is kept.

    Goes through all file records three times: for the directories, for the files, for what they use.
    Raises DamagedError where one of them can't be read: its clusters are not known then.
    """
    folders = _Folders(mft, Patterns(patterns))
    paths: dict[int, str] = {}
    runs: list[Runs] = []
    for number, raw in _used_records(mft, _RESERVED):
        file = None if _is_directory(raw) else _parse(mft, raw, number)
        if file is None or not _has_only(file, folders.is_excluded):
            continue
        clusters = _contents(mft, boot, file)
        if len(clusters):
            runs.append(clusters)
            paths[number] = folders.path(file.names[0]) or ""
    if not paths:
        return LeftOut()
    mine = union(np.concatenate(runs))
    kept = _also_used(mft, boot, mine, paths.keys())
    if len(kept):
        mine = subtract(mine, kept)
        paths = {
            number: paths[number] for number, own in zip(paths, runs, strict=True) if len(subtract(own, kept))
        }
    return LeftOut(tuple(paths.values()), mine)


class _Folders:
    """The directories of a volume: where they lie, and which of them are excluded with all below them."""

    def __init__(self, mft: MasterFileTable, patterns: Patterns) -> None:
        self._patterns = patterns
        self._known: dict[int, tuple[int, _Name]] = {}  # sequence, name; by number
        self._paths: dict[int, tuple[str, bool] | None] = {}
        for number, raw in _used_records(mft, _RESERVED):
            folder = _parse(mft, raw, number) if _is_directory(raw) else None
            if folder is not None and len(folder.names) == 1:
                self._known[number] = folder.sequence, folder.names[0]
        self._root_sequence = mft.record(ROOT).sequence

    def path(self, name: _Name) -> str | None:
        """Return the path of a name, None where it does not lead to the root directory."""
        parent = self._folder(name.parent)
        return None if parent is None else parent[0] + name.name

    def is_excluded(self, name: _Name) -> bool:
        """Whether a file's name is excluded, by itself or by a directory above it."""
        parent = self._folder(name.parent)
        return parent is not None and (parent[1] or self._patterns.match(parent[0] + name.name))

    def _folder(self, reference: int) -> tuple[str, bool] | None:
        """Return a directory's path with "/" at its end, and whether it is excluded."""
        chain: list[int] = []
        found: tuple[str, bool] | None = None
        while True:
            number, sequence = reference & REFERENCE_MASK, reference >> 48
            if number == ROOT:
                found = ("", False) if sequence == self._root_sequence else None
                break
            known = self._known.get(number)
            if known is None or known[0] != sequence or number in chain:
                break
            if number in self._paths:
                found = self._paths[number]
                break
            chain.append(number)
            reference = known[1].parent
        for number in reversed(chain):
            if found is not None:
                path = found[0] + self._known[number][1].name
                found = path + "/", found[1] or self._patterns.match(path)
            self._paths[number] = found
        return found


def _contents(mft: MasterFileTable, boot: Boot, file: _File) -> Runs:
    """Return the clusters of a file's unnamed data."""
    what = f"file record {file.number}"
    return union(cluster_runs(mft, boot, find(file.attributes, AttributeType.DATA), what))


def _also_used(mft: MasterFileTable, boot: Boot, mine: Runs, excluded: Iterable[int]) -> Runs:
    """Return what of some clusters is used by more than the unnamed data of the files excluded."""
    found: list[Runs] = []
    batch: list[Runs] = []
    numbers = set(excluded)

    def compare() -> None:
        theirs = union(np.concatenate([NO_RUNS, *batch]))
        shared = subtract(mine, subtract(mine, theirs))
        found.append(shared)
        batch.clear()

    for number, raw in _used_records(mft, 0):
        file = _parse(mft, raw, number)
        if file is None:
            continue
        attributes = [
            attribute
            for attribute in file.attributes
            if attribute.value is None
            and not (number in numbers and attribute.type == AttributeType.DATA and not attribute.name)
        ]
        if attributes:
            batch.append(cluster_runs(mft, boot, attributes, f"file record {number}"))
        if len(batch) == _FILES_AT_ONCE:
            compare()
    compare()
    return union(np.concatenate(found))


def _used_records(mft: MasterFileTable, first: int) -> Iterator[tuple[int, bytes]]:
    """Yield (number, record as stored) of those in use that are no other's extension."""
    numbers = range(first, mft.data.size // mft.record_size)
    for number, kept in zip(numbers, mft.raw_records(numbers), strict=True):
        raw = kept or mft.raw_record(number)
        if raw[:4] == b"FILE":
            (flags,) = struct.unpack_from("<H", raw, 22)
            (base,) = struct.unpack_from("<Q", raw, 32)
            if flags & IN_USE and not base:
                yield number, raw
        elif any(raw[:4]):
            raise DamagedError(f"file record {number}: {raw[:4]!r} in place of b'FILE'")


def _is_directory(raw: bytes) -> bool:
    return bool(struct.unpack_from("<H", raw, 22)[0] & DIRECTORY)


def _parse(mft: MasterFileTable, raw: bytes, number: int) -> _File | None:
    """Return a file, None where the record is not one's; without names where they don't add up."""
    record = parse_record(raw, number)
    if not record.flags & IN_USE or record.base:
        return None
    attributes = mft.attributes(record)
    names: list[_Name] = []
    twins = 0
    for attribute in find(attributes, AttributeType.FILE_NAME):
        value = attribute.value or b""
        if len(value) < 66 or len(value) < 66 + 2 * value[64]:
            raise DamagedError(f"file record {number}: a name of {len(value)} bytes")
        if value[65] == DOS_NAME:
            twins += 1
            continue
        (parent,) = struct.unpack_from("<Q", value)
        names.append(_Name(parent, decode_name(value[66 : 66 + 2 * value[64]])))
    (links,) = struct.unpack_from("<H", raw, 18)
    if links not in (len(names), len(names) + twins):
        names = []
    return _File(number, record.sequence, bool(record.flags & DIRECTORY), names, attributes)


def _has_only(file: _File, is_meant: Callable[[_Name], bool]) -> bool:
    return bool(file.names) and all(map(is_meant, file.names))


def _is_paging(mft: MasterFileTable, name: _Name) -> bool:
    """Whether a name is that of a paging file in the root directory."""
    is_in_root = name.parent == ROOT | mft.record(ROOT).sequence << 48
    return is_in_root and name.name.lower() in PAGING_FILES
