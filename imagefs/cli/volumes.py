"""How volumes are read: the options that the commands which show files share."""

from pathlib import Path
from typing import Annotated

import typer

from imagefs.filesystems import VolumeKey, VolumeOptions

_KEY_LIMIT = 1 << 20  # bytes of a key file; a startup key has some hundred

Deleted = Annotated[
    bool, typer.Option("--deleted", help="Show what was deleted as well, in $Deleted of each volume.")
]
RawEfs = Annotated[
    bool,
    typer.Option("--raw-efs", help="Give the stored bytes of files that EFS encrypted."),
]
VolumeKeys = Annotated[
    list[Path] | None,
    typer.Option(
        "--volume-key",
        "--bitlocker-key",
        metavar="FILE",
        readable=False,
        help="A file with the recovery key or password of an encrypted volume, or its startup key (.bek);"
        " it is tried on each such volume. May be given several times.",
    ),
]


def volume_options(
    *, deleted: bool = False, raw_efs: bool = False, keys: list[Path] | None = None
) -> VolumeOptions:
    """Return what the options say; an OSError names a key file that can't be read."""
    return VolumeOptions(deleted=deleted, raw_efs=raw_efs, keys=tuple(_read_key(path) for path in keys or ()))


def _read_key(path: Path) -> VolumeKey:
    with path.open("rb") as file:
        value = file.read(_KEY_LIMIT + 1)
    if len(value) > _KEY_LIMIT:
        raise typer.BadParameter(f"{path}: too large for a key")
    return VolumeKey(value, str(path))
