"""The command line: one file per command, each a thin layer over one library call."""

import logging
import os
import sys
import traceback
from typing import Annotated

import typer
from rich.markup import escape
from typer.exceptions import TyperException

from imagefs.cli import cat, cp, info, ls, mount, points, umount, verify
from imagefs.cli.common import ExitCode, errors, exit_code_of, message_of
from mounters.controller import ready_fd, report_failure

app = typer.Typer(
    name="imagefs",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Look into disk-image backups: disks, partitions and files at every point in time they hold.\n\n"
    "Exit codes: 0 done · 1 verification failed · 2 usage · 3 not an image, unsupported or damaged ·"
    " 4 set incomplete · 5 password missing or wrong · 6 target refused · 7 input/output error ·"
    " 130 interrupted.",
)
for module in (info, points, ls, cat, cp, mount, umount, verify):
    name = module.__name__.rpartition(".")[2]
    app.command(name)(getattr(module, name))


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with an error, and what is going on.")
    ] = False,
) -> None:
    """Take the options that go before a command."""
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="imagefs: %(levelname)s: %(message)s"
    )


def say(message: str) -> None:
    """Print one line on standard error."""
    errors.print(f"imagefs: {escape(message)}", soft_wrap=True)


def main() -> None:
    """Run the command line and exit with its code; errors become one line on standard error."""
    fd = ready_fd()  # where this is the serving process of a mount, its starter waits for a word
    mount.starter = fd
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except TyperException as error:
        say(f"{error.format_message()} (imagefs COMMAND --help tells more)")
        code = ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough. Nothing more can be written, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.DONE
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        code = exit_code_of(error)
        if mount.starter is not None and fd is not None:
            report_failure(fd, code, message_of(error))
        else:
            say(message_of(error))
    sys.exit(code if isinstance(code, int) else ExitCode.DONE)
