"""``imagefs restore``: write a disk, or one partition, of an image to a device or a file."""

import sys
from contextlib import ExitStack
from typing import Annotated

import typer

from formats.errors import PasswordError
from imagefs.cli.common import ImageArgument, Json, PasswordFile, given_password, size_of
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
    place_of,
)
from imagefs.errors import UsageError
from imagefs.restore.job import plan_restore
from imagefs.restore.options import RestoreOptions


def restore(
    image: ImageArgument,
    target: TargetArgument,
    partition: Annotated[
        str, typer.Option("--partition", "-p", help="Write this partition alone: disk4/p1.")
    ] = "",
    to_partition: Annotated[
        int | None,
        typer.Option("--to-partition", help="The number of TARGET's partition to write; else all of TARGET."),
    ] = None,
    disk: DiskOption = "",
    delta: Delta = False,
    fit: Fit = False,
    keep_id: Annotated[
        bool, typer.Option("--keep-id/--new-id", help="Keep the disk's ids, or make new ones.")
    ] = True,
    keep_holes: KeepHoles = False,
    verify: Verify = False,
    size: Size = "0",
    scratch: Scratch = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Write a disk of an image to a block device or a disk file; what is there is shown, and asked about.

    Partition tables are made for the target. A mounted target, the disk the system runs from, and one that
    holds the image are refused. What an interruption leaves has no partition table; --delta finishes it.

    Example: imagefs restore /backups/2394E9AA621DDC3A-02-02.mrimgx /dev/sdb --verify

    Exit codes: 0 · 1 reading back found differences · 2 · 3 · 4 · 5 · 6 target refused · 7 · 130.
    """
    wanted, number = place_of(partition)
    wanted = wanted if wanted is not None else disk_number(disk)
    options = RestoreOptions(
        disk=wanted,
        partition=number,
        to_partition=to_partition,
        delta=delta,
        fit=fit,
        new_ids=not keep_id,
        keep_holes=keep_holes,
        verify=verify,
        size=size_of(size),
        scratch=scratch,
    )
    if not image.exists():
        raise UsageError("no such file", path=image)
    password = given_password(password_file)
    with ExitStack() as owned:
        try:
            job = plan_restore(image.absolute(), target, options, password=password)
        except PasswordError:
            if password is not None or not sys.stdin.isatty():
                raise
            password = typer.prompt(f"Password for {image}", hide_input=True, err=True)
            job = plan_restore(image.absolute(), target, options, password=password)
        owned.enter_context(job)
        if job.original.source.kind in ("disk", "partition"):
            raise UsageError("is no image", path=image, hint="imagefs clone copies a disk")
        finish(job, yes=yes, dry_run=dry_run, json=json)
