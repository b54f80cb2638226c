"""The command line: one file per command, each a thin layer over one library call."""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from types import FrameType
from typing import Annotated

import typer
from typer.exceptions import TyperException

from imagefs.cli import mount
from imagefs.cli.common import (
    ExitCode,
    OutputClosedError,
    exit_code_of,
    flush_output,
    message_of,
    output,
    say,
)
from imagefs.cli.console import heed_console, set_encodings, swallowed_argument
from mounters.controller import ready_fd, report_failure
from mounters.winfsp_binding import NOTICE

app = typer.Typer(
    name="imagefs",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make disk-image backups, and look into them: disks, partitions, files at every point in time.\n\n"
    "Exit codes: 0 done · 1 verification failed · 2 usage · 3 not an image, unsupported or damaged ·"
    " 4 set incomplete · 5 password missing or wrong · 6 target refused · 7 input/output error ·"
    " 130 interrupted.",
)
COMMANDS = (
    "info",
    "points",
    "ls",
    "timeline",
    "hash",
    "cat",
    "cp",
    "mount",
    "umount",
    "verify",
    "disks",
    "backup",
    "restore",
    "clone",
    "serve",
    "convert",
    "boot",
    "shell-register",
)


def _add_commands(arguments: Sequence[str]) -> None:
    """Add the command that is asked for, or all where none is: loading what no one asks for takes time."""
    asked = next((argument for argument in arguments if not argument.startswith("-")), "")
    for name in (asked,) if asked in COMMANDS else COMMANDS:
        module = name.replace("-", "_")
        about = f"Mounts through {NOTICE}" if name == "mount" and mount.ON_WINDOWS else None
        app.command(name, epilog=about)(getattr(import_module(f"imagefs.cli.{module}"), module))


def _tell_version(asked: bool) -> None:
    if asked:
        output.print(f"imagefs {version('imagefs')}")
        if mount.ON_WINDOWS:
            output.print(f"Mounts through {NOTICE}", markup=False)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with an error, and what is going on.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options that go before a command."""
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="imagefs: %(levelname)s: %(message)s"
    )


def _open_standard_streams() -> None:
    """Let closed standard streams lead nowhere, lest a file opened later be taken for one of them."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _heed_signals() -> None:
    """Let SIGTERM, and a terminal that is closed, interrupt as Ctrl-C does: nothing is left behind."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # else nohup started us
            signal.signal(number, _interrupt)


def main() -> None:
    """Run the command line and exit with its code; errors become one line on standard error."""
    _open_standard_streams()
    set_encodings()
    _heed_signals()
    ended = threading.Event()
    heed_console(ended)
    try:
        sys.exit(_run(sys.argv[1:]))
    finally:
        ended.set()


def _run(arguments: list[str]) -> int:
    """Run a command; return the exit code."""
    _add_commands(arguments)
    fd = ready_fd()  # where this is the serving process of a mount, its starter waits for a word
    mount.starter = fd
    try:
        if mount.ON_WINDOWS and (swallowed := swallowed_argument(arguments)):
            raise typer.BadParameter(
                f"{swallowed} has a quote in it: before the closing quote write no backslash, or two"
            )
        # Given, so that the arguments stay what they are: typer would look for files with the names of
        # patterns on Windows, and take $Shadow for a variable.
        code = app(arguments, standalone_mode=False)
        flush_output()
        if code == ExitCode.INTERRUPTED:
            say("interrupted")
    except TyperException as error:
        if error.format_message():  # else the help was asked for, by no arguments
            say(f"{' '.join(error.format_message().split())} (imagefs COMMAND --help tells more)")
        code = ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        code = ExitCode.INTERRUPTED
    except OutputClosedError:
        code = ExitCode.DONE
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        code = exit_code_of(error)
        if mount.starter is not None and fd is not None:
            report_failure(fd, code, message_of(error))
        else:
            say(message_of(error))
    return code if isinstance(code, int) else ExitCode.DONE
