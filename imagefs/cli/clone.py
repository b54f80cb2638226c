"""``imagefs clone``: copy a disk to another one, without an image in between."""

from typing import Annotated

import typer

from imagefs.cli.common import Json, size_of
from imagefs.cli.writing import (
    Delta,
    DiskOption,
    DryRun,
    Fit,
    KeepHoles,
    Scratch,
    Size,
    TargetArgument,
    Verify,
    Yes,
    disk_number,
    finish,
)
from imagefs.restore.job import plan_restore
from imagefs.restore.options import RestoreOptions


def clone(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="disk0, a device, a volume (C:), a disk file, an image."),
    ],
    target: TargetArgument,
    disk: DiskOption = "",
    delta: Delta = False,
    fit: Fit = False,
    keep_id: Annotated[
        bool,
        typer.Option("--keep-id/--new-id", help="Keep the disk's ids, or make new ones (the default)."),
    ] = False,
    keep_holes: KeepHoles = False,
    verify: Verify = False,
    size: Size = "0",
    scratch: Scratch = None,
    live: Annotated[
        bool, typer.Option("--live", help="Clone a source that is mounted read-write all the same.")
    ] = False,
    no_snapshot: Annotated[
        bool, typer.Option("--no-snapshot", help="Read no snapshot of what is mounted (LVM; Windows: VSS).")
    ] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Copy the used blocks of a disk to another one; what is there is shown, and asked about.

    The copy gets new ids, so that both can be used in one machine; what refers to the old ones is told.
    Free space of the target is discarded (TRIM), or zeroed where that can't be done.

    Example: imagefs clone /dev/sda /dev/sdb --fit

    Exit codes: 0 · 1 reading back found differences · 2 · 3 · 6 source or target refused · 7 · 130.
    """
    options = RestoreOptions(
        disk=disk_number(disk),
        delta=delta,
        fit=fit,
        new_ids=not keep_id,
        keep_holes=keep_holes,
        verify=verify,
        size=size_of(size),
        scratch=scratch,
        live=live,
        snapshot=not no_snapshot,
    )
    with plan_restore(source, target, options) as job:
        finish(job, yes=yes, dry_run=dry_run, json=json)
