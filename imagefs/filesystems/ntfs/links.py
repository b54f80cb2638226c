"""What links of an NTFS volume are shown as: links relative to the tree, else their targets as data.

A target inside the volume becomes a link that stays below the volume's root wherever that is mounted;
one outside it is shown as a regular file that holds the target as text: never as a link that the
running system would resolve. Targets are mapped as text; directories are asked for the spelling of
names, as far as the path goes through real directories.

- A drive letter or volume GUID is the volume's own where ``known_as`` says so. Where no letter of any
  volume is known, ``C:`` is the volume that holds Windows/System32.
- A link with several names in directories of different depths is shown as data where its target depends
  on that depth: no one relative text is right for all.
- ".." that climbs above the root, or is written behind a name that is a link in a POSIX target (which
  it would lead out of), makes the target data.
- Absolute targets of WSL and Interix: by drive letter (/mnt/c, /dev/fs/C), else relative to the nearest
  directory above the link that is named rootfs, where WSL keeps its Linux.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from formats.errors import DamagedError, FormatError
from imagefs.filesystems.base import LeastRecentlyUsed
from imagefs.filesystems.names import bytes_of_name, decode_name
from imagefs.filesystems.ntfs.directories import Directories
from imagefs.filesystems.ntfs.layout import (
    DIRECTORY,
    DOS_NAME,
    IN_USE,
    REFERENCE_MASK,
    ROOT,
    Attribute,
    AttributeType,
)
from imagefs.filesystems.ntfs.mft import MasterFileTable, find
from imagefs.filesystems.ntfs.reparse import LinkKind, StoredLink

Names = frozenset[str]  # "C:", "VOLUME{…}": upper case

_DEEPEST = 4096  # directories above a link; Windows stops at 32,767 characters of a path
_LONGEST = 4095  # bytes of a link's target on Linux
_PARENTS_KEPT = 20_000
_PREFIXES = ("\\??\\", "\\\\?\\", "\\\\.\\", "\\DosDevices\\", "\\GLOBAL??\\")
_OF_VOLUME = re.compile(r"([a-z]:|volume\{[0-9a-f-]{36}\})(?:\\(.*))?", re.IGNORECASE | re.DOTALL)
_OF_DRIVE = re.compile(r"/(?:mnt|dev/fs)/([a-z])(?:/(.*))?", re.IGNORECASE | re.DOTALL)


class ShownLink(NamedTuple):
    """What a link is shown as."""

    target: str | None  # relative, with "/"; None: ``text`` is shown as data
    text: bytes


class _Place(NamedTuple):
    """A directory above a link."""

    inode: int
    name: str


class Links:
    """The links of a volume. Safe from several threads.

    ``known_as`` returns the names that the volume is known by, None where no volume's letter is known.
    """

    def __init__(
        self, mft: MasterFileTable, directories: Directories, known_as: Callable[[], Names | None]
    ) -> None:
        self._mft = mft
        self._directories = directories
        self._known_as = known_as
        self._parents: LeastRecentlyUsed[int, tuple[_Place, int]] = LeastRecentlyUsed(_PARENTS_KEPT)

    def shown(self, attributes: Sequence[Attribute], link: StoredLink, what: str) -> ShownLink:
        """Return what a link is shown as, whose file record has these attributes.

        Raises FormatError where the directories above it can't be told.
        """
        target = self._map(self._chains(attributes, what), link)
        if target is not None and len(bytes_of_name(target)) > _LONGEST:
            target = None
        return ShownLink(target, link.shown.encode("utf-8", "surrogateescape"))

    def _map(self, chains: list[list[_Place]], link: StoredLink) -> str | None:
        """Return the relative target; ``chains`` are the directories above each of the link's names."""
        chain = min(chains, key=len)
        is_posix = link.kind is LinkKind.POSIX
        if link.kind is LinkKind.ABSOLUTE:
            inside = self._inside_volume(link.target)
        elif link.kind is LinkKind.RELATIVE:
            inside = link.target[1:] if link.target.startswith(("\\", "/")) else None
            if inside is None:
                return self._relative(chains, link.target.replace("\\", "/"), is_posix)
            if inside.startswith(("\\", "/")):
                return None
        elif link.target.startswith("/"):
            return self._absolute_posix(chains, link.target)
        else:
            return self._relative(chains, link.target, is_posix)
        if inside is None or not _same_depth(chains):
            return None
        return self._below(chain, chain[-1], inside.replace("\\", "/"), is_posix)

    def _absolute_posix(self, chains: list[list[_Place]], target: str) -> str | None:
        if not _same_depth(chains):
            return None
        chain = chains[0]
        drive = _OF_DRIVE.fullmatch(target)
        if drive is not None:
            if not self._is_own(f"{drive[1].upper()}:"):
                return None
            return self._below(chain, chain[-1], drive[2] or "", True)
        roots = [next((place for place in chain if place.name == "rootfs"), None) for chain in chains]
        if roots[0] is None or any(root != roots[0] for root in roots):
            return None
        return self._below(chain, roots[0], target, True)

    def _inside_volume(self, target: str) -> str | None:
        """Return the path in the volume of an absolute target of Windows, None where it lies elsewhere."""
        for prefix in _PREFIXES:
            if target[: len(prefix)].casefold() == prefix.casefold():
                target = target[len(prefix) :]
                break
        found = _OF_VOLUME.fullmatch(target)
        if found is None or not self._is_own(found[1].upper()):
            return None
        return found[2] or ""

    def _is_own(self, name: str) -> bool:
        known = self._known_as()
        if known is not None:
            return name in known
        return name == "C:" and self._holds_windows()

    def _holds_windows(self) -> bool:
        inode: int | None = ROOT
        for name in ("Windows", "System32"):
            inode = self._directory_in(inode, name)[1] if inode is not None else None
        return inode is not None

    def _below(self, chain: list[_Place], above: _Place, path: str, is_posix: bool) -> str | None:
        """Return a link from the directory ``chain[0]`` to a path below ``above``, which is in the chain."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        climbed = chain.index(above)
        return self._spelled([".."] * climbed, above.inode, _collapsed(parts, is_posix))

    def _relative(self, chains: list[list[_Place]], path: str, is_posix: bool) -> str | None:
        chain, is_alone = min(chains, key=len), len(chains) == 1
        parts = _collapsed([part for part in path.split("/") if part not in ("", ".")], is_posix)
        climbs = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
        if climbs >= len(chain):
            return None
        start = chain[climbs].inode if is_alone else None
        return self._spelled(parts[:climbs], start, parts[climbs:])

    def _spelled(self, climbs: list[str], inode: int | None, parts: list[str]) -> str | None:
        """Return a target with its names as they are stored.

        None where ".." follows a name that is not a real directory's, or climbs out.
        """
        found: list[str] = []
        way: list[int | None] = [inode]
        for part in parts:
            if part == "..":
                if len(way) == 1 or way[-1] is None:
                    return None
                way.pop()
                found.append(part)
                continue
            directory = way[-1]
            name, below = (part, None) if directory is None else self._directory_in(directory, part)
            found.append(name)
            way.append(below)
        return "/".join(climbs + found) or "."

    def _directory_in(self, inode: int, name: str) -> tuple[str, int | None]:
        """Return a name as it is stored, and its inode number where it is a real directory's.

        A name that is not there, or not to be found for damage, stays as it is; so does one for which the
        volume's own upper case has found another that would lead elsewhere, such as "../x".
        """
        try:
            stored = self._directories.stored(inode, name)
            if stored is None or not _can_be(stored[0]):
                return name, None
            record = self._mft.record(stored[1] & REFERENCE_MASK)
            is_real = (
                record.sequence == stored[1] >> 48
                and record.flags & (IN_USE | DIRECTORY) == IN_USE | DIRECTORY
                and not find(self._mft.attributes(record), AttributeType.REPARSE_POINT)
            )
        except FormatError:
            return name, None
        return stored[0], record.number if is_real else None

    # where a link is

    def _chains(self, attributes: Sequence[Attribute], what: str) -> list[list[_Place]]:
        """Return the directories above each name of a file, the root last."""
        parents = {parent for parent, _ in _names(attributes)}
        if not parents:
            raise DamagedError(f"{what}: it has no name")
        return [self._chain(parent, what) for parent in sorted(parents)]

    def _chain(self, reference: int, what: str) -> list[_Place]:
        chain: list[_Place] = []
        while True:
            place, reference = self._place(reference, what)
            chain.append(place)
            if place.inode == ROOT:
                return chain
            if len(chain) > _DEEPEST:
                raise DamagedError(f"{what}: the directories above it form a loop")

    def _place(self, reference: int, what: str) -> tuple[_Place, int]:
        """Return a directory by a reference to it, and the reference to the one above it."""
        known = self._parents.get(reference)
        if known is None:
            number = reference & REFERENCE_MASK
            record = self._mft.record(number)
            if (
                record.sequence != reference >> 48
                or record.flags & (IN_USE | DIRECTORY) != IN_USE | DIRECTORY
            ):
                raise DamagedError(f"{what}: the directory that it is in, {number}, has become another file")
            names = _names(self._mft.attributes(record))
            if len({parent for parent, _ in names}) != 1:
                raise DamagedError(f"directory {number}: it has no name, or several places")
            known = _Place(number, names[0][1]), names[0][0]
            self._parents.put(reference, known)
        return known


def _names(attributes: Sequence[Attribute]) -> list[tuple[int, str]]:
    """Return the (reference of the directory, name) of a file's names, 8.3 twins left out."""
    values = (item.value for item in attributes if item.type == AttributeType.FILE_NAME)
    return [
        (int.from_bytes(value[:8], "little"), decode_name(value[66 : 66 + 2 * value[64]]))
        for value in values
        if value is not None
        and len(value) >= 66
        and len(value) >= 66 + 2 * value[64]
        and value[65] != DOS_NAME
    ]


def _can_be(name: str) -> bool:
    """Tell whether a stored name can be a part of a link's target."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def directories_of(attributes: Sequence[Attribute]) -> frozenset[int]:
    """Return the numbers of the directories that a file's names say it lies in."""
    return frozenset(parent & REFERENCE_MASK for parent, _ in _names(attributes))


def _same_depth(chains: list[list[_Place]]) -> bool:
    return len({len(chain) for chain in chains}) == 1


def _collapsed(parts: list[str], is_posix: bool) -> list[str]:
    """Return the parts of a path without "name/..", as Windows takes it: by the text alone."""
    if is_posix:
        return parts
    found: list[str] = []
    for part in parts:
        if part == ".." and found and found[-1] != "..":
            found.pop()
        else:
            found.append(part)
    return found
