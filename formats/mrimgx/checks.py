"""Verification: checks that cover every metadata block and every stored block."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from formats.container import BadBlock, Check, CheckResult
from formats.errors import DamagedBlockError, FormatError, PasswordError
from formats.mrimgx.backup_set import Members
from formats.mrimgx.image_file import ImageFile
from formats.mrimgx.index import Element, Elements, chunks, count_stored, stored
from formats.mrimgx.layout import RESERVED_BLOCK_SIZE
from formats.mrimgx.reader import BlockPlace, BlockStore

if TYPE_CHECKING:
    from formats.mrimgx.points import MrimgxPoint

_BLOCKS = 64  # that one Check covers: 4 MiB of data as a rule


def check_point(point: "MrimgxPoint") -> Iterator[Check]:
    """Yield checks of what one point uses. Raises FormatError when the point is incomplete."""
    files = set(point.chain.files)
    partitions = [partition for disk in point.disks for partition in disk.partitions]
    for image in point.chain.files:
        with suppress(FormatError):  # an index that can't be used is told below
            files |= {point.members.holder(number) for number in point.members.named(image)}
    for image in sorted(files, key=lambda image: image.document.file_number):
        yield Check(0, partial(_check_metadata, image))
    for part in partitions:
        try:
            arrays = list(part.arrays())
        except FormatError as error:
            yield _failed(error, point.image, part.place.partition)
            continue
        for index, place, size in arrays:
            for first, elements in index.runs(0, index.count):
                rows = np.flatnonzero(stored(elements))
                yield from _check_blocks(
                    point.members.store, point.image, place, size, rows + first, elements[rows]
                )


def count_point(point: "MrimgxPoint") -> int:
    """Count the data blocks that ``check_point`` covers."""
    partitions = [partition for disk in point.disks for partition in disk.partitions]
    try:
        return sum(index.stored_count() for part in partitions for index, _, _ in part.arrays())
    except FormatError:
        return 0


def check_set(members: Members) -> Iterator[Check]:
    """Yield checks of all files of a set and of each stored block once, by every index that names it.

    Where two index entries tell different things of the same bytes, both are checked. Blocks of files
    that are not there are left out: the points that need them tell of that.
    """
    seen = _Seen()
    for image in members.files:
        yield Check(0, partial(_check_metadata, image))
        for disk, record in enumerate(image.document.disks):
            for number, part in enumerate(record.partitions):
                place = BlockPlace(f"disk{record.number}/p{part.number}", record.number, part.number)
                try:
                    own = image.index(disk, number)
                except FormatError as error:
                    yield _failed(error, image, place.partition)
                    continue
                yield from _check_own(
                    members, image, place.reserved(), RESERVED_BLOCK_SIZE, own.reserved, seen
                )
                yield from _check_own(members, image, place, part.block_size, own.blocks, seen)


def count_set(members: Members) -> int:
    """Count the blocks that the set's files name: what ``check_set`` covers at the most."""
    total = 0
    for image in members.files:
        for disk, record in enumerate(image.document.disks):
            for number in range(len(record.partitions)):
                try:
                    own = image.index(disk, number)
                except FormatError:
                    continue
                total += count_stored(own.reserved) + count_stored(own.blocks)
    return total


def _check_own(
    members: Members, image: ImageFile, place: BlockPlace, size: int, elements: Elements, seen: "_Seen"
) -> Iterator[Check]:
    """Yield checks of the blocks of one array of a file that no earlier check covers."""
    is_delta = "block" in (elements.dtype.names or ())
    for first, piece in chunks(elements):
        rows = np.flatnonzero(stored(piece) & np.isin(piece["file_number"], members.present))
        rows = rows[seen.add(piece[rows])]
        numbers = piece["block"][rows].astype(np.int64) if is_delta else rows + first
        yield from _check_blocks(members.store, image, place, size, numbers, piece[rows])


class _Seen:
    """Which index entries have been met: 8 bytes for each."""

    def __init__(self) -> None:
        self._keys: dict[int, npt.NDArray[np.uint64]] = {}  # by file number, ascending

    def add(self, elements: Elements) -> npt.NDArray[np.bool_]:
        """Remember entries and return which of them are new."""
        new = np.ones(len(elements), np.bool_)
        keys = elements["position"].astype(np.uint64) ^ elements["md5"][:, 0]
        for number in np.unique(elements["file_number"]).tolist():
            mine = np.flatnonzero(elements["file_number"] == number)
            known = self._keys.get(number)
            if known is not None:
                at = np.minimum(np.searchsorted(known, keys[mine]), len(known) - 1)
                new[mine] = known[at] != keys[mine]
            added = keys[mine] if known is None else np.concatenate([known, keys[mine]])
            self._keys[number] = np.unique(added)
        return new


def _check_blocks(
    store: BlockStore,
    image: ImageFile,
    place: BlockPlace,
    size: int,
    numbers: npt.NDArray[np.int64],
    elements: Elements,
) -> Iterator[Check]:
    """Yield checks of stored blocks, given their numbers and elements; ``image`` has the index."""
    for at in range(0, len(numbers), _BLOCKS):
        some = elements[at : at + _BLOCKS].copy()  # a copy keeps no memory map alive
        yield Check(len(some), partial(_run, store, image, place, size, numbers[at : at + _BLOCKS], some))


def _run(
    store: BlockStore,
    image: ImageFile,
    place: BlockPlace,
    size: int,
    numbers: npt.NDArray[np.int64],
    elements: Elements,
) -> CheckResult:
    """Decode blocks past the cache; say which are not as their index says."""
    total, bad = 0, []
    for number, row in zip(numbers.tolist(), elements, strict=True):
        try:
            total += len(store.decode(Element.of(row), place, number, size))
        except PasswordError:
            raise
        except DamagedBlockError as error:
            bad.append(BadBlock(error.path or image.path, place.partition, number, error.reason))
        except FormatError as error:
            bad.append(BadBlock(error.path or image.path, place.partition, number, error.what))
    return CheckResult(len(numbers), total, tuple(bad))


def _check_metadata(image: ImageFile) -> CheckResult:
    return CheckResult(0, 0, image.check_metadata())


def _failed(error: FormatError, image: ImageFile, partition: str) -> Check:
    """Return a check that tells of an index that can't be used."""
    bad = BadBlock(error.path or image.path, partition, None, error.what)
    return Check(0, lambda: CheckResult(0, 0, (bad,)))
