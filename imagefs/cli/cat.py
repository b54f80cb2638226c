"""``imagefs cat``: write files of the tree to standard output."""

from contextlib import ExitStack
from typing import Annotated

import typer

from imagefs.cli.common import PasswordFile, SourceArgument, about, opened, tree_path, write_output
from imagefs.cli.volumes import Deleted, RawEfs, VolumeKeys, volume_options
from mounters.tree import NodeType, is_a_directory

_STEP = 1 << 20


def cat(
    source: SourceArgument,
    paths: Annotated[list[str], typer.Argument(metavar="PATH …", help="Paths in the tree.")],
    deleted: Deleted = False,
    raw_efs: RawEfs = False,
    volume_keys: VolumeKeys = None,
    password_file: PasswordFile = None,
) -> None:
    """Write files to standard output, one behind the other; disks and partitions end in .raw.

    Nothing is written unless all of them are there.

    Example: imagefs cat 2394E9AA621DDC3A-00-00.mrimgx disk4/p1/readme.txt

    Exit codes: 0 · 2 when there is no such path · 3 · 4 · 5 · 7.
    """
    options = volume_options(deleted=deleted, raw_efs=raw_efs, keys=volume_keys)
    with opened(source, password_file) as opened_source, ExitStack() as stack:
        tree = opened_source.tree(options=options)
        files = []
        for path in map(tree_path, paths):
            inode = tree.resolve(path)
            if tree.attributes(inode).type is NodeType.DIRECTORY:
                raise is_a_directory(path)
            with about(path):
                files.append((path, stack.enter_context(tree.open(inode))))
        for path, file in files:
            for offset in range(0, file.size, _STEP):
                with about(path):
                    data = file.read(offset, _STEP)
                write_output(data)
