"""Shadow copies (VSS) of a running Windows' volumes: made before anything is read, removed afterwards.

They are made by WMI, as "client accessible" ones: these outlive the process, so that an interrupted backup
can be gone on with from the same moment; NTFS stands still for each. What they don't have, because WMI does
not offer it: programs are not asked to put their files in order (a database is as after a power cut), and
each volume has a moment of its own, some seconds from the next one's. The interface that would give both
(IVssBackupComponents) has no well-kept binding for Python.

Whose they are is in records (``shadow_records``): what a run that died has left is removed by the next one.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from formats.blockreader import BlockReader, Extent
from imagefs.errors import SnapshotError, SourceReadError
from imagefs.machine.windows.shadow_records import Pending, Record, Recorded, read_all
from imagefs.machine.windows.wmi import Copy, CopyInProgressError, System, Wmi

# Of a volume; for one more Windows removes the oldest. Source: "Shadow Copies of Shared Folders".
MOST_ACCESSIBLE = 64

_TRIES, _WAIT = 20, 3.0  # seconds, while another program makes one
_CLOCK = timedelta(seconds=2)  # by which a copy may seem to be older than its record
_LONGEST = timedelta(minutes=15)  # that Windows goes on making a copy whose program died


@dataclass(frozen=True, slots=True)
class ShadowCopy:
    r"""A shadow copy that can be read: ``device`` is for CreateFile, no backslash at its end."""

    id: str
    volume: str  # \\?\Volume{GUID}\
    name: str  # of the volume, for messages
    device: str
    made: datetime


class ShadowSet:
    """The shadow copies of one backup. ``warnings`` are lines to be shown."""

    def __init__(self, wmi: Wmi, record: Record, warnings: list[str]) -> None:
        self.warnings = warnings
        self.copies: tuple[ShadowCopy, ...] = ()
        self._wmi = wmi
        self._record = record
        self._is_lost = False

    @property
    def id(self) -> str:
        """The name by which an unfinished backup finds them again."""
        return self._record.id

    def of(self, volume: str) -> ShadowCopy:
        """Return the copy of a volume, by the name that was asked for."""
        return next(copy for copy in self.copies if copy.volume == volume)

    def check(self) -> None:
        """Raise SnapshotError where one of them is gone: what was read then is not of one moment."""
        there = {copy.id.lower() for copy in self._wmi.copies()}
        for copy in self._record.copies:
            if copy.id.lower() not in there:
                self._is_lost = True
                raise _gone(copy)

    def needed_by(self, state: Path) -> None:
        """Keep them beyond ``close`` while this file exists: an unfinished backup can be gone on with."""
        self._record.needed_by = str(state)
        self._record.save()

    def close(self) -> None:
        """Remove them, unless an unfinished backup needs them; raises SnapshotError."""
        if self._is_lost or not _is_needed(self._record):
            self.remove()

    def remove(self) -> None:
        """Remove them; raises SnapshotError where one can't be, whose record then stays."""
        known = {copy.id.lower() for copy in self._record.copies}
        if lines := _remove(self._wmi, self._record, known):
            raise SnapshotError("; ".join(lines))

    def _find(self) -> None:
        """Look up the devices of the copies that are recorded."""
        there = {copy.id.lower(): copy for copy in self._wmi.copies()}
        found = []
        for copy in self._record.copies:
            known = there.get(copy.id.lower())
            if known is None:
                self._is_lost = True
                raise _gone(copy)
            found.append(ShadowCopy(copy.id, copy.volume, copy.name, known.device.rstrip("\\"), known.made))
        self.copies = tuple(found)


class ShadowReader(BlockReader):
    """A shadow copy's bytes. Raises SnapshotError in place of a SourceReadError once a copy is gone."""

    def __init__(self, lower: BlockReader, shadows: ShadowSet) -> None:
        super().__init__(lower.size)
        self._lower = lower
        self._shadows = shadows

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return self._lower.read_at(offset, length)
        except SourceReadError:
            self._shadows.check()
            raise

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        try:
            self._lower.read_into(offset, buffer)
        except SourceReadError:
            self._shadows.check()
            raise

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._lower.extents(offset, length)


