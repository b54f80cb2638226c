"""``imagefs convert``: a disk or partition as a file of another kind."""

from pathlib import Path
from typing import Annotated

import typer

from imagefs.cli.common import (
    Json,
    PasswordFile,
    given_password,
    output,
    print_json,
    progress_bar,
    say,
    size_text,
)
from imagefs.serving.convert import Converted, ConvertListener, ConvertOptions
from imagefs.serving.convert import convert as run_convert

Image = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGE",
        readable=False,
        help="An image (an incremental is that point), device or disk file.",
    ),
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The new file; its suffix says what it becomes.")]
Format = Annotated[
    str | None,
    typer.Option("--format", "-f", help="raw, qcow2, vhd, vhdx, vmdk, mrimgx; else by the suffix."),
]
Disk = Annotated[str, typer.Option("--disk", help="The disk, as disk4, where there are several.")]
Partition = Annotated[str, typer.Option("--partition", "-p", help="Only this partition, as disk4/p1.")]
Compress = Annotated[bool, typer.Option("--compress", "-c", help="Compress; qcow2 and vmdk can be.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Replace a file that is there.")]
Live = Annotated[
    bool, typer.Option("--live", help="Read a source that is mounted read-write all the same: at your risk.")
]


def convert(
    image: Image,
    out: Out,
    format: Format = None,
    disk: Disk = "",
    partition: Partition = "",
    compress: Compress = False,
    yes: Yes = False,
    live: Live = False,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Write a disk of an image as a raw, qcow2, vhd, vhdx or vmdk file; or a disk file as a new image.

    Holes stay holes, and every block is checked on its way. OUT is there when it is complete, or not at
    all. Of an image (mrimgx), OUT's folder is that of the set, and its name becomes part of the file's.

    Example: imagefs convert home-01-01.mrimgx home.qcow2

    Exit codes: 0 · 2 · 3 the image is damaged · 4 · 5 · 6 OUT is there · 7 read or write error · 130.
    """
    options = ConvertOptions(format, disk, partition, compress=compress, replace=yes, live=live)
    with progress_bar("converting", quiet=json) as bar:
        listener = ConvertListener(
            lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total), say
        )
        done = run_convert(image, out, options, password=given_password(password_file), listener=listener)
    _tell(done, json=json)


def _tell(done: Converted, *, json: bool) -> None:
    if json:
        print_json(
            {
                "path": str(done.path),
                "format": done.format,
                "size": done.size,
                "stored_bytes": done.stored_bytes,
            }
        )
    else:
        told = f"{done.format}, {size_text(done.size)}, {size_text(done.stored_bytes)} stored"
        output.print(f"{done.path}: {told}", markup=False)
