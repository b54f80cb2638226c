"""``imagefs verify``: check every block against its hash."""

from collections.abc import Iterator

import typer
from rich.markup import escape

from formats.container import FileState
from imagefs import report
from imagefs.cli.common import (
    ExitCode,
    Json,
    PasswordFile,
    SourceArgument,
    name_text,
    opened,
    output,
    print_json,
    progress_bar,
    size_text,
)
from imagefs.verify import Verification
from imagefs.verify import verify as run_verification

_BLOCK = 65536  # bytes a block has as a rule; for the progress bar alone


def verify(source: SourceArgument, password_file: PasswordFile = None, json: Json = False) -> None:
    """Check every metadata block and every data block of a point, or of all points of a folder.

    Of encrypted sets, it is told which files are authenticated: written by someone with the password, and
    unchanged. A forged file is bad.

    Of a folder, sets that are locked or incomplete are told and the others are checked.

    Example: imagefs verify /backups

    Exit codes: 0 all good · 1 something is damaged · 2 · 3 · 4 files are missing · 5 · 7.
    """
    with opened(source, password_file) as opened_source, progress_bar("verifying") as bar:
        result = run_verification(
            opened_source,
            lambda done, total: bar.update(bar.task_ids[0], completed=done * _BLOCK, total=total * _BLOCK),
        )
    if json:
        print_json(
            {
                "ok": result.ok,
                "blocks_checked": result.blocks_checked,
                "bytes_checked": result.bytes_checked,
                "bad": [report.bad_document(bad) for bad in result.bad],
                "incomplete": [str(problem) for problem in result.incomplete],
                "unreadable": [report.unreadable_document(entry, file) for file, entry in result.unreadable],
                "authentication": [report.authentication_document(entry) for entry in result.authentication],
            }
        )
    else:
        for bad in result.bad:
            where = "" if bad.block is None else f" block {bad.block}"
            place = f" {bad.partition}{where}:" if bad.partition else ""
            output.print(f"[red]bad[/red] {escape(name_text(f'{bad.file}:{place} {bad.reason}'))}")
        for problem in result.incomplete:
            output.print(f"[red]not checked[/red] {escape(name_text(str(problem)))}")
        for file, entry in result.unreadable:
            told = report.unreadable_text(report.unreadable_document(entry))
            output.print(f"[yellow]incomplete source[/yellow] {escape(name_text(f'{file}: {told}'))}")
        for line in _authentication_lines(result):
            output.print(line)
        state = "[green]all good[/green]" if result.ok else f"[red]{len(result.bad)} bad[/red]"
        checked = f"{result.blocks_checked} blocks, {size_text(result.bytes_checked)}"
        output.print(f"{checked} checked: {state}")
    if result.bad:
        raise typer.Exit(ExitCode.DIFFERENT)
    if result.incomplete:
        raise typer.Exit(max(problem.exit_code for problem in result.incomplete))


def _authentication_lines(result: Verification) -> Iterator[str]:
    """Yield a line for each state that files of encrypted sets are in."""
    for state in FileState:
        files = [entry.file for entry in result.authentication if entry.state is state]
        if files:
            color = {FileState.AUTHENTICATED: "green", FileState.FORGED: "red"}.get(state, "yellow")
            plural = "s" if len(files) > 1 else ""
            names = "" if state is FileState.AUTHENTICATED else ": " + ", ".join(file.name for file in files)
            told = escape(name_text(f"{len(files)} file{plural}{names}"))
            yield f"[{color}]{state}[/{color}]: {told}"
