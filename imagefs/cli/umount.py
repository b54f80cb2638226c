"""``imagefs umount``: take a mount away."""

import sys
from typing import Annotated

import typer

from mounters.controller import unmount


def umount(
    # No Path: typer would ask a mount whose process has gone, and refuse it.
    mountpoint: Annotated[str, typer.Argument(help="Where something is mounted.")],
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Also when its process does not end: end it. (Open files never keep a mount here.)"
            if sys.platform == "win32"
            else "Also when files are open there.",
        ),
    ] = False,
) -> None:
    """Unmount, and wait until the mount is gone; also one whose process was killed.

    Example: imagefs umount /mnt/backup

    Exit codes: 0 · 2 · 6 nothing is mounted there · 7 it is in use.
    """
    unmount(mountpoint, force=force)
