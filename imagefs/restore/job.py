"""Restoring and cloning: the front door for the command line and for programs.

``plan_restore`` looks and refuses, writing nothing; ``RestoreJob.run`` writes what it planned.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from formats.blockreader import FileReader, SliceReader
from formats.errors import FormatError
from formats.partition_table import Kind, PartitionEntry, PartitionTable, read_table
from imagefs.errors import RefusedError, TargetWriteError, UsageError
from imagefs.imaging.options import Listener
from imagefs.restore.described import Description, document
from imagefs.restore.fit import fit_volume, plan_fit
from imagefs.restore.ids import with_new_ids
from imagefs.restore.layout import Placed, Volume
from imagefs.restore.moved import moved
from imagefs.restore.options import RestoreOptions, RestoreReport
from imagefs.restore.records import MIB, Records, make_records, needed_size
from imagefs.restore.references import references
from imagefs.restore.resize import (
    can_grow_in_place,
    check_resizable,
    grow_in_place,
    resized,
    smallest_size,
)
from imagefs.restore.run import HEAD_SIZE, Run, gaps_between
from imagefs.restore.target import Target
from imagefs.restore.this_machine import (
    describe,
    find_device,
    open_device,
    refuse_unsafe,
    same_id,
    target_path,
)
from imagefs.restore.volumes import Original, open_original
from imagefs.restore.writing import Piece

_LARGEST_GAP = 64 * MIB  # before the first partition of a disk that is cloned, up to which it is copied
_END = MIB  # bytes at both ends of a disk where stale tables could be found; they are made zeros


def restore(
    image: str | os.PathLike[str], target: str | os.PathLike[str], options: RestoreOptions | None = None,
    *, password: str | None = None, listener: Listener | None = None,
) -> RestoreReport:  # fmt: skip
    """Write a disk, or one partition, of an image to a device or file, without asking.

    Raises RefusedError before anything is written, and FormatError and ImagingError. What is left of an
    interrupted restore has no partition table; a delta restore finishes it.
    """
    with plan_restore(image, target, options, password=password) as job:
        return job.run(listener)


def clone(
    source: str | os.PathLike[str], target: str | os.PathLike[str], options: RestoreOptions | None = None,
    *, listener: Listener | None = None,
) -> RestoreReport:  # fmt: skip
    """Write a disk or disk file to another one, used blocks only, without asking; raises as ``restore``."""
    with plan_restore(source, target, options or RestoreOptions(new_ids=True)) as job:
        return job.run(listener)


def plan_restore(
    source: str | os.PathLike[str], target: str | os.PathLike[str], options: RestoreOptions | None = None,
    *, password: str | None = None,
) -> "RestoreJob":  # fmt: skip
    """Look at source and target, and plan; nothing is written. The job is used in a ``with`` statement."""
    with ExitStack() as owned:
        original = open_original(source, options or RestoreOptions(), password, owned)
        job = RestoreJob(original, target_path(os.fspath(target)), options or RestoreOptions())
        job.owned = owned.pop_all()
        return job


class RestoreJob:
    """A restore that was looked at and found possible.

    ``before`` describes the target as it is, None for a file that is not there; ``placed`` tells where the
    volumes go; ``warnings`` are lines to be shown.
    """

    def __init__(self, original: Original, target: Path, options: RestoreOptions) -> None:
        self.original = original
        self.target = target
        self.options = options
        self.warnings = list(original.warnings)
        self.owned = ExitStack()
        self._find_target()
        self.before: Description | None = describe(self.target) if self.overwrites else None
        self.new_ids: Mapping[str, str] = {}
        self.table: PartitionTable | None = None
        if options.partition is None:
            self.placed = self._place_disk()
        else:
            self.placed = self._place_partition()
        for item in self.placed:
            if item.size > item.volume.size:  # what shrinks was asked already
                check_resizable(item.volume, options.scratch)

    # --- Where to ---

    def _find_target(self) -> None:
        """Find the bytes of the target to write, ``start`` and ``size``; refuse what must not be written."""
        options, disk = self.options, self.original.disk
        found = find_device(self.target)
        if options.to_partition is not None and found is not None:
            part = found.partition(options.to_partition)
            if part is not None:
                self.target, found = part, find_device(part)
                options = self.options = replace(options, to_partition=None)
        self.is_device = found is not None
        if not self.is_device and self.target.is_symlink() and self.target.is_file():
            self.target = self.target.resolve()  # a link to a disk file stays one
        self.start = 0
        refuse_unsafe(self.target, protected=self.original.source.files)
        if found is not None:
            with open_device(self.target) as opened:
                self.target_size, sector_size = opened.size, opened.sector_size
            if options.size:
                raise UsageError("a device has the size it has", path=self.target)
            if sector_size > disk.sector_size or (sector_size != disk.sector_size and disk.table is not None):
                raise RefusedError(
                    f"has sectors of {sector_size} bytes, the disk was made for {disk.sector_size}",
                    path=self.target,
                )
        else:
            there = self.target.stat().st_size if self.target.exists() else 0
            usual = disk.size if options.partition is None else self.original.volumes[0].size
            self.target_size = options.size or there or usual
            if self.target_size % disk.sector_size and disk.table is not None and options.partition is None:
                raise RefusedError(
                    f"{self.target_size} bytes are no whole number of {disk.sector_size}-byte sectors",
                    path=self.target,
                )
        if options.to_partition is not None:
            self.start, self.size = self._partition_of_target(options.to_partition)
        else:
            self.size = self.target_size

    def _partition_of_target(self, number: int) -> tuple[int, int]:
        """Return the offset and the size of a partition of the target."""
        try:
            with FileReader(self.target) as reader:
                table = read_table(reader, self.original.disk.sector_size, disk_size=reader.size)
        except FormatError as error:
            raise RefusedError(
                f"its partition table can't be read: {error.what}", path=self.target
            ) from error
        entries = {e.number: e for e in table.partitions} if table is not None else {}
        entry = entries.get(number)
        if entry is None or entry.kind is Kind.EXTENDED:
            names = ", ".join(str(n) for n, e in entries.items() if e.kind is not Kind.EXTENDED) or "none"
            raise UsageError(f"has no partition {number}; there are: {names}", path=self.target)
        if entry.end > self.target_size:
            raise RefusedError(f"partition {number} ends behind its end", path=self.target)
        return entry.offset, entry.size

    # --- What goes where ---

    def _place_disk(self) -> tuple[Placed, ...]:
        disk, volumes = self.original.disk, self.original.volumes
        self.table = disk.table
        placed = tuple(Placed(volume, volume.offset, volume.size) for volume in volumes)
        if self.options.fit:
            fitted = plan_fit(volumes, self.table, disk.sector_size, self.size, self._smallest)
            placed, self.table = fitted.placed, fitted.table
            self.warnings += fitted.notes
        needed = needed_size(self.table, [item.end for item in placed])
        if needed > self.size != disk.size:
            raise self._too_small(f"disk{disk.number}", needed)
        for entry in self._left_out():
            what = f"partition {entry.number} of its table" + (f" ({entry.name})" if entry.name else "")
            self.warnings.append(
                f"disk{disk.number}: {what} is not in the image: its contents are not written"
            )
        if self.options.new_ids and self.table is not None:
            self.table, self.new_ids = with_new_ids(self.table)
        if self.table is not None and self.is_device:
            self.warnings += same_id(self.target, self.table.disk_id)
        self._records: Records = make_records(disk, self.table, self.size)
        return placed

    def _left_out(self) -> list[PartitionEntry]:
        """Return the entries of the target's table whose contents are not in the source."""
        if self.original.disk.table is None or self.table is None:
            return []
        here = {volume.offset for volume in self.original.volumes}
        numbers = {entry.number for entry in self.original.disk.table.partitions if entry.offset not in here}
        return [e for e in self.table.partitions if e.number in numbers and e.kind is not Kind.EXTENDED]

    def _place_partition(self) -> tuple[Placed, ...]:
        (volume,) = self.original.volumes
        self._records = Records(b"", ())
        size = volume.size
        if self.options.fit:
            size = fit_volume(volume, self.size, self._smallest).size
        elif size > self.size:
            raise self._too_small(self.original.name(volume), size)
        return (Placed(volume, self.start, size),)

    def _too_small(self, what: str, needed: int) -> RefusedError:
        hint = f"it needs {needed} bytes" + ("" if self.options.fit else "; --fit shrinks what can be shrunk")
        return RefusedError(f"{self.size} bytes are too small for {what}", path=self.target, hint=hint)

    def _smallest(self, volume: Volume) -> int:
        return smallest_size(volume, self.options.scratch)

    def document(self) -> dict[str, Any]:
        """Return the plan's JSON document."""
        return {
            "source": str(self.original.source.path),
            "target": str(self.target),
            "size": self.size,
            "before": document(self.before) if self.before is not None else None,
            "partitions": self._partitions(),
            "warnings": self.warnings,
        }

    def _partitions(self) -> list[dict[str, Any]]:
        return [
            {"number": item.volume.number, "offset": item.offset, "size": item.size} for item in self.placed
        ]

    # --- Doing it ---

    @property
    def overwrites(self) -> bool:
        """Whether the target holds something that is lost."""
        return self.is_device or self.target.exists()

    def run(self, listener: Listener | None = None) -> RestoreReport:
        """Write the target; raises FormatError and ImagingError, and says what an interruption leaves."""
        listener = listener or Listener()
        began = time.monotonic()
        report = self._new_report()
        with ExitStack() as owned:
            growing = [item for item in self.placed if self._grows_in_place(item)]
            pieces = []
            for item in self.placed:
                pieces.append(self._piece(item, item in growing, owned, listener))
            target = owned.enter_context(self._open_target())
            with _telling_what_is_left(target, listener):
                run = self._make_run(target, pieces, report, listener)
                run.write_volumes()
                if self.options.verify:
                    run.verify_volumes()
                    report.verified = not report.different
                if report.verified is not False:
                    self._finish(run, growing, target, report, listener)
                if report.verified is not False:
                    target.complete()
                else:
                    where = target.left or self.target
                    report.warnings.append(f"{where} is not complete: it reads back differently")
            if not target.read_table_anew():
                report.warnings.append(
                    f"{self.target}: the kernel keeps its old partitions until it is plugged in anew"
                )
        report.references = self._references()
        report.seconds = time.monotonic() - began
        return report

    def _finish(
        self, run: Run, growing: Sequence[Placed], target: Target, report: RestoreReport, listener: Listener
    ) -> None:
        """Grow what grows and write what makes the target whole; not where verifying found differences."""
        if not self._has_no_head:
            self._grow(growing, target, listener)
        self.original.source.check()
        run.write_records()
        if self.options.verify:
            run.verify_records()
            report.verified = not report.different
        if self._has_no_head and not report.different:  # not before a volume's first blocks are there
            self._grow(growing, target, listener)

    def _grow(self, growing: Sequence[Placed], target: Target, listener: Listener) -> None:
        for item in growing:
            listener.say(f"growing {self.original.name(item.volume)}")
            grow_in_place(
                target.left or self.target, item.offset, item.size, item.volume.size, item.volume.file_system
            )

    def _new_report(self) -> RestoreReport:
        return RestoreReport(
            source=str(self.original.source.path),
            target=str(self.target),
            size=self.size,
            mode="delta" if self.options.delta else "write",
            partitions=self._partitions(),
            new_ids=dict(self.new_ids),
            warnings=list(self.warnings),
        )

    def _open_target(self) -> Target:
        if self.is_device:
            opened = open_device(self.target)
            if opened.size != self.target_size:
                opened.close()
                raise RefusedError("is no more the device that was looked at", path=self.target)
            return opened
        in_place = self.options.delta or self.options.to_partition is not None
        return Target.open_file(self.target, self.target_size, delta=in_place)

    def _grows_in_place(self, item: Placed) -> bool:
        return item.size > item.volume.size and can_grow_in_place(item.volume.file_system)

    def _piece(self, item: Placed, grows: bool, owned: ExitStack, listener: Listener) -> Piece:
        """Return what is written of a volume: resized on the way where it has to be."""
        volume, name = item.volume, self.original.name(item.volume)
        if item.size != volume.size and not grows:
            listener.say(f"resizing {name}")
            scratch = self.options.scratch or (
                Path(tempfile.gettempdir()) if self.is_device else self.target.parent
            )
            volume = owned.enter_context(resized(volume, item.size, scratch))
        if self._address(item) != volume.offset:
            volume = moved(volume, self._address(item), item.size, self.original.disk.sector_size)
        skip = HEAD_SIZE if self._has_no_head and volume.size > HEAD_SIZE else 0
        return Piece(name, volume.reader, item.offset, skip)

    def _address(self, item: Placed) -> int:
        """Return where on its disk a volume starts then, for what boot sectors say of it."""
        device = find_device(self.target) if self.is_device else None
        if device is not None and device.address is not None:
            return device.address
        if self.options.partition is not None and self.options.to_partition is None:
            return item.volume.offset  # a bare volume: it may become any partition's
        return item.offset

    @property
    def _has_no_head(self) -> bool:
        return not self._records.head

    def _make_run(
        self, target: Target, pieces: Sequence[Piece], report: RestoreReport, listener: Listener
    ) -> Run:
        head = (0, self._records.head)
        if self._has_no_head:
            (piece,) = pieces
            first = piece.reader.read_at(0, min(HEAD_SIZE, piece.reader.size))
            head = (piece.offset, first)
            pieces = [piece] if piece.skip else []
        records, gaps = list(self._records.others), []
        pieces = [*pieces, *self._before_volumes()]
        taken = [(0, self.start), *((item.offset, item.end) for item in self.placed)]
        taken += [(offset, offset + len(data)) for offset, data in [head, *records]]
        taken += [(entry.offset, entry.end) for entry in self._left_out()]
        taken += [(piece.offset, piece.offset + piece.reader.size) for piece in pieces]
        for start, end in gaps_between(taken, self.start + self.size):
            ends, middle = _split_ends(start, end, self.start + self.size)
            records += [(at, bytes(stop - at)) for at, stop in ends]
            gaps += middle
        records.sort()
        return Run(
            target, pieces, head, records, gaps, report, listener, keep_holes=self.options.keep_holes
        )  # fmt: skip

    def _before_volumes(self) -> Iterator[Piece]:
        """Yield what a disk that is cloned has behind its head: boot loaders of some boards lie there."""
        disk, start = self.original.disk, len(self._records.head)
        if self.original.source.kind == "image" or start < MIB or disk.table is None:
            return
        end = min(entry.offset for entry in disk.table.partitions)
        if start < end <= _LARGEST_GAP and all(item.offset >= end for item in self.placed):
            reader = SliceReader(disk.reader, start, end - start)
            yield Piece(f"disk{disk.number} before its partitions", reader, start)

    def _references(self) -> list[str]:
        if not self.new_ids:
            return []
        return references(self.original.volumes, self.new_ids, self.original.disk.table)

    def close(self) -> None:
        """Close the source."""
        self.owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _split_ends(start: int, end: int, size: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Split a gap into what lies at an end of the disk, where a stale table may be, and the rest."""
    low, high = min(max(start, _END), end), max(min(end, size - _END), start)
    if low >= high:
        return [(start, end)], []
    ends = [(at, stop) for at, stop in ((start, low), (high, end)) if at < stop]
    return ends, [(low, high)]


@contextmanager
def _telling_what_is_left(target: Target, listener: Listener) -> Iterator[None]:
    """Keep what an interruption leaves of a new file, and say so; drop what can't become complete."""
    try:
        yield
    except TargetWriteError as error:
        if target.left is not None:
            kept = f"{target.left} is kept, --delta goes on with it"
            error.hint = f"{error.hint}; {kept}" if error.hint else kept
        raise
    except KeyboardInterrupt:
        listener.say(f"{target.left or target.path} is not complete; --delta goes on with it")
        raise
    except BaseException:
        target.drop()
        raise
