"""``imagefs cat``: write files of the tree to standard output."""

import sys
from typing import Annotated

import typer

from imagefs.cli.common import PasswordFile, SourceArgument, opened

_STEP = 1 << 20


def cat(
    source: SourceArgument,
    paths: Annotated[list[str], typer.Argument(metavar="PATH …", help="Paths in the tree.")],
    password_file: PasswordFile = None,
) -> None:
    """Write files to standard output, one behind the other; disks and partitions end in .raw.

    Example: imagefs cat 2394E9AA621DDC3A-00-00.mrimgx disk4/p1/readme.txt

    Exit codes: 0 · 2 when there is no such path · 3 · 4 · 5 · 7.
    """
    with opened(source, password_file) as opened_source:
        tree = opened_source.tree()
        for inode in [tree.resolve(path) for path in paths]:
            with tree.open(inode) as file:
                for offset in range(0, file.size, _STEP):
                    sys.stdout.buffer.write(file.read(offset, _STEP))
    sys.stdout.buffer.flush()
