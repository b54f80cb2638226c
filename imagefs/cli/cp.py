"""``imagefs cp``: copy files and directories out of an image."""

from typing import Annotated

import typer

from imagefs.cli.common import (
    ExitCode,
    PasswordFile,
    SourceArgument,
    opened,
    progress_bar,
    say,
)
from imagefs.cli.volumes import Deleted, RawEfs, VolumeKeys, volume_options
from imagefs.copying import copy_out


def cp(
    source: SourceArgument,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH … TARGET", help="Paths in the tree, then a folder or file to copy to."),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    deleted: Deleted = False,
    raw_efs: RawEfs = False,
    volume_keys: VolumeKeys = None,
    password_file: PasswordFile = None,
) -> None:
    """Copy files and directories, with all that is in them, out of an image.

    Times, symbolic links and holes are kept; hard links become files of their own. What is there already
    is left alone, and told, unless --overwrite is given. A file that can't be read is told and the others
    are copied.

    Example: imagefs cp 2394E9AA621DDC3A-00-00.mrimgx disk4/p1/readme.txt .

    Exit codes: 0 · 2 · 3 · 4 · 5 · 7 when anything could not be copied.
    """
    if len(paths) < 2:
        raise typer.BadParameter("give at least one path in the image, and the target")
    *wanted, target = paths
    options = volume_options(deleted=deleted, raw_efs=raw_efs, keys=volume_keys)
    with opened(source, password_file) as opened_source, progress_bar("copying") as bar:
        result = copy_out(
            opened_source.tree(options=options),
            wanted,
            target,
            overwrite=overwrite,
            progress=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )
    for failure in result.failures:
        say(failure)
    if result.failures:
        raise typer.Exit(ExitCode.INPUT_OUTPUT)
