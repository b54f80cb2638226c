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
    tree_path,
)
from imagefs.cli.volumes import Deleted, RawEfs, VolumeKeys, volume_options
from imagefs.copying import copy_out
from imagefs.filesystems import RecoveryState


def cp(
    source: SourceArgument,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH … TARGET", help="Paths in the tree, then a folder or file to copy to."),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    streams: Annotated[
        bool,
        typer.Option(
            "--streams",
            help="Copy named streams too: as user. extended attributes, on Windows as streams; from Linux"
            " onto NTFS the time of creation and the file attributes as well.",
        ),
    ] = False,
    security: Annotated[
        bool,
        typer.Option(
            "--security",
            help="Give copies on NTFS the owners and rights that they have in the image, which takes an"
            " administrator; on Linux the target is mounted by ntfs-3g.",
        ),
    ] = False,
    deleted: Deleted = False,
    raw_efs: RawEfs = False,
    volume_keys: VolumeKeys = None,
    password_file: PasswordFile = None,
) -> None:
    """Copy files and directories, with all that is in them, out of an image.

    Times, links and holes are kept, on Windows file attributes too. What is there already is left alone, and
    told, unless --overwrite is given. What can't be read, or not be kept by the target, is told and the rest
    is copied. What Windows takes no name of, or another name but for case, gets another one in a copy there,
    which is told. PATH may be a named stream of a file, as file:stream. $Deleted and $Shadow are copied only
    when they are named; of a deleted file what is left is copied, with holes where others have overwritten
    it, which is told.

    Example: imagefs cp 2394E9AA621DDC3A-00-00.mrimgx disk4/p1/readme.txt .

    Exit codes: 0 · 2 · 3 · 4 · 5 · 6 when --security can't be had · 7 when anything could not be copied.
    """
    if len(paths) < 2:
        raise typer.BadParameter("give at least one path in the image, and the target")
    *wanted, target = paths
    options = volume_options(deleted=deleted, raw_efs=raw_efs, keys=volume_keys)
    with opened(source, password_file) as opened_source, progress_bar("copying") as bar:
        result = copy_out(
            opened_source.tree(options=options),
            [tree_path(path) for path in wanted],
            target,
            overwrite=overwrite,
            streams=streams,
            security=security,
            progress=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )
    for failure in result.failures:
        say(failure)
    for line in result.incomplete:
        say(f"{line} are not in the image; zeros in the copy")
    for path, name in result.renamed:
        say(f"{path} is called {name} in the copy")
    for path in result.left_out:
        say(f"{path} is left out; name it to copy it")
    if result.deleted:
        counts = (f"{result.deleted[state]} {state}" for state in RecoveryState if result.deleted[state])
        say(f"of the deleted files: {', '.join(counts)}")
    if result.failures:
        raise typer.Exit(ExitCode.INPUT_OUTPUT)
