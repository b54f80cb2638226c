"""Which set of a folder an image goes into."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from formats.container import Role
from formats.errors import FormatError
from formats.mrimgx.document import DiskRecord, Document
from formats.mrimgx.image_file import ImageFile
from formats.mrimgx.points import MrimgxPoint, MrimgxSet, open_folder
from imagefs.errors import RefusedError
from imagefs.imaging.plan import Plan


@dataclass(frozen=True, slots=True)
class Parent:
    """The point that an image builds upon, and its set."""

    container: MrimgxSet
    point: MrimgxPoint

    @property
    def files(self) -> tuple[ImageFile, ...]:
        """All files of the set, in ascending order of their numbers."""
        return self.container.members.files

    @property
    def next_number(self) -> int:
        """The file number that follows all that are used."""
        return max(number for image in self.files for number in image.numbers) + 1

    @property
    def next_increment(self) -> int:
        """The increment that follows all that are used."""
        return max(image.document.increment for image in self.files) + 1


@dataclass(frozen=True, slots=True)
class Match:
    """What a folder offers: the sets of the source's disk, and why others of it don't fit."""

    parent: Parent | None
    reasons: tuple[str, ...] = ()  # why sets of the same disk can't be built upon
    is_reshaped: bool = False  # the source's partitions are no longer those of a set
    locked: str = ""  # the image id of a set that would fit but for its encryption
    problem: FormatError | None = None  # why a set that would fit can't be read


def find_parent(folder: Path, plan: Plan, *, encrypted: bool, differential: bool) -> Match:
    """Find the newest set of the same disks and partitions.

    With ``differential`` the point is the set's newest full, else its
    newest point. The container of a match stays open; the others are closed. Raises ReadError when the folder
    can't be read.
    """
    if not folder.exists():
        return Match(None)
    sets, _ = open_folder(folder)
    reasons: list[str] = []
    reshaped, locked = False, ""
    problem: FormatError | None = None
    fitting: list[tuple[tuple[float, int], MrimgxSet, MrimgxPoint]] = []
    for container in sets:
        if not container.points:
            continue
        newest = container.points[-1]
        document = newest.image.document
        kind = document.json["_header"].get("backup_format", "partition")
        if kind != "partition" or not _same_disks(document, plan):
            continue
        name = f"set {container.image_id}"
        difference = _shape_difference(document.disks, plan)
        if difference:
            reasons.append(f"{name} is of this disk, but {difference}")
            reshaped = True
        elif container.is_encrypted != encrypted:
            reasons.append(f"{name} is {'encrypted' if container.is_encrypted else 'not encrypted'}")
            locked = container.image_id if container.is_encrypted else locked
        elif (point := _newest_full(container) if differential else newest) is None:
            reasons.append(f"{name} has no full")
        elif point.problem is not None:
            reasons.append(f"{name} can't be built upon: {point.problem}")
            problem = point.problem
        else:
            # Times are recorded in whole seconds; of two sets of one second the file's own time tells.
            age = newest.created.timestamp(), newest.image.path.stat().st_mtime_ns
            fitting.append((age, container, point))
    fitting.sort(key=lambda item: item[0])
    chosen: Parent | None = None
    if fitting:
        chosen = Parent(*fitting[-1][1:])
    for container in sets:
        if chosen is None or container is not chosen.container:
            container.close()
    return Match(chosen, tuple(reasons), reshaped, locked, problem)


def open_parent(folder: Path, image_id: str, number: int, next_number: int) -> Parent:
    """Open the point that an image builds upon, by its file number.

    Raises RefusedError when it is gone, or when files were added to the set since ``next_number`` was chosen.
    """
    sets, _ = open_folder(folder)
    found: Parent | None = None
    for container in sets:
        if container.image_id == image_id:
            point = next((point for point in container.points if point.file_number == number), None)
            if point is not None:
                found = Parent(container, point)
                continue
        container.close()
    if found is None:
        raise RefusedError(f"file number {number} of set {image_id} is gone", path=folder)
    if found.next_number != next_number:
        found.container.close()
        raise RefusedError(f"set {image_id} has got files meanwhile", path=folder, hint="start anew")
    return found


def _newest_full(container: MrimgxSet) -> MrimgxPoint | None:
    """Return the newest full, whose own file holds all of its blocks; None where there is none."""
    for point in reversed(container.points):
        try:
            if point.role is Role.FULL:
                return point
        except FormatError:
            continue
    return None


def _same_disks(document: Document, plan: Plan) -> bool:
    """Whether the disks are the source's, by their GUIDs or signatures.

    Those without one, or with one that is all zeros, must have the same size and hardware.
    """
    if len(document.disks) != len(plan.disks):
        return False
    for record, known, disk in zip(document.disks, document.json["disks"], plan.disks, strict=True):
        new = disk.record
        signature = record.signature.strip("{}").upper()
        if signature != new.signature.upper():
            return False
        if not signature.strip("0-"):
            hardware = known.get("_descriptor", {})
            of_set = hardware.get("disk_description", ""), hardware.get("disk_serialno", "")
            if record.size != new.size or of_set != (new.description, new.serial):
                return False
    return True


def _shape_difference(records: Sequence[DiskRecord], plan: Plan) -> str:
    """Return how the source's partitions differ from a set's, "" where they don't."""
    for record, disk in zip(records, plan.disks, strict=True):
        new = disk.record
        if record.sector_size != new.sector_size:
            return f"its sectors have {record.sector_size} bytes, the source's {new.sector_size}"
        numbers = [part.number for part in record.partitions]
        if numbers != [part.number for part in new.partitions]:
            wanted = ", ".join(str(part.number) for part in new.partitions)
            return f"it has partitions {', '.join(map(str, numbers))}, the source {wanted}"
        for old, part in zip(record.partitions, new.partitions, strict=True):
            if (old.start, old.length) != (part.start, part.length):
                return f"partition {part.number} was moved or resized"
            if (old.reserved_length, old.data_offset) != (part.reserved_length, part.reserved_length):
                return f"partition {part.number} was formatted anew"
            if old.block_size != part.block_size:
                return f"partition {part.number} has blocks of {old.block_size} bytes"
            if old.boot_sector_offset:
                return f"partition {part.number} has its boot sector at {old.boot_sector_offset}"
    return ""
