"""Verification: checks that cover every metadata block and every stored block."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from formats.container import BadBlock, Check, CheckResult, FileAuthentication
from formats.errors import DamagedBlockError, FormatError, PasswordError
from formats.mrimgx.backup_set import Members
from formats.mrimgx.image_file import ImageFile
from formats.mrimgx.index import Element, Elements, ElementTable, stored
from formats.mrimgx.layout import RESERVED_BLOCK_SIZE
from formats.mrimgx.reader import BlockPlace

if TYPE_CHECKING:
    from formats.mrimgx.points import MrimgxPartition, MrimgxPoint

_BLOCKS = 64  # that one Check covers: 4 MiB of data as a rule


def check_point(point: "MrimgxPoint") -> Iterator[Check]:
    """Yield checks of what one point uses. Raises FormatError when the point is incomplete."""
    for image in files_of(point):
        yield Check(0, partial(_check_file, point.members, image))
    for part in _partitions(point):
        try:
            for index, place, size in part.arrays():
                for first, elements in index.runs(0, index.count):
                    rows = np.flatnonzero(stored(elements))
                    yield from _check_blocks(
                        point.members, point.image, place, size, rows + first, elements[rows]
                    )
        except FormatError as error:
            yield _failed(error, point.image, part.place.partition)


def files_of(point: "MrimgxPoint") -> Sequence[ImageFile]:
    """Return the files that a point uses, in order; only its own while it is incomplete."""
    if point.problem is not None:
        return (point.image,)
    files = {*point.chain.files, *point.chain.earlier.values(), *point.chain.holders}
    for image in tuple(files):
        with suppress(FormatError):  # an index that can't be used is told by its check
            files |= {point.members.holder(number) for number in point.members.named(image)}
    return sorted(files, key=lambda image: image.document.file_number)


def states(members: Members, files: Iterable[ImageFile]) -> Sequence[FileAuthentication]:
    """Return what is known of files' authentication; nothing of a set that is locked or not encrypted."""
    return tuple(state for image in files if (state := members.state(image)) is not None)


def count_point(point: "MrimgxPoint") -> int:
    """Count the data blocks that ``check_point`` covers."""
    total = 0
    for part in _partitions(point):
        with suppress(FormatError):
            total += sum(index.stored_count() for index, _, _ in part.arrays())
    return total


def _partitions(point: "MrimgxPoint") -> Iterator["MrimgxPartition"]:
    return (partition for disk in point.disks for partition in disk.partitions)


def check_set(members: Members) -> Iterator[Check]:
    """Yield checks of all files of a set and of each stored block once, by every index that names it.

    Where two index entries tell different things of the same bytes, both are checked. Blocks of files
    that are not there are left out: the points that need them tell of that.
    """
    seen = _Seen(members.spoiled)
    for image in members.files:
        yield Check(0, partial(_check_file, members, image))
        for at, part in image.document.partitions():
            place = BlockPlace.of(image.document, at)
            try:
                own = image.index(*at)
                for array, table, size in (
                    (place.reserved(), own.reserved, RESERVED_BLOCK_SIZE),
                    (place, own.blocks, part.block_size),
                ):
                    for numbers, elements in seen.new(array, table):
                        yield from _check_blocks(members, image, array, size, numbers, elements)
            except FormatError as error:
                yield _failed(error, image, place.partition)


def count_set(members: Members) -> int:
    """Count the blocks that the set's files name: what ``check_set`` covers at the most."""
    total = 0
    for image in members.files:
        for at in image.places:
            with suppress(FormatError):
                total += sum(table.stored_count() for table in image.index(*at))
    return total


class _Seen:
    """Which index entries have been met: 8 bytes for each, a mixture of all that it says."""

    def __init__(self, left_out: Iterable[int]) -> None:
        self._left_out = np.array(sorted(left_out), np.uint16)  # file numbers
        self._keys: dict[tuple[BlockPlace, int], npt.NDArray[np.uint64]] = {}  # by file number; ascending

    def new(self, place: BlockPlace, table: ElementTable) -> Iterator[tuple[npt.NDArray[np.int64], Elements]]:
        """Yield (block numbers, elements) of the stored blocks that are met for the first time."""
        for first, piece in table.chunks():
            numbers = piece["block"].astype(np.int64) if table.is_delta else first + np.arange(len(piece))
            rows = np.flatnonzero(stored(piece) & ~np.isin(piece["file_number"], self._left_out))
            rows = rows[self._add(place, numbers[rows], piece[rows])]
            yield numbers[rows], piece[rows]

    def _add(
        self, place: BlockPlace, numbers: npt.NDArray[np.int64], elements: Elements
    ) -> npt.NDArray[np.bool_]:
        """Remember entries and return which of them are new."""
        new = np.ones(len(elements), np.bool_)
        keys = elements["position"].astype(np.uint64) ^ elements["md5"][:, 0]
        keys ^= numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= elements["length"].astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        for number in np.unique(elements["file_number"]).tolist():
            mine = np.flatnonzero(elements["file_number"] == number)
            known = self._keys.get((place, number), np.empty(0, np.uint64))
            new[mine] = ~np.isin(keys[mine], known)
            self._keys[place, number] = np.union1d(known, keys[mine])
        return new


def _check_blocks(
    members: Members,
    image: ImageFile,
    place: BlockPlace,
    size: int,
    numbers: npt.NDArray[np.int64],
    elements: Elements,
) -> Iterator[Check]:
    """Yield checks of stored blocks, given their numbers and elements; ``image`` has the index."""
    for at in range(0, len(numbers), _BLOCKS):
        some = elements[at : at + _BLOCKS].copy()  # lest each keeps the whole piece alive
        yield Check(len(some), partial(_run, members, image, place, size, numbers[at : at + _BLOCKS], some))


def _run(
    members: Members,
    image: ImageFile,
    place: BlockPlace,
    size: int,
    numbers: npt.NDArray[np.int64],
    elements: Elements,
) -> CheckResult:
    """Decode blocks past the cache; say which are not as their index says."""
    total, bad = 0, []
    forged = image in members.authentication.forged  # then it is its index that is doubted

    def found(error: FormatError, reason: str) -> None:
        path = image.path if forged else error.path or image.path
        bad.append(BadBlock(path, place.partition, number, reason))

    for number, row in zip(numbers.tolist(), elements, strict=True):
        try:
            total += len(members.check_store.decode(Element.of(row), place, number, size))
        except PasswordError:
            raise
        except DamagedBlockError as error:
            found(error, error.reason)
        except FormatError as error:
            found(error, error.what)
    return CheckResult(len(numbers), total, tuple(bad))


def _check_file(members: Members, image: ImageFile) -> CheckResult:
    """Check everything of a file but its blocks."""
    bad = []
    forged = members.authentication.forged.get(image)
    if forged is not None:
        bad.append(BadBlock(image.path, None, None, forged.what))
    bad += image.check_metadata()
    uncovered = members.authentication.uncovered(image)
    if uncovered:
        bad.append(BadBlock(image.path, None, None, f"{uncovered} bytes of its data are of no known block"))
    return CheckResult(0, 0, tuple(bad))


def _failed(error: FormatError, image: ImageFile, partition: str) -> Check:
    """Return a check that tells of an index that can't be used."""
    bad = BadBlock(error.path or image.path, partition, None, error.what)
    return Check(0, lambda: CheckResult(0, 0, (bad,)))
