"""``imagefs mount``: show an image or a folder of sets as a read-only file system."""

import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from imagefs.cli.common import (
    PASSWORD_VARIABLE,
    PasswordFile,
    SourceArgument,
    can_ask,
    given_password,
    opened,
    output,
    say,
    tree_path,
)
from imagefs.cli.volumes import Deleted, RawEfs, VolumeKeys, volume_options
from imagefs.drive_identity import drive_identity
from imagefs.filesystems import VolumeOptions
from imagefs.source import Source
from mounters.controller import MECHANISMS, MountOptions, report_ready, serve, start_in_background
from mounters.windows_mounts import is_hidden
from mounters.winfsp_binding import NOTICE

ON_WINDOWS = sys.platform == "win32"

# The pipe to report through, when this is the serving process that another imagefs waits for.
starter: int | None = None

_REQUIRED: Any = "" if ON_WINDOWS else ...


def mount(
    source: SourceArgument,
    mountpoint: Annotated[
        str,
        typer.Argument(
            help="A drive letter, or a directory that does not exist; else the next free letter."
            if ON_WINDOWS
            else "An empty directory."
        ),
    ] = _REQUIRED,
    volume: Annotated[
        str, typer.Option("--volume", metavar="DISK/PARTITION", help="Show one volume alone: disk4/p1.")
    ] = "",
    mechanism: Annotated[
        str, typer.Option("--mechanism", help=f"auto, or one of: {', '.join(MECHANISMS)}.")
    ] = "auto",
    allow_other: Annotated[bool, typer.Option("--allow-other", help="Let other users in too.")] = False,
    letter: Annotated[str, typer.Option("--letter", metavar="X:", help="Windows: the drive letter.")] = "",
    network: Annotated[
        str,
        typer.Option("--network", metavar=r"\\SERVER\SHARE", help="Windows: a network drive of that name."),
    ] = "",
    original_security: Annotated[
        bool, typer.Option("--original-security", help="Windows: NTFS's own permissions, not the user's.")
    ] = False,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay until it is unmounted.")] = False,
    deleted: Deleted = False,
    raw_efs: RawEfs = False,
    volume_keys: VolumeKeys = None,
    password_file: PasswordFile = None,
) -> None:
    """Mount an image or a folder of sets, read-only, and return once the mount answers.

    Example: imagefs mount 2394E9AA621DDC3A-00-00.mrimgx /mnt/backup

    Exit codes: 0 · 2 · 3 · 4 · 5 · 6 can't be mounted there · 7 FUSE or WinFsp is missing or failed.
    """
    place = _place(mountpoint, letter)
    if not ON_WINDOWS and (network or original_security):
        raise typer.BadParameter("--network and --original-security are for Windows")
    options = MountOptions(
        mechanism=mechanism,
        allow_other=allow_other,
        source=f"imagefs:{source.name}",
        network=network.replace("/", "\\"),
        original_security=original_security,
    )
    volume = tree_path(volume)
    volumes = volume_options(deleted=deleted, raw_efs=raw_efs, keys=volume_keys)
    if foreground:
        _serve(source, place, volume, volumes, options, password_file)
        return
    password = _password(source, password_file)
    flags = {"--allow-other": allow_other, "--deleted": deleted, "--raw-efs": raw_efs}
    flags |= {"--original-security": original_security}
    texts = [("--mechanism", mechanism), ("--volume", volume), ("--network", options.network)]
    texts += [("--volume-key", str(path)) for path in volume_keys or ()]
    texts += [("--password-file", "-")] if password is not None else []
    # The password goes through a pipe: an environment can be read while the process lives.
    environment = {key: value for key, value in os.environ.items() if key != PASSWORD_VARIABLE}
    started = start_in_background(
        serving_command(
            str(source), place, flags=[flag for flag, given in flags.items() if given], texts=texts
        ),
        stdin=(password or "").encode(),
        environment=environment,
    )
    _tell(source, started.mountpoint if ON_WINDOWS else place)


def serving_command(
    source: str, mountpoint: str, *, flags: Sequence[str], texts: Sequence[tuple[str, str]]
) -> list[str]:
    """Return the command line of the process that serves the mount."""
    options = [word for option, text in texts if text for word in (option, text)]
    return [
        # -P: of the folder that it is started in nothing is loaded.
        *(sys.executable, "-P", "-m", "imagefs", "mount", "--foreground"),
        *flags,
        *options,
        *("--", source),
        *([mountpoint] if mountpoint else []),
    ]


def _place(mountpoint: str, letter: str) -> str:
    """Return where to mount; "" for the next free letter of Windows."""
    if letter and not ON_WINDOWS:
        raise typer.BadParameter("--letter is for Windows; give a directory")
    if letter and mountpoint:
        raise typer.BadParameter("give a mount point or --letter, not both")
    if letter:
        if not (letter[0].isascii() and letter[0].isalpha() and letter[1:] in ("", ":", ":\\", ":/")):
            raise typer.BadParameter(f"{letter} is no drive letter; X: is one")
        return f"{letter[0].upper()}:"
    return mountpoint if ON_WINDOWS else str(Path(mountpoint))


def _serve(
    source: Path,
    mountpoint: str,
    volume: str,
    volumes: VolumeOptions,
    options: MountOptions,
    password_file: Path | None,
) -> None:
    """Mount in this process, and stay until the mount ends."""
    with opened(source, password_file) as opened_source:
        tree = opened_source.tree(volume, volumes)
        if ON_WINDOWS:
            options = identified(options, opened_source, volume)

        def ready(where: str) -> None:
            global starter  # noqa: PLW0603  (said once for the process)
            if starter is not None:
                report_ready(starter, where)
                starter = None
            else:
                _tell(source, where if ON_WINDOWS else mountpoint)

        gc.freeze()  # what is loaded stays: no need to look through it again and again while names are listed
        serve(tree, mountpoint, options, ready=ready)


def identified(options: MountOptions, source: Source, volume: str) -> MountOptions:
    """Return options with what Windows shows of a volume, as the image has it."""
    identity = drive_identity(source, volume)
    return replace(options, label=identity.label, serial=identity.serial, created=identity.created)


def _password(source: Path, password_file: Path | None) -> str | None:
    """Return the password for the serving process, which can't ask."""
    password = given_password(password_file)
    if password is None and can_ask():
        with opened(source, ask=False) as opened_source:
            if opened_source.is_encrypted:
                password = typer.prompt(f"Password for {source}", hide_input=True, err=True)
    return password


def _tell(source: Path, mountpoint: str) -> None:
    output.print(
        f"{source} is mounted at {mountpoint}; unmount it with: imagefs umount {mountpoint}", markup=False
    )
    if ON_WINDOWS:
        output.print(NOTICE, markup=False)
        if is_hidden(mountpoint):
            say(
                f"{mountpoint} is seen by programs that run as administrator alone; "
                rf"mount at \\.\{mountpoint} to have all see it"
            )
