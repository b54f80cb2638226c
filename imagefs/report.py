"""What ``info``, ``points``, ``ls`` and ``verify`` report, as documents of stable keys."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from formats.container import (
    BadBlock,
    Container,
    Disk,
    FileAuthentication,
    Partition,
    Point,
    UnreadableSource,
)
from formats.errors import FormatError
from imagefs.filesystems import Recovery, Stream
from imagefs.filesystems.nested.encrypted import encryption_document
from imagefs.left_out import paging_files_left_out
from imagefs.source import Source
from imagefs.tree import own_number, unreadable_reason
from mounters.tree import Attributes


def time_text(nanoseconds: int) -> str:
    """Return ISO 8601 in UTC, with as many digits of a second as are there."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    fraction = f".{rest:09}".rstrip("0").rstrip(".") if rest else ""
    try:
        text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"@{seconds}{fraction}"  # beyond the calendar
    return f"{text}{fraction}Z"


def _created(point: Point) -> str:
    return point.created.strftime("%Y-%m-%dT%H:%M:%SZ")


def info_document(container: Container, point: Point) -> dict[str, Any]:
    """Return what ``info`` tells of a point; counts of an incomplete one are its own file's."""
    return {
        "format": container.format,
        "path": str(point.path),
        "image_id": point.image_id,
        "file_number": point.file_number,
        "increment": point.increment,
        "role": _role(point),
        "created": _created(point),
        "complete": point.problem is None,
        "missing_files": list(point.missing_files),
        "problem": str(point.problem) if point.problem is not None else None,
        "encrypted": point.encrypted,
        "compression": point.compression,
        **_own_document(point),
        "disks": [_disk_document(disk, can_read=unreadable_reason(point) is None) for disk in point.disks],
    }


def _own_document(point: Point) -> dict[str, Any]:
    """Return what was not taken into the point; null where the record of that is damaged."""
    try:
        return {
            "unreadable": [unreadable_document(entry) for entry in point.unreadable],
            "excluded": list(point.excluded),
            "left_out": list(point.left_out),
        }
    except FormatError:
        return {"unreadable": None, "excluded": None, "left_out": None}


def unreadable_document(entry: UnreadableSource, file: Path | None = None) -> dict[str, Any]:
    """Return a range of the source that could not be read; ``file`` is the point's, where it must be told."""
    place = {} if file is None else {"file": str(file)}
    return {**place, "partition": entry.partition, "offset": entry.offset, "length": entry.length}


def unreadable_text(entry: Mapping[str, Any]) -> str:
    """Return a range of the source that could not be read, in words."""
    return f"{entry['partition']}: {entry['length']} bytes at {entry['offset']} could not be read, now zeros"


def authentication_document(entry: FileAuthentication) -> dict[str, Any]:
    """Return whether an image file is authenticated."""
    return {"file": str(entry.file), "state": str(entry.state), "reason": entry.reason}


def _disk_document(disk: Disk, *, can_read: bool) -> dict[str, Any]:
    return {
        "number": disk.number,
        "name": disk.name,
        "size": disk.size,
        "scheme": disk.scheme,
        "sector_size": disk.sector_size,
        "partitions": [
            {
                **_partition_document(partition),
                "encryption": _encryption(partition) if can_read else None,
                "left_out": _left_out(partition, can_read=can_read),
            }
            for partition in disk.partitions
        ],
    }


def _partition_document(partition: Partition) -> dict[str, Any]:
    return {
        "number": partition.number,
        "name": partition.name,
        "offset": partition.offset,
        "size": partition.size,
        "file_system": partition.file_system,
        "label": partition.label,
        "block_size": partition.block_size,
        "stored_blocks": partition.stored_blocks(),
        "block_count": partition.block_count,
    }


def _encryption(partition: Partition) -> dict[str, Any] | None:
    """Return how a volume is encrypted; null where it is not, or can't be read at all."""
    try:
        return encryption_document(partition.reader(), partition.name)
    except FormatError:
        return None


def _left_out(partition: Partition, *, can_read: bool) -> list[dict[str, Any]] | None:
    """Return the paging files that are not in the image; null where that can't be told."""
    found = paging_files_left_out(partition) if can_read else None
    return None if found is None else [file._asdict() for file in found]


def points_document(source: Source) -> dict[str, Any]:
    """Return every set and point of a folder, or of the set that an image file belongs to."""
    return {
        "sets": [
            {
                "image_id": container.image_id,
                "encrypted": container.is_encrypted,
                "points": [
                    {**_point_document(point), "authentication": states.get(point.path)}
                    for point in container.points
                ],
            }
            for container in source.sets
            for states in [{entry.file: str(entry.state) for entry in container.authentication()}]
        ],
        "unreadable": [
            {"path": str(path), "reason": error.what} for path, error in source.unreadable.items()
        ],
    }


def _point_document(point: Point) -> dict[str, Any]:
    return {
        "path": str(point.path),
        "name": _name(point),
        "increment": point.increment,
        "file_number": point.file_number,
        "role": _role(point),
        "created": _created(point),
        "stored_bytes": point.stored_bytes,
        "complete": point.problem is None,
        "encrypted": point.encrypted,
        "reason": _reason(point),
    }


def _name(point: Point) -> str:
    """Return the name of a point in the tree, of a broken one that has none its file's."""
    return point.name if _role(point) is not None else point.path.name


def _role(point: Point) -> str | None:
    try:
        return str(point.role)
    except FormatError:
        return None


def _reason(point: Point) -> str | None:
    """Return why a point can't be read now."""
    reason = unreadable_reason(point)
    if reason is None:
        return None
    return str(reason.what) if reason is point.problem else str(reason)


def entry_document(
    name: str,
    attributes: Attributes,
    target: str | None = None,
    streams: Sequence[Stream] | None = None,
    recovery: Recovery | None = None,
) -> dict[str, Any]:
    """Return what ``ls`` tells of a node.

    ``target`` is a link's, ``streams`` are told where asked for, ``recovery`` is a deleted file's.
    """
    document: dict[str, Any] = {
        "name": name,
        "type": str(attributes.type),
        "size": attributes.size,
        "modified": time_text(attributes.modified),
        "created": time_text(attributes.created),
        "inode": own_number(attributes.inode),
    }
    if target is not None:
        document["target"] = target
    if streams is not None:
        document["streams"] = streams_document(streams)
    if recovery is not None:
        document["deleted"] = str(recovery.state)
    return document


def streams_document(streams: Sequence[Stream]) -> list[dict[str, Any]]:
    """Return what ``ls`` tells of a node's streams."""
    return [{"name": stream.name, "size": stream.size} for stream in streams]


def bad_document(bad: BadBlock) -> dict[str, Any]:
    """Return what ``verify`` tells of something wrong."""
    return {"file": str(bad.file), "partition": bad.partition, "block": bad.block, "reason": bad.reason}
