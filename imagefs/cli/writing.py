"""What restore and clone share: what will be overwritten is shown and asked, progress, the report."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from imagefs.cli.common import (
    ExitCode,
    errors,
    name_text,
    output,
    print_json,
    say,
    size_text,
)
from imagefs.cli.listening import listening
from imagefs.errors import RefusedError, UsageError
from imagefs.restore.bars import bars, layout_after, layout_before
from imagefs.restore.described import lines
from imagefs.restore.job import RestoreJob
from imagefs.restore.options import RestoreReport

TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A device (Windows: disk1, X:), or a disk file: one that is there counts as a disk of its size.",
    ),
]
DiskOption = Annotated[str, typer.Option("--disk", help="Which disk, as disk4, where there are several.")]
Delta = Annotated[
    bool,
    typer.Option("--delta", help="Write only what differs; this also finishes what was interrupted."),
]
Fit = Annotated[
    bool,
    typer.Option("--fit", help="Resize NTFS and ext2/3/4 partitions to the target; others keep their size."),
]
KeepHoles = Annotated[
    bool, typer.Option("--keep-holes", help="Leave what the target has where nothing is stored.")
]
Verify = Annotated[bool, typer.Option("--verify", help="Read everything back and compare.")]
Size = Annotated[str, typer.Option(help="Size of a disk file to make, as 64G; else the disk's.")]
Scratch = Annotated[
    Path | None,
    typer.Option(help="A folder with room for volumes that are resized before they are written."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Overwrite without asking.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]


def disk_number(text: str) -> int | None:
    """Return the number that "disk4" or "4" means; None for ""."""
    digits = text.removeprefix("disk")
    if text and not digits.isdecimal():
        raise UsageError(f"{text!r} names no disk", hint="as in imagefs info: disk4")
    return int(digits) if text else None


def place_of(text: str) -> tuple[int | None, int | None]:
    """Return the disk and the partition that "disk4/p1" or "p1" means; None for what it doesn't name."""
    disk, _, part = text.rpartition("/")
    digits = part.removeprefix("p")
    if text and not digits.isdecimal():
        raise UsageError(f"{text!r} names no partition", hint="as in imagefs info: disk4/p1")
    return disk_number(disk), int(digits) if text else None


def show_plan(job: RestoreJob) -> None:
    """Show on standard error what will be overwritten, and the layout where it changes."""
    for warning in job.warnings:
        say(warning)
    if job.before is not None and job.overwrites:
        for line in lines(job.before):
            errors.print(escape(name_text(line)))
    if job.options.fit:
        before = layout_before(job.placed, job.original.disk.size)
        for line in bars(before, layout_after(job.placed, job.size), min(errors.width, 100)):
            errors.print(line)


def confirm(job: RestoreJob, *, yes: bool) -> None:
    """Ask whether the target may be overwritten; raises RefusedError where nobody can answer."""
    if yes or not (job.overwrites or job.options.fit):
        return
    what = f"{job.target} will be overwritten" if job.overwrites else f"{job.target} will be made so"
    if not sys.stdin.isatty():
        raise RefusedError("is there already", path=job.target, hint="--yes overwrites it")
    if not typer.confirm(f"{name_text(what)}. Go on?", err=True):
        raise typer.Abort


def finish(job: RestoreJob, *, yes: bool, dry_run: bool, json: bool) -> None:
    """Show, ask, run and report."""
    if not json or not (yes or dry_run):
        show_plan(job)
    if dry_run:
        if json:
            print_json(job.document())
        return
    confirm(job, yes=yes)
    with listening("writing", "written", json=json) as listener:
        report = job.run(listener)
    if json:
        print_json(report.document())
    else:
        for warning in report.warnings[len(job.warnings) :]:
            say(warning)
        _print(report)
    if report.verified is False:
        raise typer.Exit(ExitCode.DIFFERENT)


def _print(report: RestoreReport) -> None:
    output.print(escape(name_text(report.target)))
    rate = report.bytes_written / report.seconds if report.seconds else 0
    unchanged = f", {report.blocks_unchanged} unchanged" if report.mode == "delta" else ""
    cleared = f", {size_text(report.bytes_cleared)} of free space cleared" if report.bytes_cleared else ""
    output.print(
        f"{report.blocks_written} blocks written{unchanged}; {size_text(report.bytes_written)}{cleared},"
        f" {report.seconds:.1f} s, {size_text(int(rate))}/s"
    )
    _print_ids(report)
    if report.verified:
        output.print("[green]verified[/green]: what was written reads back as it should")
    for line in report.different:
        output.print(f"[red]differs[/red] {escape(name_text(line))}")


def _print_ids(report: RestoreReport) -> None:
    for old, new in report.new_ids.items():
        output.print(f"new id {escape(new)} (was {escape(old)})")
    for line in report.references:
        output.print(f"[yellow]refers to an old id[/yellow]: {escape(name_text(line))}")
