"""``imagefs mount``: show an image or a folder of sets as a read-only file system."""

import gc
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from imagefs.cli.common import (
    PASSWORD_VARIABLE,
    PasswordFile,
    SourceArgument,
    given_password,
    opened,
    output,
)
from imagefs.cli.volumes import Deleted, RawEfs, VolumeKeys, volume_options
from imagefs.filesystems import VolumeOptions
from mounters.controller import MECHANISMS, MountOptions, report_ready, serve, start_in_background

# The pipe to report through, when this is the serving process that another imagefs waits for.
starter: int | None = None


def mount(
    source: SourceArgument,
    mountpoint: Annotated[Path, typer.Argument(readable=False, help="An empty directory.")],
    volume: Annotated[
        str, typer.Option("--volume", metavar="DISK/PARTITION", help="Show one volume alone: disk4/p1.")
    ] = "",
    mechanism: Annotated[
        str, typer.Option("--mechanism", help=f"auto, or one of: {', '.join(MECHANISMS)}.")
    ] = "auto",
    allow_other: Annotated[bool, typer.Option("--allow-other", help="Let other users in too.")] = False,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay until it is unmounted.")] = False,
    deleted: Deleted = False,
    raw_efs: RawEfs = False,
    volume_keys: VolumeKeys = None,
    password_file: PasswordFile = None,
) -> None:
    """Mount an image or a folder of sets, read-only, and return once the mount answers.

    Example: imagefs mount 2394E9AA621DDC3A-00-00.mrimgx /mnt/backup

    Exit codes: 0 · 2 · 3 · 4 · 5 · 6 the directory can't be mounted on · 7 FUSE is missing or failed.
    """
    options = MountOptions(mechanism=mechanism, allow_other=allow_other, source=f"imagefs:{source.name}")
    volumes = volume_options(deleted=deleted, raw_efs=raw_efs, keys=volume_keys)
    if foreground:
        _serve(source, mountpoint, volume, volumes, options, password_file)
        return
    arguments = [sys.executable, "-m", "imagefs", "mount", "--foreground", "--mechanism", mechanism]
    arguments += ["--allow-other"] if allow_other else []
    arguments += ["--volume", volume] if volume else []
    arguments += ["--deleted"] if deleted else []
    arguments += ["--raw-efs"] if raw_efs else []
    for path in volume_keys or ():
        arguments += ["--volume-key", str(path)]
    password = _password(source, password_file)
    arguments += ["--password-file", "-"] if password is not None else []
    # The password goes through a pipe: an environment can be read while the process lives.
    environment = {key: value for key, value in os.environ.items() if key != PASSWORD_VARIABLE}
    start_in_background(
        [*arguments, "--", str(source), str(mountpoint)],
        stdin=(password or "").encode(),
        environment=environment,
    )
    _tell(source, mountpoint)


def _serve(
    source: Path,
    mountpoint: Path,
    volume: str,
    volumes: VolumeOptions,
    options: MountOptions,
    password_file: Path | None,
) -> None:
    """Mount in this process, and stay until the mount ends."""
    with opened(source, password_file) as opened_source:
        tree = opened_source.tree(volume, volumes)

        def ready(_where: str) -> None:
            global starter  # noqa: PLW0603  (said once for the process)
            if starter is not None:
                report_ready(starter)
                starter = None
            else:
                _tell(source, mountpoint)

        gc.freeze()  # what is loaded stays: no need to look through it again and again while names are listed
        serve(tree, mountpoint, options, ready=ready)


def _password(source: Path, password_file: Path | None) -> str | None:
    """Return the password for the serving process, which can't ask."""
    password = given_password(password_file)
    if password is None and sys.stdin.isatty():
        with opened(source, ask=False) as opened_source:
            if opened_source.is_encrypted:
                password = typer.prompt(f"Password for {source}", hide_input=True, err=True)
    return password


def _tell(source: Path, mountpoint: Path) -> None:
    output.print(
        f"{source} is mounted at {mountpoint}; unmount it with: imagefs umount {mountpoint}", markup=False
    )
