"""``imagefs ls``: list a directory of the tree."""

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
)
from imagefs.cli.volumes import Deleted, RawEfs, VolumeKeys, volume_options
from imagefs.report import entry_document, time_text
from mounters.tree import Attributes, NodeType

_MARKS = {NodeType.DIRECTORY: "d", NodeType.LINK: "l", NodeType.OTHER: "o", NodeType.FILE: "-"}


def ls(
    source: SourceArgument,
    path: Annotated[str, typer.Argument(help="A path in the tree, such as disk4/p1.")] = "",
    deleted: Deleted = False,
    raw_efs: RawEfs = False,
    volume_keys: VolumeKeys = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """List a directory, or one file, of an image or of a folder's sets.

    Example: imagefs ls 2394E9AA621DDC3A-00-00.mrimgx disk4/p1

    Exit codes: 0 · 2 when there is no such path · 3 · 4 · 5 · 7 when an entry can't be read.
    """
    options = volume_options(deleted=deleted, raw_efs=raw_efs, keys=volume_keys)
    with opened(source, password_file) as opened_source:
        tree = opened_source.tree(options=options)
        inode = tree.resolve(path)
        if inode == tree.root:
            tell_left_out(opened_source)
        attributes = tree.attributes(inode)
        listed: list[tuple[str, int, Attributes | None]]
        if attributes.type is NodeType.DIRECTORY:
            listed = [(e.name, e.inode, known) for e, known in tree.entries_with_attributes(inode)]
        else:
            listed = [(path.rstrip("/").rpartition("/")[2], inode, attributes)]
        found, failed = [], False
        for name, number, maybe in sorted(listed, key=lambda item: natural(item[0])):
            try:
                known = maybe or tree.attributes(number)
                target = tree.read_link(number) if known.type is NodeType.LINK else None
            except (FormatError, OSError) as error:
                say(f"{path}/{name}: {message_of(error)}")
                failed = True
            else:
                found.append((name, known, target))
    if json:
        print_json({"entries": [entry_document(name, known, target) for name, known, target in found]})
    else:
        for line in columns([_row(*item) for item in found], right=(1,)):
            output.print(line)
    if failed:
        raise typer.Exit(ExitCode.INPUT_OUTPUT)


def _row(name: str, known: Attributes, target: str | None) -> tuple[str, str, str, str]:
    modified = time_text(known.modified).partition(".")[0].removesuffix("Z")
    shown = name_text(name) + (f" -> {name_text(target)}" if target is not None else "")
    return _MARKS[known.type], str(known.size), modified, shown
