"""Where the volumes of a disk go on a target of another size, and which of them are resized for it.

Partitions keep their order. What lies before the first resized one stays where it is; behind it they are put
one behind the other, at multiples of 1 MiB. Planning only: nothing is written here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from formats.partition_table import Kind, PartitionEntry, PartitionTable, build_table
from imagefs.errors import RefusedError
from imagefs.filesystems.detect import recognise
from imagefs.restore.layout import Placed, Volume
from imagefs.restore.resizers import resizer_of

MIB = 1 << 20
_WORTH = 1000  # a gain below this part of the target is not worth resizing for
_GROWS = 10  # volumes below this part of the largest keep their size where others can change
_HEADROOM = 16 * MIB  # bytes left free in a shrunk volume, or …
_HEADROOM_PART = 50  # … this part of its least size, where that is less
_MBR_SECTORS = 1 << 32
_BARE_UNIT = 4096  # bytes; what the size of a volume without a partition is rounded to
_FIXED_TYPES = frozenset(
    {
        "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",  # EFI system partition
        "E3C9E316-0B5C-4DB8-817D-F92DF00215AE",  # Microsoft reserved
        "21686148-6449-6E6F-744E-656564454649",  # BIOS boot
        "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC",  # Windows recovery
        "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F",  # Linux swap
        "EF",  # EFI system partition
        "27",  # Windows recovery
        "12",  # a maker's diagnostics
        "82",  # Linux swap
    }
)
_REQUIRED = 1  # GPT attribute: the machine needs this partition as it is

Smallest = Callable[[Volume], int]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What goes where, and the partition table that says so; None for a volume without one.

    ``notes`` are lines for the user: volumes that could not take part, and why.
    """

    placed: tuple[Placed, ...]
    table: PartitionTable | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Item:
    """A partition that takes room; an extended one does so only where it is empty."""

    entry: PartitionEntry
    volume: Volume | None
    extended: PartitionEntry | None  # that it is a logical partition of


