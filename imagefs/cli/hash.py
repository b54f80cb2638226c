"""``imagefs hash``: hashes of files, as other tools check them."""

import json as json_module
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer

from imagefs.cli.common import (
    ExitCode,
    Json,
    PasswordFile,
    SourceArgument,
    message_of,
    opened,
    progress_bar,
    say,
    size_text,
    tree_path,
    write_output,
)
from imagefs.cli.volumes import Deleted, RawEfs, VolumeKeys, volume_options
from imagefs.hashing import Hashed, coreutils_line, hash_files, hashdeep_head, hashdeep_line


class Algorithm(StrEnum):
    """What is computed."""

    MD5 = "md5"
    SHA1 = "sha1"
    SHA256 = "sha256"


class Form(StrEnum):
    """How hashes are written."""

    COREUTILS = "coreutils"
    HASHDEEP = "hashdeep"


def hash(
    source: SourceArgument,
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH …]", help="Paths in the tree, such as disk4/p1; else all files of it."),
    ] = None,
    algorithms: Annotated[
        list[Algorithm] | None,
        typer.Option(
            "--algorithm", help="May be given several times. If not: sha256; for hashdeep md5 and sha256."
        ),
    ] = None,
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="coreutils: as sha256sum -c checks it, one algorithm. hashdeep: as hashdeep -a -k does.",
        ),
    ] = Form.COREUTILS,
    streams: Annotated[bool, typer.Option("--streams", help="Hash named streams as well.")] = False,
    deleted: Deleted = False,
    raw_efs: RawEfs = False,
    volume_keys: VolumeKeys = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Print hashes of the files at and below paths, in the tree's order, on all cores.

    Names are those that imagefs cp gives the files in a folder. Links are not followed. Disks and partitions
    as bytes (disk4.raw), shadow copies and deleted files are hashed where a path names them. A file whose
    contents the image leaves out, such as pagefile.sys, is told: its hash is one of zeros.

    Example: imagefs hash 2394E9AA621DDC3A-00-00.mrimgx disk4/p1 > sums; sha256sum -c sums

    Exit codes: 0 · 2 when there is no such path · 3 · 4 · 5 · 7 when anything could not be read.
    """
    default = [Algorithm.MD5, Algorithm.SHA256] if form is Form.HASHDEEP else [Algorithm.SHA256]
    chosen = [str(name) for name in Algorithm if name in (algorithms or default)]
    if form is Form.COREUTILS and len(chosen) > 1 and not json:
        raise typer.BadParameter("several algorithms need --format hashdeep or --json")
    options = volume_options(deleted=deleted, raw_efs=raw_efs, keys=volume_keys)
    failures = 0

    def failed(where: str, error: Exception) -> None:
        nonlocal failures
        failures += 1
        say(f"{where}: {message_of(error)}")

    with opened(source, password_file) as opened_source, progress_bar("hashing") as bar:
        found = _tell_left_out(
            hash_files(
                opened_source.tree(options=options),
                [tree_path(path) for path in paths or [""]],
                chosen,
                failed,
                streams=streams,
                left_out=opened_source.paths_left_out(),
                passed_over=lambda path: say(f"{path} is left out; name it to hash it"),
                progress=lambda count: bar.advance(bar.task_ids[0], count),
            )
        )
        if json:
            _write_json(found)
        elif form is Form.HASHDEEP:
            write_output(hashdeep_head(chosen))
            for hashed in found:
                write_output(hashdeep_line(hashed))
        else:
            for hashed in found:
                write_output(coreutils_line(hashed, chosen[0]))
    if failures:
        raise typer.Exit(ExitCode.INPUT_OUTPUT)


def _tell_left_out(found: Iterator[Hashed]) -> Iterator[Hashed]:
    for hashed in found:
        if hashed.left_out:
            say(
                f"{hashed.path}: {size_text(hashed.left_out)} of its {size_text(hashed.size)} are not in the"
                " image; hashed as zeros"
            )
        yield hashed


def _write_json(found: Iterator[Hashed]) -> None:
    """Print one document, a file a line, as they come."""
    write_output(b'{"files": [')
    for number, hashed in enumerate(found):
        document: dict[str, Any] = {"path": hashed.path, "size": hashed.size, **hashed.digests}
        document["left_out_bytes"] = hashed.left_out
        write_output((",\n" if number else "\n").encode() + json_module.dumps(document).encode())
    write_output(b"\n]}\n")