def running_system() -> System:
    """Return the Windows that runs; raises SnapshotError where pywin32 is missing."""
    if sys.platform == "win32":
        try:
            from imagefs.machine.windows.pywin32 import Pywin32  # noqa: PLC0415 - not everybody needs it
        except ImportError as error:
            raise SnapshotError(
                "shadow copies need the package pywin32", hint="pip install pywin32, or --live without them"
            ) from error
        return Pywin32()
    raise SnapshotError("shadow copies are made on Windows only")


def take(
    volumes: Mapping[str, str], system: System, *, sleep: Callable[[float], None] = time.sleep
) -> ShadowSet:
    r"""Make a shadow copy of each volume (``\\?\Volume{GUID}\``, and its name for messages), or of none.

    What dead runs left is removed first. Raises SnapshotError; then those that were made are removed again.
    """
    wmi = Wmi(system)
    wmi.copies()  # where there are none to be had, it says why best
    warnings = remove_leftovers(system)
    record = Record.new(system.records_folder(), system.myself())
    shadows = ShadowSet(wmi, record, warnings)
    record.save()
    try:
        for volume, name in volumes.items():
            _make(wmi, record, volume, name, sleep)
        shadows._find()
        warnings += _told(shadows.copies)
    except BaseException as error:
        try:
            shadows.remove()
        except SnapshotError as left:
            error.add_note(str(left))
        raise
    return shadows


def obtain(volumes: Mapping[str, str], kept: str, system: System) -> ShadowSet:
    """Make shadow copies, or return those that an unfinished backup kept, where ``kept`` names them.

    Raises SnapshotError.
    """
    if not kept:
        return take(volumes, system)
    shadows = take_again(kept, system)
    there = {copy.volume for copy in shadows.copies}
    for volume, name in volumes.items():
        if volume not in there:
            shadows.close()
            raise SnapshotError(
                "the unfinished backup did not read a shadow copy of it",
                path=Path(name),
                hint="--discard drops the unfinished backup; then start anew",
            )
    return shadows


def take_again(name: str, system: System) -> ShadowSet:
    """Return the shadow copies that an unfinished backup reads; ``name`` is ``ShadowSet.id`` of then.

    Raises SnapshotError where one of them is gone; then the others are removed.
    """
    try:
        record = Record.named(system.records_folder(), name)
    except FileNotFoundError as error:
        raise SnapshotError(
            "the shadow copies that the unfinished backup reads are gone",
            hint="--discard drops the unfinished backup; then start anew",
        ) from error
    except OSError as error:
        raise SnapshotError(f"the record of shadow copies can't be read: {error.strerror}") from error
    shadows = ShadowSet(Wmi(system), record, [])
    record.owner = system.myself()
    record.save()
    try:
        shadows._find()
        shadows.warnings += _told(shadows.copies)
    except BaseException:
        with suppress(SnapshotError):
            shadows.close()
        raise
    return shadows


