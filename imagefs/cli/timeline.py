"""``imagefs timeline``: all times that a volume's records keep."""

from enum import StrEnum
from typing import Annotated

import typer

from imagefs.cli.common import (
    ExitCode,
    Json,
    PasswordFile,
    SourceArgument,
    message_of,
    opened,
    say,
    tree_path,
    write_output,
)
from imagefs.cli.volumes import Deleted, VolumeKeys, volume_options
from imagefs.timeline import timeline as times_below
from imagefs.timeline import write_body_file, write_csv, write_json


class Form(StrEnum):
    """How a timeline is written."""

    BODYFILE = "bodyfile"
    CSV = "csv"


def timeline(
    source: SourceArgument,
    path: Annotated[str, typer.Argument(help="A path in the tree, such as disk4/p1; else all of it.")] = "",
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="bodyfile: version 3, as mactime reads it; whole seconds, in the tree's order."
            " csv: an event a row, sorted by time, with all digits.",
        ),
    ] = Form.BODYFILE,
    deleted: Deleted = False,
    volume_keys: VolumeKeys = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Print when files and directories were made, modified, read and changed, as their volume records it.

    Of NTFS these are the times of $STANDARD_INFORMATION and of each $FILE_NAME, for named streams as well.
    What can't be read is told on standard error, and the rest goes on.

    Example: imagefs timeline 2394E9AA621DDC3A-00-00.mrimgx disk4/p1 > body; mactime -b body -d -y

    Exit codes: 0 · 2 when there is no such path · 3 · 4 · 5 · 7 when anything could not be read.
    """
    options = volume_options(deleted=deleted, keys=volume_keys)
    failures = 0

    def failed(where: str, error: Exception) -> None:
        nonlocal failures
        failures += 1
        say(f"{where}: {message_of(error)}")

    def passed_over(where: str) -> None:
        say(f"{where} is left out; name it to see its times")

    write = write_json if json else write_csv if form is Form.CSV else write_body_file
    with opened(source, password_file) as opened_source:
        tree = opened_source.tree(options=options)
        write(times_below(tree, tree_path(path), failed, passed_over), write_output)
    if failures:
        raise typer.Exit(ExitCode.INPUT_OUTPUT)
