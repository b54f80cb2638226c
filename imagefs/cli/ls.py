"""``imagefs ls``: list a directory of the tree."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from formats.errors import FormatError
from imagefs.cli.common import (
    ExitCode,
    Json,
    PasswordFile,
    SourceArgument,
    columns,
    message_of,
    name_text,
    natural,
    opened,
    output,
    print_json,
    say,
    tell_left_out,
    tree_path,
)
from imagefs.cli.volumes import Deleted, RawEfs, VolumeKeys, volume_options
from imagefs.filesystems import Recovery, Stream
from imagefs.report import entry_document, streams_document, time_text
from mounters.tree import Attributes, NodeType

_Row = tuple[str, str, str, str]
_MARKS = {NodeType.DIRECTORY: "d", NodeType.LINK: "l", NodeType.OTHER: "o", NodeType.FILE: "-"}


def ls(
    source: SourceArgument,
    path: Annotated[str, typer.Argument(help="A path in the tree, such as disk4/p1.")] = "",
    streams: Annotated[
        bool, typer.Option("--streams", help="List named streams too, as name:stream.")
    ] = False,
    deleted: Deleted = False,
    raw_efs: RawEfs = False,
    volume_keys: VolumeKeys = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """List a directory, or one file, of an image or of a folder's sets.

    Of what is deleted it tells whether it is whole, partly overwritten or lost.

    Example: imagefs ls 2394E9AA621DDC3A-00-00.mrimgx disk4/p1

    Exit codes: 0 · 2 when there is no such path · 3 · 4 · 5 · 7 when an entry can't be read.
    """
    path = tree_path(path)
    options = volume_options(deleted=deleted, raw_efs=raw_efs, keys=volume_keys)
    with opened(source, password_file) as opened_source:
        tree = opened_source.tree(options=options)
        inode = tree.resolve(path)
        if inode == tree.root:
            tell_left_out(opened_source)
        attributes = tree.attributes(inode)
        own: Sequence[Stream] | None = None  # of the directory itself
        listed: list[tuple[str, int, Attributes | None]]
        if attributes.type is NodeType.DIRECTORY:
            own = tree.streams(inode) if streams else None
            listed = [(e.name, e.inode, known) for e, known in tree.entries_with_attributes(inode)]
        else:
            listed = [(path.rstrip("/").rpartition("/")[2], inode, attributes)]
        found, failed = [], False
        for name, number, maybe in sorted(listed, key=lambda item: natural(item[0])):
            try:
                known = maybe or tree.attributes(number)
                target = tree.read_link(number) if known.type is NodeType.LINK else None
                beside = tree.streams(number) if streams else None
                recovery = tree.recovery(number)
            except (FormatError, OSError) as error:
                say(f"{path}/{name}: {message_of(error)}")
                failed = True
            else:
                found.append((name, known, target, beside, recovery))
    if json:
        whole = {"entries": [entry_document(*item) for item in found]}
        print_json(whole if own is None else {**whole, "streams": streams_document(own)})
    else:
        rows = [*_stream_rows("", attributes, own), *(row for item in found for row in _rows(*item))]
        for line in columns(rows, right=(1,)):
            output.print(line)
    if failed:
        raise typer.Exit(ExitCode.INPUT_OUTPUT)


def _rows(
    name: str,
    known: Attributes,
    target: str | None,
    streams: Sequence[Stream] | None,
    recovery: Recovery | None,
) -> Iterator[_Row]:
    when = _time(known) if recovery is None else f"{_time(known)}  {recovery.state}"
    shown = name_text(name) + (f" -> {name_text(target)}" if target is not None else "")
    yield _MARKS[known.type], str(known.size), when, shown
    yield from _stream_rows(name, known, streams)


def _stream_rows(name: str, known: Attributes, streams: Sequence[Stream] | None) -> Iterator[_Row]:
    for stream in streams or ():
        yield _MARKS[NodeType.FILE], str(stream.size), _time(known), name_text(f"{name}:{stream.name}")


def _time(known: Attributes) -> str:
    return time_text(known.modified).partition(".")[0].removesuffix("Z")