def release(name: str, system: System) -> None:
    """Remove the shadow copies of an unfinished backup that was dropped; raises SnapshotError."""
    try:
        record = Record.named(system.records_folder(), name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SnapshotError(f"the record of shadow copies can't be read: {error.strerror}") from error
    _remove(Wmi(system), record, set())


def remove_leftovers(system: System) -> list[str]:
    """Remove what runs that died have left and no unfinished backup needs; returns lines to be shown.

    A shadow copy that may be ours, because one was being made when its run died, is told, not removed:
    nothing distinguishes it from somebody else's. One that can't be removed is told, and tried again the next
    time.
    """
    folder = system.records_folder()
    records = list(read_all(folder))
    known = {copy.id.lower() for one in records if isinstance(one, Record) for copy in one.copies}
    lines = []
    wmi = Wmi(system)
    for record in records:
        if isinstance(record, SnapshotError):
            lines.append(str(record))
        elif not system.is_alive(record.owner):
            try:
                lines += _remove_leftover(wmi, record, known)
            except SnapshotError as error:
                lines.append(str(error))
    return lines


def _remove_leftover(wmi: Wmi, record: Record, known: set[str]) -> list[str]:
    if _is_needed(record):
        if _is_reachable(record):
            return []
        ids = ", ".join(copy.id for copy in record.copies)
        return [f"{record.needed_by}: can't be reached; its backup's shadow copies are kept ({ids})"]
    return _remove(wmi, record, known)


def _unexplained(wmi: Wmi, pending: Pending, known: set[str]) -> list[Copy]:
    """Return the copies that may have been made for a record whose process died before it knew the id."""
    since = datetime.fromisoformat(pending.since)
    before = {one.lower() for one in pending.before} | known
    return [
        copy
        for copy in wmi.copies()
        if copy.id.lower() not in before
        and copy.volume.lower() == pending.volume.lower()
        and since - _CLOCK <= copy.made <= since + _LONGEST
    ]


def _make(wmi: Wmi, record: Record, volume: str, name: str, sleep: Callable[[float], None]) -> None:
    """Make one copy, and record it, waiting where another program makes one."""
    for tries_left in reversed(range(_TRIES)):
        there = wmi.copies()
        accessible = [one for one in there if one.client_accessible and one.volume.lower() == volume.lower()]
        if len(accessible) >= MOST_ACCESSIBLE:
            raise SnapshotError(
                f"has {len(accessible)} shadow copies: for another one Windows would remove the oldest",
                path=Path(name),
                hint="vssadmin list shadows shows them; remove one that nobody needs",
            )
        now = datetime.now(UTC).isoformat()
        record.pending = Pending(volume, name, now, tuple(one.id for one in there))
        record.save()

        def made(shadow: str) -> None:
            record.copies.append(Recorded(shadow, volume, name))
            record.pending = None
            record.save()

        try:
            wmi.create(volume, name, made)
            return
        except CopyInProgressError:
            record.pending = None  # nothing was made: what comes now is that program's
            if not tries_left:
                raise
        sleep(_WAIT)


def _remove(wmi: Wmi, record: Record, known: set[str]) -> list[str]:
    """Remove the copies of a record, and it; raises the first SnapshotError when all were tried.

    A copy that may be the record's, though no id was told, keeps the record, and is told. ``known`` are ids
    that somebody has recorded.
    """
    unexplained = _unexplained(wmi, record.pending, known) if record.pending is not None else []
    failed: list[tuple[Recorded, SnapshotError]] = []
    for copy in record.copies:
        try:
            wmi.delete(copy.id)
        except SnapshotError as error:
            failed.append((copy, error))
    if not failed and not unexplained:
        record.remove()
        return []
    record.copies = [copy for copy, _ in failed]
    record.needed_by = ""
    record.pending = record.pending if unexplained else None
    record.save()
    if not failed:
        return [
            f"{copy.device}: this shadow copy of {copy.volume} may have been left by a run of imagefs that"
            f" failed or died; if nobody needs it: vssadmin delete shadows /shadow={copy.id}"
            for copy in unexplained
        ]
    left, reason = failed[0]
    raise SnapshotError(
        f"its shadow copy can't be removed: {reason.what}",
        path=Path(left.name),
        hint=f"the next backup tries it again; or run vssadmin delete shadows /shadow={left.id}",
    ) from reason


def _is_needed(record: Record) -> bool:
    """Whether an unfinished backup needs a record's copies; in doubt it does."""
    if not record.needed_by or not _is_reachable(record):
        return bool(record.needed_by)
    try:
        return Path(record.needed_by).exists()
    except OSError:
        return True


def _is_reachable(record: Record) -> bool:
    """Whether the folder of sets can be seen in which the unfinished backup was."""
    try:
        return Path(record.needed_by).parents[1].exists()
    except OSError:  # a share that asks for a password, a folder of somebody else
        return False


def _gone(copy: Recorded) -> SnapshotError:
    return SnapshotError(
        "its shadow copy is gone: Windows removes them where they get no more room",
        path=Path(copy.name),
        hint="give them more room (vssadmin resize shadowstorage /?), or image it while less is written;"
        " --discard drops the unfinished backup",
    )


def _told(copies: tuple[ShadowCopy, ...]) -> list[str]:
    """Return what is to be known of an image that is made from these."""
    if not copies:
        return []
    names = ", ".join(copy.name for copy in copies)
    lines = [f"{names}: read from shadow copies; programs' files are as they were just then"]
    seconds = (max(copy.made for copy in copies) - min(copy.made for copy in copies)).total_seconds()
    if len(copies) > 1:
        lines.append(f"{names}: each of its own moment, {seconds:.1f} s apart")
    return lines
