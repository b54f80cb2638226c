"""Writing volumes and records to an opened target, in an order that never lets half a disk look whole.

The target's head (its partition table, or the beginning of its only volume) is wiped before anything else is
written, and written when all else is on stable storage.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from formats.blockreader import Extent
from imagefs.imaging.options import Listener, Progress
from imagefs.parallel import in_order, workers
from imagefs.restore.options import RestoreReport
from imagefs.restore.target import Target
from imagefs.restore.writing import Copier, Counts, Mode, Once, Piece, plan_tasks

HEAD_SIZE = 65536  # bytes that are held back of a volume that is written alone
_STEP = 1 << 20


class Run:
    """One restore. ``head`` and ``records`` are bytes with their offsets on the target."""

    def __init__(
        self,
        target: Target,
        pieces: Sequence[Piece],
        head: tuple[int, bytes],
        records: Sequence[tuple[int, bytes]],
        gaps: Sequence[tuple[int, int]],
        report: RestoreReport,
        listener: Listener,
        *,
        keep_holes: bool,
    ) -> None:
        self._target = target
        self._pieces = pieces
        self._head = head
        self._records = records
        self._gaps = gaps  # start and end of what belongs to no volume and is free
        self._report = report
        self._listener = listener
        self._keep_holes = keep_holes
        self._delta = report.mode == Mode.DELTA.value
        self._wipe = Once(self._wipe_head)
        self._total = 0

    def write_volumes(self) -> None:
        """Write the volumes' data and clear what is free; the head stays wiped."""
        self._count()
        if self._delta:
            counts = self._copy(Mode.DELTA, "comparing")
            # What is free here may be in use there: it is cleared when the table there is known to be this
            # one, or is gone.
            if self._records_differ():
                self._wipe()
            self._clear()
        else:
            self._wipe()
            self._clear()
            counts = self._copy(Mode.WRITE, "writing")
        self._report.blocks_written = counts.blocks_written
        self._report.blocks_unchanged = counts.blocks_unchanged
        self._report.bytes_written = counts.bytes_written
        self._target.flush()

    def verify_volumes(self) -> None:
        """Read the volumes back and tell what differs."""
        self._target.forget_cached()
        counts = self._copy(Mode.COMPARE, "verifying")
        self._report.different += [f"{name} at {offset}" for name, offset in counts.different]

    def write_records(self) -> None:
        """Write the records, and when they are safe the head."""
        for offset, data in self._records:
            self._write_record(offset, data)
        self._target.flush()
        self._write_record(*self._head)
        self._target.flush()

    def verify_records(self) -> None:
        """Read the records and the head back and tell what differs."""
        self._target.forget_cached()
        self._report.different += [f"record at {offset}" for offset in self._differing_records()]

    def _differing_records(self) -> Iterator[int]:
        for offset, data in [self._head, *self._records]:
            if data and self._target.read_bytes(offset, len(data)) != data:
                yield offset

    def _records_differ(self) -> bool:
        return next(self._differing_records(), None) is not None

    def _write_record(self, offset: int, data: bytes) -> None:
        if not data or (self._target.fresh and not any(data)):
            return
        if self._delta and self._target.read_bytes(offset, len(data)) == data:
            return
        self._wipe()
        self._target.write_bytes(offset, data)
        self._report.records_written += 1

    def _wipe_head(self) -> None:
        offset, data = self._head
        if data and not self._target.fresh:
            self._target.write_bytes(offset, bytes(len(data)))
            self._target.flush()

    def _copy(self, mode: Mode, phase: str) -> Counts:
        copier = Copier(self._target, mode, self._wipe)
        counts = Counts()
        with closing(in_order(copier, plan_tasks(self._pieces, mode), workers())) as results:
            for result in results:
                counts.add(result)
                self._listener.progress(Progress(phase, counts.bytes_done, self._total, counts.bytes_written))
        return counts

    # --- What is free ---

    def _count(self) -> None:
        """Count what is to be written, for the progress."""
        self._total = sum(extent.length for _, extent in self._extents() if extent.is_data)

    def _extents(self) -> Iterator[tuple[Piece, Extent]]:
        for piece in self._pieces:
            for extent in piece.reader.extents(piece.skip, piece.reader.size - piece.skip):
                yield piece, extent

    def _clear(self) -> None:
        """Clear what is free."""
        if self._keep_holes or self._target.fresh:
            return
        for piece, extent in self._extents():
            if not extent.is_data:
                self._clear_range(piece.offset + extent.offset, extent.length, needed=True)
        for start, end in self._gaps:
            self._clear_range(start, end - start, needed=False)

    def _clear_range(self, offset: int, length: int, *, needed: bool) -> None:
        """Give a free range back; zero it where that can't be done and it is ``needed``."""
        target = self._target
        if target.holes(offset, length):
            return
        first = offset + -offset % target.sector_size
        end = (offset + length) // target.sector_size * target.sector_size
        if first >= end:
            return
        # What a delta restore leaves untouched must not change: only what reads as zeros will do.
        if not target.discard(first, end - first, zeros=self._delta):
            if self._delta or not needed:
                return
            self._zero(first, end)
        self._report.bytes_cleared += end - first

    def _zero(self, start: int, end: int) -> None:
        for at in range(start, end, 64 * _STEP):
            self._target.zero(at, min(64 * _STEP, end - at))
            self._listener.progress(Progress("zeroing free space", at - start, end - start, 0))


def gaps_between(taken: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Yield what is left of ``size`` bytes between ranges (start, end) that may overlap."""
    position = 0
    for start, end in sorted(taken):
        if start > position:
            yield position, min(start, size)
        position = max(position, end)
    if position < size:
        yield position, size
