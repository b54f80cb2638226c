"""What the commands share: arguments, passwords, output, exit codes."""

import codecs
import errno
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

import imagefs
from formats.errors import FormatError, PasswordError, ReadError
from imagefs.cli.console import is_console
from imagefs.errors import ImagingError
from imagefs.source import Source
from mounters.controller import MountError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
PASSWORD_VARIABLE = "IMAGEFS_PASSWORD"  # noqa: S105  (a name, not a password)


class OutputClosedError(Exception):
    """Whoever read our output has enough: no error, but the end; typer and rich would exit with 1."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        drop_output()
        raise OutputClosedError


# Nothing is wrapped or cut to the terminal's width, and ":bomb:" in a name stays what it is.
output = _Console(highlight=False, emoji=False, soft_wrap=True)
errors = _Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


class ExitCode(IntEnum):
    """What a command's exit status says."""

    DONE = 0
    DIFFERENT = 1  # verification failed, or differences found
    USAGE = 2
    NOT_AN_IMAGE = 3  # or unsupported, or damaged
    INCOMPLETE = 4
    PASSWORD = 5
    REFUSED = 6
    INPUT_OUTPUT = 7
    INTERRUPTED = 130


# readable=False leaves the finding out to us: what can't be read is an input/output error, no wrong usage.
ImageArgument = Annotated[
    Path,
    typer.Argument(metavar="IMAGE", readable=False, help="An image file; an incremental opens that point."),
]
SourceArgument = Annotated[
    Path,
    typer.Argument(metavar="IMAGE|FOLDER", readable=False, help="An image file, or a folder of backup sets."),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        readable=False,
        help="Take the password from the first line of this file; - is standard input."
        f" Else it is taken from {PASSWORD_VARIABLE}, else asked for on a terminal.",
    ),
]
# What Notepad and the ">" of PowerShell begin with.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
}

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def print_json(document: Any) -> None:
    """Print a document; bytes of names that are no Unicode survive as surrogate escapes in ASCII."""
    write_output(json.dumps(document, indent=2, ensure_ascii=True).encode() + b"\n")


def write_output(data: bytes) -> None:
    """Write to standard output; an OSError names it, and what could not be written is dropped.

    A pipe that nobody reads any more is OutputClosedError.
    """
    with _named_output():
        sys.stdout.buffer.write(data)


def write_errors(text: str) -> None:
    """Write to standard error as it is; whoever closed it wants to know nothing."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def flush_output() -> None:
    """Write what is kept for standard output; errors as in ``write_output``."""
    with _named_output():
        sys.stdout.flush()


@contextmanager
def _named_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        drop_output()
        raise OutputClosedError from None
    except OSError as error:
        drop_output()
        raise OSError(error.errno, error.strerror, "standard output") from error


def drop_output() -> None:
    """Give up what is still to be written, which the interpreter would try at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def given_password(password_file: Path | None) -> str | None:
    """Return the password from the file or the environment, None when there is none.

    The file is UTF-8, or what its byte order mark says.
    """
    if password_file is None:
        return os.environ.get(PASSWORD_VARIABLE)
    try:
        data = sys.stdin.buffer.read() if str(password_file) == "-" else password_file.read_bytes()
    except OSError as error:
        raise ReadError(error.strerror or str(error), path=password_file) from error
    mark = next((mark for mark in _BYTE_ORDER_MARKS if data.startswith(mark)), b"")
    try:
        text = data.removeprefix(mark).decode(_BYTE_ORDER_MARKS.get(mark, "utf-8"))
        return text.split("\n", 1)[0].removesuffix("\r")
    except UnicodeDecodeError as error:
        raise PasswordError("the password is not UTF-8", path=password_file) from error


def can_ask() -> bool:
    """Tell whether somebody sits at standard input."""
    return is_console(sys.stdin)


def tree_path(path: str) -> str:
    r"""Return a path in the tree as the tree has it: on Windows people may write it with "\"."""
    return path.replace("\\", "/") if sys.platform == "win32" else path


@contextmanager
def opened(path: Path, password_file: Path | None = None, *, ask: bool = True) -> Iterator[Source]:
    """Open an image or folder and unlock it, with a password asked for on a terminal if need be.

    With ``ask`` False, a source that is locked stays so.
    """
    if not path.exists():
        raise typer.BadParameter(f"{path}: no such file or folder")
    with imagefs.open(path) as source:
        if source.is_encrypted:
            password = given_password(password_file)
            if password is None and ask and can_ask():
                password = typer.prompt(f"Password for {path}", hide_input=True, err=True)
            if password is not None:
                source.unlock(password)
        yield source


def tell_left_out(source: Source) -> None:
    """Say on standard error that a folder's tree lacks points that can't be read now."""
    count = len(source.left_out) + len(source.unreadable)
    if source.is_folder and count:
        what = "point or file is" if count == 1 else "points or files are"
        say(f"{count} {what} not shown, imagefs points {source.path} tells why")


@contextmanager
def progress_bar(what: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Show a bar of bytes on a terminal; nothing in a pipe."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=quiet or not errors.is_terminal) as bar:
        bar.add_task(what, total=None)
        yield bar


@contextmanager
def about(path: str) -> Iterator[None]:
    """Have the message of a FormatError start with the path in the tree that it is about."""
    try:
        yield
    except FormatError as error:
        error.add_note(path)
        raise


def message_of(error: BaseException) -> str:
    """Return one line that says what went wrong."""
    if isinstance(error, OSError) and error.filename:
        text = f"{os.fsdecode(error.filename)}: {error.strerror or error}"
    elif isinstance(error, OSError):
        text = error.strerror or str(error)
    elif isinstance(error, (FormatError, ImagingError, MountError)):
        text = ": ".join([*getattr(error, "__notes__", ()), str(error)])
    else:
        text = f"{type(error).__name__}: {error} (a fault of imagefs; --debug shows where)"
    return name_text(text)


def say(message: str) -> None:
    """Print one line on standard error."""
    errors.print(f"imagefs: {escape(name_text(message))}")


def exit_code_of(error: BaseException) -> int:
    """Return the exit code that an error stands for."""
    if isinstance(error, (FormatError, ImagingError, MountError)):
        return error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return ExitCode.USAGE
    return ExitCode.INPUT_OUTPUT


def size_of(text: str) -> int:
    """Return the bytes that a text like 4G or 650M means."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size; 650M, 4G or a number of bytes are")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def size_text(count: int) -> str:
    """Return a number of bytes for people."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> Iterator[str]:
    """Yield lines of aligned columns, in markup; those named by ``right`` are aligned to the right.

    Never wrapped and never cut: what comes last may be as long as it is.
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = []
        for number, (text, width) in enumerate(zip(row, widths, strict=True)):
            blank = " " * (width - cell_len(text))
            last = number == len(row) - 1  # whose own spaces at the end count, and need no more
            cells.append(blank + escape(text) if number in right else escape(text) + blank * (not last))
        yield "  ".join(cells)


def natural(name: str) -> tuple[tuple[tuple[int, int | str], ...], str]:
    """Return what names are sorted by: numbers in them by value, capitals beside small letters."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part), name


def name_text(name: str) -> str:
    """Return a name that a terminal can show: control characters and undecodable bytes escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in name
    )
