"""When files were made, changed and read: all times that a volume's records keep, as a timeline.

Three forms, each written as it is found, or through a file on disk, whatever the number of files:

- body file 3 of The Sleuth Kit (https://wiki.sleuthkit.org/index.php?title=Body_file), in the tree's order;
- CSV (RFC 4180), an event a row, sorted by time;
- JSON, an entry for each file and stream, in the tree's order.
"""

import csv
import heapq
import io
import json
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import IO, Any, NamedTuple

from formats.errors import FormatError
from imagefs.filesystems import RecordedTimes, Stream
from imagefs.report import time_text
from imagefs.tree import ImageTree, own_number
from imagefs.walking import Failed, Found, PassedOver, nothing_said, walk
from mounters.tree import Attributes, NodeType

_SECOND = 1_000_000_000
_ROWS = 100_000  # of CSV that are sorted in memory
_BATCH = 500  # rows that are written and read together
_MARKS = {NodeType.DIRECTORY: "d", NodeType.LINK: "l", NodeType.OTHER: "-", NodeType.FILE: "r"}
_HEADER = ("time", "macb", "source", "type", "size", "inode", "path")

Write = Callable[[bytes], Any]
_Row = tuple[int, int, bytes]  # when, a number in the tree's order, the line


class Dated(NamedTuple):
    """A file, directory, link or named stream, and what is recorded of its times."""

    path: str  # in the tree; of a stream "path:stream"
    attributes: Attributes  # of a stream those of its file, but for the size
    times: Sequence[RecordedTimes]  # those of the node itself first, then those of this name
    target: str | None = None  # of a link
    deleted: bool = False
    number: int = 0  # that the volume has for it: of its inode, file record or directory entry


def timeline(
    tree: ImageTree, path: str, failed: Failed, passed_over: PassedOver = nothing_said
) -> Iterator[Dated]:
    """Return what yields all that lies at and below a path, in the tree's order, streams behind their file.

    Also what was deleted, where the tree shows that; shadow copies are told to ``passed_over``. A directory's
    $FILE_NAME, and those of a file with several names, come with the name that they are of. What can't be
    read is told to ``failed``, and the rest goes on. Raises OSError when there is no such path, FormatError
    when it can't be read.
    """
    deleted = tree.options.deleted
    nodes = walk(tree, path, failed, deleted=deleted, system=True, passed_over=passed_over)
    return _dated(tree, nodes, failed)


def _dated(tree: ImageTree, nodes: Iterable[Found], failed: Failed) -> Iterator[Dated]:
    for node in nodes:
        file_system = tree.file_system(node.attributes.inode)
        if file_system is None:
            continue
        if node.deleted and not file_system.is_deleted(own_number(node.attributes.inode)):
            continue  # it leads to what was deleted
        try:
            times = file_system.recorded_times(own_number(node.attributes.inode))
            target = None
            if node.attributes.type is NodeType.LINK:
                target = tree.read_link(node.attributes.inode)
        except (OSError, FormatError) as error:
            failed(node.path, error)
            continue
        number = file_system.recorded_number(own_number(node.attributes.inode))
        dated = Dated(node.path, node.attributes, _of_name(times, node), target, node.deleted, number)
        yield dated
        streams: Sequence[Stream] = ()
        try:
            streams = tree.streams(node.attributes.inode)
        except (OSError, FormatError) as error:
            failed(node.path, error)
        for stream in streams:
            yield _of_stream(dated, stream)


def _of_name(times: Sequence[RecordedTimes], node: Found) -> Sequence[RecordedTimes]:
    """Return a node's own times and those of the name it was found by; all, if that is none of its."""
    if len(times) < 3:  # its own, and one name
        return times
    name, directory = node.path.rpartition("/")[2], own_number(node.directory)
    own = [entry for entry in times if entry.name == name and entry.parent == directory]
    return [times[0], *own] if own else times


def _of_stream(host: Dated, stream: Stream) -> Dated:
    attributes = replace(host.attributes, size=stream.size, type=NodeType.FILE)
    return Dated(f"{host.path}:{stream.name}", attributes, host.times[:1], None, host.deleted, host.number)


# body file


def write_body_file(entries: Iterable[Dated], write: Write) -> None:
    """Write a body file, a line for each record of times; names that are a $FILE_NAME's end in that word.

    Times are whole seconds, as the format has them, and 0 where there is none or it lies before 1970. Control
    characters, "|" and undecodable bytes in names are "^", as TSK writes what it can't show.
    """
    for entry in entries:
        for times in entry.times:
            write(_body_line(entry, times))


