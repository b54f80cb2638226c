"""``imagefs ls``: list a directory of the tree."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from formats.errors import FormatError
from imagefs.cli.common import (
    ExitCode,
    Json,
    PasswordFile,
    SourceArgument,
    errors,
    message_of,
    name_text,
    opened,
    output,
    print_json,
)
from imagefs.report import entry_document, time_text
from mounters.tree import Attributes, NodeType

_MARKS = {NodeType.DIRECTORY: "d", NodeType.LINK: "l", NodeType.OTHER: "o", NodeType.FILE: "-"}


def ls(
    source: SourceArgument,
    path: Annotated[str, typer.Argument(help="A path in the tree, such as disk4/p1.")] = "",
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """List a directory, or one file, of an image or of a folder's sets.

    Example: imagefs ls 2394E9AA621DDC3A-00-00.mrimgx disk4/p1

    Exit codes: 0 · 2 when there is no such path · 3 · 4 · 5 · 7 when an entry can't be read.
    """
    with opened(source, password_file) as opened_source:
        tree = opened_source.tree()
        inode = tree.resolve(path)
        attributes = tree.attributes(inode)
        failures = []
        if attributes.type is NodeType.DIRECTORY:
            found = []
            for entry, known in tree.entries_with_attributes(inode):
                try:
                    found.append((entry.name, known or tree.attributes(entry.inode)))
                except (FormatError, OSError) as error:
                    failures.append(f"{path}/{entry.name}: {message_of(error)}")
        else:
            found = [(path.rstrip("/").rpartition("/")[2], attributes)]
    found.sort(key=lambda item: item[0])
    for failure in failures:
        errors.print(f"imagefs: {escape(name_text(failure))}", soft_wrap=True)
    if json:
        print_json({"entries": [entry_document(name, known) for name, known in found]})
    else:
        output.print(_table(found))
    if failures:
        raise typer.Exit(ExitCode.INPUT_OUTPUT)


def _table(found: Sequence[tuple[str, Attributes]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_column(no_wrap=True, overflow="ignore")
    for name, known in found:
        modified = time_text(known.modified).partition(".")[0].removesuffix("Z")
        table.add_row(_MARKS[known.type], str(known.size), modified, escape(name_text(name)))
    return table
