"""``imagefs backup``: make an image of a disk."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from formats.errors import PasswordError
from imagefs.cli.common import (
    Json,
    PasswordFile,
    errors,
    given_password,
    name_text,
    output,
    print_json,
    say,
    size_of,
    size_text,
)
from imagefs.cli.listening import listening
from imagefs.errors import UsageError
from imagefs.imaging import backup as run_backup
from imagefs.imaging import discard as run_discard
from imagefs.imaging import resume as run_resume
from imagefs.imaging.options import BackupOptions, BackupReport

Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE FOLDER",
        help="What to image (disk0, disk0/p2, C:, a device, a disk file, another image), and the folder for"
        " the set; imagefs disks lists the disks."
        " With --resume or --discard the folder alone.",
    ),
]
Type = Annotated[
    str,
    typer.Option(
        "--type",
        "-t",
        help="full; inc (against the newest point); diff (against the set's full); auto: inc where a set of"
        " this disk is in the folder, else full.",
    ),
]
Compression = Annotated[
    str | None,
    typer.Option(help="none, medium (zstd 1, as Reflect) or high; else as the set has it, or medium."),
]
Encrypt = Annotated[
    bool, typer.Option("--encrypt", help="Encrypt a new set; asks for the password where none is given.")
]
Cipher = Annotated[str | None, typer.Option("--cipher", help="aes-128, aes-192 or aes-256 (the default).")]
Split = Annotated[
    str, typer.Option(help="Largest size of a file, as 4G; FAT32 targets are split by themselves.")
]
Exact = Annotated[bool, typer.Option("--exact", help="Every byte, also what is free (forensic copy).")]
PartitionNumbers = Annotated[
    list[int] | None, typer.Option("--partition", "-p", help="Image only this partition; can be repeated.")
]
Name = Annotated[str, typer.Option(help="A name for the set, in its file names.")]
Comment = Annotated[str, typer.Option(help="Kept in the image.")]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        "-x",
        help="Leave out the contents of files of this pattern (NTFS, FAT, exFAT), as '*.iso' or"
        " '/Users/*/Downloads/**'; their names stay. Can be repeated.",
    ),
]
Live = Annotated[
    bool, typer.Option("--live", help="Image a source that is mounted read-write all the same: at your risk.")
]
NoSnapshot = Annotated[
    bool, typer.Option("--no-snapshot", help="Read no snapshot of what is mounted (LVM; Windows: VSS).")
]
Direct = Annotated[bool, typer.Option("--direct", help="Read past the system's cache.")]
SectorSize = Annotated[int | None, typer.Option(help="Of a disk file, in bytes; else found out.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Go on where the source can't be read, and record what is lost.")
]
Verify = Annotated[bool, typer.Option("--verify", help="Read the result back before it joins the set.")]
RateLimit = Annotated[str, typer.Option(help="Bytes of the source a second, as 50M.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished backup in the folder.")]
Discard = Annotated[bool, typer.Option("--discard", help="Drop the unfinished backup in the folder.")]
Checkpoint = Annotated[
    float, typer.Option(help="Seconds between flushes from which --resume can go on.", min=0.0)
]
Retries = Annotated[int, typer.Option(help="How often a failed write is tried again.", min=0)]
RetryWait = Annotated[float, typer.Option(help="Seconds before the first retry; doubles with each.", min=0.0)]
SourcePassword = Annotated[
    Path | None, typer.Option(help="The password file of a source that is an encrypted image itself.")
]


def backup(
    paths: Paths,
    type: Type = "auto",
    compression: Compression = None,
    encrypt: Encrypt = False,
    cipher: Cipher = None,
    password_file: PasswordFile = None,
    split: Split = "0",
    exact: Exact = False,
    partition: PartitionNumbers = None,
    name: Name = "",
    comment: Comment = "",
    exclude: Exclude = None,
    live: Live = False,
    no_snapshot: NoSnapshot = False,
    direct: Direct = False,
    sector_size: SectorSize = None,
    skip_bad: SkipBad = False,
    verify: Verify = False,
    rate_limit: RateLimit = "0",
    resume: Resume = False,
    discard: Discard = False,
    checkpoint: Checkpoint = 30.0,
    retries: Retries = 5,
    retry_wait: RetryWait = 1.0,
    source_password_file: SourcePassword = None,
    json: Json = False,
) -> None:
    """Image a disk into a backup set: used blocks only, compressed, encrypted where asked.

    Nothing in the folder changes before the image is complete. What an interruption left is gone on with by
    --resume. With a password, an encrypted set is continued or begun. With --json, one JSON document at the
    end, and events on standard error, one JSON object on each line.

    Example: imagefs backup /dev/sdb /backups --verify

    Exit codes: 0 · 2 · 3 · 4 the set lacks files · 5 · 6 source or set refused · 7 read or write error · 130.
    """
    if discard or resume:
        if len(paths) != 1 or (discard and resume):
            raise UsageError("--resume, or --discard, takes the folder alone")
        if discard:
            say(f"removed {run_discard(paths[0])}")
            return
    elif len(paths) != 2:
        raise UsageError("a source and a folder are needed")
    password = given_password(password_file)
    if password is None and encrypt:
        password = _new_password()
    source_password = given_password(source_password_file) if source_password_file else None
    options = None
    if not resume:
        options = BackupOptions(
            type=type,
            compression=compression,
            aes=cipher,
            split=size_of(split),
            exact=exact,
            partitions=tuple(partition or ()),
            name=name,
            comment=comment,
            exclude=tuple(exclude or ()),
            live=live,
            snapshot=not no_snapshot,
            direct=direct,
            sector_size=sector_size,
            skip_bad=skip_bad,
            verify=verify,
            rate_limit=size_of(rate_limit),
            checkpoint_seconds=checkpoint,
            retries=retries,
            retry_seconds=retry_wait,
        )

    def make(password: str | None) -> BackupReport:
        with listening("imaging", "stored", json=json) as listener:
            if options is None:
                return run_resume(
                    paths[0], password=password, source_password=source_password, listener=listener
                )
            return run_backup(
                paths[0],
                paths[1],
                options,
                password=password,
                source_password=source_password,
                listener=listener,
            )

    try:
        report = make(password)
    except PasswordError:
        if password is not None or not sys.stdin.isatty():
            raise
        report = make(typer.prompt("Password of the set", hide_input=True, err=True))
    if json:
        print_json(report.document())
    else:
        _print(report)


def _new_password() -> str:
    if not sys.stdin.isatty():
        raise UsageError("no password is given", hint="--password-file or IMAGEFS_PASSWORD")
    return str(typer.prompt("Password of the set", hide_input=True, confirmation_prompt=True, err=True))


def _print(report: BackupReport) -> None:
    for path in report.paths:
        output.print(escape(name_text(str(path))))
    rate = report.bytes_read / report.seconds if report.seconds else 0
    output.print(
        f"{report.role}, increment {report.increment}: {report.blocks_written} blocks written,"
        f" {report.blocks_unchanged} unchanged, {report.blocks_freed} freed;"
        f" {size_text(report.bytes_read)} read, {size_text(report.bytes_stored)} stored,"
        f" {report.seconds:.1f} s, {size_text(int(rate))}/s"
    )
    for lost in report.unreadable:
        errors.print(f"[red]lost[/red] partition {lost['partition']}: {lost['offset']}+{lost['length']}")