def _body_line(entry: Dated, times: RecordedTimes) -> bytes:
    attributes = entry.attributes
    mark = _MARKS[attributes.type]
    name = _shown_path(entry, times)
    if entry.target is not None and not times.name:
        name += f" -> {entry.target}"
    if times.name:
        name += f" ({times.source})"
    if entry.deleted:
        name += " (deleted)"
    seconds = (
        max(0, (time or 0) // _SECOND)
        for time in (times.accessed, times.modified, times.changed, times.created)
    )
    mode = f"{mark}/{mark}{_permissions(attributes.mode)}"
    fields = [
        "0",
        f"/{_body_text(name)}",
        entry.number,
        mode,
        attributes.uid,
        attributes.gid,
        attributes.size,
        *seconds,
    ]
    return "|".join(map(str, fields)).encode() + b"\n"


def _body_text(name: str) -> str:
    if name.isprintable() and "|" not in name:
        return name
    return "".join(
        "^" if char < " " or char in "\x7f|" or "\ud800" <= char < "\ue000" else char for char in name
    )


def _permissions(mode: int) -> str:
    """Return permission bits as ls shows them."""
    text = ["rwx"[2 - bit % 3] if mode >> bit & 1 else "-" for bit in range(8, -1, -1)]
    for bit, place, mark in ((11, 2, "s"), (10, 5, "s"), (9, 8, "t")):
        if mode >> bit & 1:
            text[place] = mark if text[place] == "x" else mark.upper()
    return "".join(text)


def _shown_path(entry: Dated, times: RecordedTimes) -> str:
    """Return the path that times are of; those of an 8.3 name have it in place of the long one."""
    if not times.alias:
        return entry.path
    folder, slash, _ = entry.path.rpartition("/")
    return folder + slash + times.alias


# CSV


def write_csv(entries: Iterable[Dated], write: Write) -> None:
    """Write events as CSV in UTF-8, the earliest first; those of one moment in the tree's order.

    A row is a moment of one record of times, and the "macb" column says what happened then: modified,
    accessed, changed (metadata), born. A time that is not recorded makes no row. Names are as they are;
    undecodable bytes are escaped with a backslash. More rows than fit into memory are sorted through a
    temporary file, as large as what is written.
    """
    write(_csv_line(_HEADER))
    with tempfile.TemporaryFile(prefix="imagefs-") as scratch:
        for line in _sorted(_rows(entries), scratch):
            write(line)


def _rows(entries: Iterable[Dated]) -> Iterator[_Row]:
    number = 0
    for entry in entries:
        attributes = entry.attributes
        for times in entry.times:
            moments: dict[int, list[str]] = {}
            four = (times.modified, times.accessed, times.changed, times.created)
            for place, time in enumerate(four):
                if time is not None:
                    moments.setdefault(time, list("...."))[place] = "macb"[place]
            path = _shown_path(entry, times) + (" (deleted)" if entry.deleted else "")
            rest = times.source, attributes.type, attributes.size, entry.number, path
            for time, flags in moments.items():
                number += 1
                yield time, number, _csv_line((_csv_time(time), "".join(flags), *map(str, rest)))


def _csv_line(fields: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(fields)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _csv_time(nanoseconds: int) -> str:
    """Return ISO 8601 in UTC with nine digits behind the second: rows sort as text as well."""
    seconds, rest = divmod(nanoseconds, _SECOND)
    with suppress(OverflowError, ValueError, OSError):
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"
    return time_text(nanoseconds)


def _sorted(rows: Iterable[_Row], scratch: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of rows in order; sorted pieces of many go through the scratch file."""
    pieces: list[list[tuple[int, int]]] = []  # of each the batches' places and lengths in the file
    waiting: list[_Row] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == _ROWS:
            pieces.append(_spill(waiting, scratch))
            waiting = []
    waiting.sort()
    runs = [_spilled(piece, scratch) for piece in pieces]
    yield from (line for _, _, line in heapq.merge(*runs, waiting))


def _spill(rows: list[_Row], scratch: IO[bytes]) -> list[tuple[int, int]]:
    rows.sort()
    places = []
    for first in range(0, len(rows), _BATCH):
        at = scratch.tell()
        pickle.dump(rows[first : first + _BATCH], scratch, pickle.HIGHEST_PROTOCOL)
        places.append((at, scratch.tell() - at))
    return places


def _spilled(places: Sequence[tuple[int, int]], scratch: IO[bytes]) -> Iterator[_Row]:
    for at, length in places:
        scratch.seek(at)
        yield from pickle.loads(scratch.read(length))  # noqa: S301  (what we wrote, into an unnamed file)


# JSON


def write_json(entries: Iterable[Dated], write: Write) -> None:
    """Write one JSON document, {"entries": [...]}, an entry a line; undecodable bytes as lone surrogates."""
    write(b'{"entries": [')
    for number, entry in enumerate(entries):
        write((",\n" if number else "\n").encode() + json.dumps(_document(entry)).encode())
    write(b"\n]}\n")


def _document(entry: Dated) -> dict[str, Any]:
    attributes = entry.attributes
    document: dict[str, Any] = {
        "path": entry.path,
        "type": str(attributes.type),
        "size": attributes.size,
        "inode": entry.number,
        "deleted": entry.deleted,
        "times": [_times_document(times) for times in entry.times],
    }
    if entry.target is not None:
        document["target"] = entry.target
    return document


def _times_document(times: RecordedTimes) -> dict[str, Any]:
    document: dict[str, Any] = {
        key: None if time is None else time_text(time)
        for key, time in (
            ("modified", times.modified),
            ("accessed", times.accessed),
            ("changed", times.changed),
            ("created", times.created),
        )
    }
    if times.source:
        document = {"source": times.source, **document}
    if times.name:
        document["name"] = times.alias or times.name
    return document