def fit_volume(volume: Volume, target_size: int, smallest: Smallest) -> Placed:
    """Place one volume at the start of ``target_size`` bytes, grown or shrunk to it where that can be.

    ``smallest`` is asked only where it must shrink. Raises RefusedError with the least size that would do.
    """
    size = target_size // _BARE_UNIT * _BARE_UNIT
    resizer = resizer_of(volume.reader)
    reason = _obstacle(volume)
    if volume.size <= target_size:
        if reason:
            return Placed(volume, 0, volume.size)
        assert resizer is not None
        size = min(size, resizer.largest(volume.reader) // _BARE_UNIT * _BARE_UNIT)
        is_worth = size - volume.size >= max(MIB, target_size // _WORTH)
        return Placed(volume, 0, size if is_worth else volume.size)
    if reason:
        raise RefusedError(
            f"the target has {target_size} bytes, the volume ({volume.file_system}) needs {volume.size}:"
            f" {reason}"
        )
    least = min(volume.size, _up(smallest(volume), _BARE_UNIT))
    if least > size:
        raise RefusedError(f"the target has {target_size} bytes, the volume needs at least {least}")
    return Placed(volume, 0, size)


def plan_fit(
    volumes: Sequence[Volume],
    table: PartitionTable | None,
    sector_size: int,
    target_size: int,
    smallest: Smallest,
) -> Fitted:
    """Place the volumes of a disk on a target of ``target_size`` bytes, and make its partition table.

    ``volumes`` are all of the disk's that are restored; partitions of the table without one keep their size
    and their place in the order. NTFS and ext volumes of at least a tenth of the largest one's size grow in
    proportion to their sizes, unless that gains less than a thousandth of the target. Where the target is
    too small they shrink in proportion to what they can spare; smaller ones only when that isn't enough.
    ``smallest`` returns the least bytes of a volume; it is asked only then. Raises RefusedError with the
    least target size that would do, or saying what stands in the way.
    """
    if table is None:
        if len(volumes) != 1:
            raise ValueError(f"{len(volumes)} volumes without a partition table")
        return Fitted((fit_volume(volumes[0], target_size, smallest),), None)
    if not table.partitions:
        return Fitted((), table)
    return _Fit(volumes, table, sector_size, target_size, smallest).plan()


def _obstacle(volume: Volume) -> str:
    """Return why a volume keeps its size; "" where nothing is known that keeps it from being resized."""
    resizer = resizer_of(volume.reader)
    return resizer.obstacle(volume.reader) if resizer else "no tool resizes it reliably"


class _Fit:
    """One disk and one target. ``first`` below is the last partition that stays where it is."""

    def __init__(
        self,
        volumes: Sequence[Volume],
        table: PartitionTable,
        sector_size: int,
        target_size: int,
        smallest: Smallest,
    ) -> None:
        self.table = table
        self.unit = sector_size
        self.target = target_size // sector_size * sector_size
        self.items = _items(volumes, table)
        self.sizes = [item.entry.size for item in self.items]
        self.limit = self.target - self._tail()
        if table.scheme == "mbr":
            self.limit = min(self.limit, _MBR_SECTORS * sector_size)
        self._ask = smallest
        self._least: dict[int, int] = {}
        self.notes: list[str] = []
        self.able = [index for index, item in enumerate(self.items) if self._is_able(item)]
        largest = max((self.sizes[index] for index in self.able), default=0)
        self.large = [index for index in self.able if self.sizes[index] * _GROWS >= largest]

    def _tail(self) -> int:
        """Return the bytes that a backup GPT takes at the end of the disk."""
        if self.table.scheme != "gpt":
            return 0
        array = _up(self.table.entry_count * self.table.entry_size, self.unit)
        return array + self.unit

    def _is_able(self, item: _Item) -> bool:
        volume, entry = item.volume, item.entry
        if volume is None or entry.type.upper() in _FIXED_TYPES:
            return False
        if self.table.scheme == "gpt" and entry.attributes & _REQUIRED:
            return False
        reason = _obstacle(volume)
        if reason and entry.size * _GROWS >= max(self.sizes):
            self.notes.append(f"partition {entry.number} ({volume.file_system}) keeps its size: {reason}")
        return not reason

    def plan(self) -> Fitted:
        """Choose the first way that works: grown, as it is, moved together, shrunk."""
        self._check_order()
        stays = len(self.items) - 1
        chosen = self._grown()
        spare = self.limit - self._end(self.sizes, stays)
        if chosen is None and spare >= 0:
            chosen = self.sizes, stays
            if spare < max(MIB, self.target // _WORTH):
                self.notes.clear()  # nothing could have grown
        if chosen is None:
            chosen = self._moved_together()
        if chosen is None:
            chosen = self._shrunk(self.large, self._roomy) or self._shrunk(self.able, self._roomy)
        if chosen is None:
            chosen = self._shrunk(self.large, self._least_of) or self._shrunk(self.able, self._least_of)
        if chosen is None:
            raise self._too_small()
        fitted = self._fitted(*chosen)
        assert fitted.table is not None
        try:
            build_table(fitted.table, self.target)
        except ValueError as error:
            raise RefusedError(f"the disk's partition table can't be made for the target: {error}") from error
        return fitted

    def _check_order(self) -> None:
        position = 0
        for item in self.items:
            if item.entry.offset < position:
                raise RefusedError(
                    f"partition {item.entry.number} overlaps the one before it; it can't be moved",
                    hint="restore it to a disk that is at least as large as the source",
                )
            position = item.entry.end

    # Places

    def _offsets(self, sizes: Sequence[int], first: int) -> list[int]:
        """Return where partitions of some sizes go; those up to ``first`` stay."""
        offsets: list[int] = []
        position = 0
        for index, item in enumerate(self.items):
            if index <= first:
                offset = item.entry.offset
            else:
                offset = _up(position, MIB) + (MIB if item.extended else 0)  # for its EBR
            offsets.append(offset)
            position = offset + sizes[index]
        return offsets

    def _end(self, sizes: Sequence[int], first: int) -> int:
        return self._offsets(sizes, first)[-1] + sizes[-1]

    # Sizes

    def _grown(self) -> tuple[list[int], int] | None:
        """Share out what is left to the large volumes; None where too little is."""
        sizes = list(self.sizes)
        open_ones, changed = set(self.large), set[int]()
        while open_ones:
            first = min(open_ones | changed)
            for index in open_ones:
                sizes[index] = self.sizes[index] // MIB * MIB
            spare = self.limit - self._end(sizes, first)
            budget = sum(sizes[index] for index in open_ones) + spare // MIB * MIB
            total = sum(self.sizes[index] for index in open_ones)
            gain = budget - total
            shares = {index: budget * self.sizes[index] // total // MIB * MIB for index in open_ones}
            full = {index: most for index in open_ones if (most := self._largest(index)) < shares[index]}
            if gain < (MIB if changed else max(MIB, self.target // _WORTH)):
                return self._settled(sizes, open_ones, changed)
            if full:
                for index, most in full.items():
                    open_ones.remove(index)
                    sizes[index] = max(most, self.sizes[index])
                    changed |= {index} if most > self.sizes[index] else set()
                continue
            too_little = {index for index in open_ones if shares[index] <= self.sizes[index]}
            if too_little:
                for index in too_little:
                    sizes[index] = self.sizes[index]
                open_ones -= too_little
                continue
            largest = max(open_ones, key=lambda index: self.sizes[index])
            shares[largest] += min(
                budget - sum(shares.values()), max(0, self._largest(largest) - shares[largest])
            )
            for index, share in shares.items():
                sizes[index] = share
            return sizes, first
        return self._settled(sizes, open_ones, changed)

    def _settled(self, sizes: list[int], same: set[int], changed: set[int]) -> tuple[list[int], int] | None:
        """Return sizes of which only those ``changed`` are new; None where there are none, or no room."""
        for index in same:
            sizes[index] = self.sizes[index]
        if not changed or self._end(sizes, min(changed)) > self.limit:
            return None
        return sizes, min(changed)

    def _largest(self, index: int) -> int:
        volume = self.items[index].volume
        resizer = resizer_of(volume.reader) if volume else None
        assert volume is not None and resizer is not None
        most = resizer.largest(volume.reader)
        if self.table.scheme == "mbr":
            most = min(most, (_MBR_SECTORS - 1) * self.unit)
        return most // MIB * MIB

    def _moved_together(self) -> tuple[list[int], int] | None:
        """Close gaps, moving as few partitions as will do."""
        for first in range(len(self.items) - 2, -1, -1):
            if self._end(self.sizes, first) <= self.limit:
                return self.sizes, first
        return None

    def _shrunk(self, chosen: Sequence[int], least: Callable[[int], int]) -> tuple[list[int], int] | None:
        """Take what is missing from the chosen volumes, in proportion to what each can spare."""
        sizes, slack = self._smallest_sizes(chosen, least)
        for first in self._places_to_begin(slack):
            spare = (self.limit - self._end(sizes, first)) // MIB * MIB
            if spare >= 0:
                total = sum(slack.values()) or 1
                for index, most in slack.items():
                    sizes[index] += min(most, spare * most // total // MIB * MIB)
                return sizes, first
        return None

    def _smallest_sizes(
        self, chosen: Sequence[int], least: Callable[[int], int]
    ) -> tuple[list[int], dict[int, int]]:
        """Return all sizes with the chosen volumes as small as can be, and what each of these gives up."""
        sizes = list(self.sizes)
        slack = {}
        for index in chosen:
            size = least(index)
            if size < self.sizes[index]:
                sizes[index] = size
                slack[index] = self.sizes[index] // MIB * MIB - size
        return sizes, slack

    def _places_to_begin(self, resized: Iterable[int]) -> list[int]:
        """Return which partitions can be the last that stays: the first resized one, or the disk's first.

        The latter closes gaps that lie before the first resized one, where there is no room else.
        """
        first = min(resized, default=None)
        return [] if first is None else [first, 0]

    def _least_of(self, index: int) -> int:
        """Return the least size of a partition, in whole MiB; asked for once."""
        if index not in self._least:
            volume = self.items[index].volume
            assert volume is not None
            self._least[index] = self._ask(volume)
        return _up(max(1, self._least[index]), MIB)

    def _roomy(self, index: int) -> int:
        """Return the least size with some room left."""
        self._least_of(index)
        least = self._least[index]
        return _up(max(1, least + min(_HEADROOM, least // _HEADROOM_PART)), MIB)

    def _too_small(self) -> RefusedError:
        """Return the error that says how large the target must be."""
        ends = [self._end(self.sizes, first) for first in range(len(self.items))]
        for chosen in (self.large, self.able):
            sizes, slack = self._smallest_sizes(chosen, self._least_of)
            ends += [self._end(sizes, first) for first in self._places_to_begin(slack)]
        end = min(ends)
        needed = _up(end, self.unit) + self._tail()
        if self.table.scheme == "mbr" and needed > _MBR_SECTORS * self.unit:
            return RefusedError("its partitions don't fit the 2^32 sectors that an MBR can address")
        fixed = "; ".join(self.notes)
        return RefusedError(
            f"the target has {self.target} bytes, the disk's volumes need at least {needed}"
            + (f" ({fixed})" if fixed else ""),
            hint=f"take a target of {-(-needed // 1_000_000)} MB or more, or restore single volumes",
        )

    # The result

    def _fitted(self, sizes: Sequence[int], first: int) -> Fitted:
        offsets = self._offsets(sizes, first)
        placed = []
        entries: dict[int, PartitionEntry] = {}
        for index, item in enumerate(self.items):
            entry, offset, size = item.entry, offsets[index], sizes[index]
            if item.volume is not None:
                own = item.volume.size if size == entry.size else size
                placed.append(Placed(item.volume, offset, own))
            record = entry.record_offset
            if item.extended and index > first:
                record = self._record_offset(index, offset)
            entries[entry.number] = replace(entry, offset=offset, size=size, record_offset=record)
        for entry in self.table.partitions:
            if entry.number not in entries:
                entries[entry.number] = self._extended(entry, offsets, sizes, first)
        ordered = tuple(entries[number] for number in sorted(entries))
        table = replace(self.table, partitions=ordered, problems=())
        return Fitted(tuple(placed), table, (*self.notes, *self._told_of_moves(placed)))

    def _told_of_moves(self, placed: Iterable[Placed]) -> list[str]:
        """Return what moving does to a Windows that starts from an MBR: it knows partitions by offsets."""
        moved = [str(p.volume.number) for p in placed if p.offset != p.volume.offset and _is_ntfs(p.volume)]
        if self.table.scheme != "mbr" or not moved:
            return []
        return [
            f"NTFS partitions that move: {', '.join(moved)}; a Windows on an MBR disk finds them by"
            " their offsets: where it does not start, repair it from its setup medium (bootrec /rebuildbcd)"
        ]

    def _inside(self, extended: PartitionEntry) -> list[int]:
        return [index for index, item in enumerate(self.items) if item.extended == extended]

    def _record_offset(self, index: int, offset: int) -> int:
        """Return where the EBR of a moved logical partition goes, in the MiB before it."""
        extended = self.items[index].extended
        assert extended is not None
        inside = self._inside(extended)
        chain_begins = min(inside, key=lambda other: self.items[other].entry.number)
        # An extended partition starts with the EBR that its chain begins with, or with an empty one.
        is_taken = index == inside[0] and index != chain_begins
        return offset - MIB + (self.unit if is_taken else 0)

    def _extended(
        self, entry: PartitionEntry, offsets: Sequence[int], sizes: Sequence[int], first: int
    ) -> PartitionEntry:
        """Return an extended partition around the new places of its logical ones."""
        inside = self._inside(entry)
        offset = entry.offset if inside[0] <= first else offsets[inside[0]] - MIB
        end = offsets[inside[-1]] + sizes[inside[-1]]
        behind = offsets[inside[-1] + 1] if inside[-1] + 1 < len(self.items) else self.limit
        if offset == entry.offset and end <= entry.end <= behind:
            end = entry.end
        return replace(entry, offset=offset, size=end - offset)


def _items(volumes: Iterable[Volume], table: PartitionTable) -> list[_Item]:
    """Return what takes room, in its order on the disk."""
    by_number = {(volume.entry.number if volume.entry else volume.number): volume for volume in volumes}
    extended = [entry for entry in table.partitions if entry.kind is Kind.EXTENDED]
    items = []
    for entry in table.partitions:
        around = None
        if entry.kind is Kind.LOGICAL:
            around = next((e for e in extended if e.offset <= entry.offset and entry.end <= e.end), None)
            if around is None:
                raise RefusedError(f"logical partition {entry.number} lies in no extended partition")
        is_filled = entry.kind is Kind.EXTENDED and any(
            other.kind is Kind.LOGICAL and entry.offset <= other.offset < entry.end
            for other in table.partitions
        )
        volume = by_number.pop(entry.number, None)
        if volume is not None and volume.size > entry.size:
            raise RefusedError(f"partition {entry.number} has {entry.size} bytes, its volume {volume.size}")
        if not is_filled:
            items.append(_Item(entry, volume, around))
    if by_number:
        raise ValueError(f"volumes {sorted(by_number)} are in no partition of the table")
    return sorted(items, key=lambda item: item.entry.offset)


def _is_ntfs(volume: Volume) -> bool:
    return recognise(volume.reader) == "NTFS"


def _up(value: int, unit: int) -> int:
    """Round up to a multiple."""
    return -(-value // unit) * unit
