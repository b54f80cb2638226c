"""Making an image: the front door for the command line and for programs."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from formats.files import sync_folder
from imagefs.errors import ImagingError, RefusedError, UsageError
from imagefs.imaging.begin import begin
from imagefs.imaging.lock import SetLock, remove_stale
from imagefs.imaging.making import Making, report_of
from imagefs.imaging.matching import open_parent
from imagefs.imaging.names import find_source
from imagefs.imaging.options import BackupOptions, BackupReport, Listener
from imagefs.imaging.plan import Plan, make_plan
from imagefs.imaging.sources import Source, open_source
from imagefs.imaging.target import write_error
from imagefs.imaging.this_machine import drop_snapshots
from imagefs.imaging.unfinished import State, Unfinished, find_unfinished, is_unfinished


def backup(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    options: BackupOptions | None = None,
    *,
    password: str | None = None,
    source_password: str | None = None,
    listener: Listener | None = None,
) -> BackupReport:
    """Image a device, partition, disk file or another image into a set in ``folder``.

    ``source`` is a path, or a name that ``names.find_source`` knows: "disk0", "C:".
    Raises ImagingError (``imaging.errors``) and FormatError. Whatever is raised, or happens, the sets in the
    folder are as they were; what was stored of this one can be gone on with by ``resume``.
    """
    options, listener = options or BackupOptions(), listener or Listener()
    target = Path(folder).absolute()
    with ExitStack() as owned:
        named = find_source(source, options.partitions)
        if named.note:
            listener.say(named.note)
        options = replace(options, partitions=named.partitions)
        opened = _open(named.path, options, source_password, owned)
        plan = _plan(opened, options, listener)
        try:
            target.mkdir(parents=True, exist_ok=True)
            sync_folder(target.parent)
        except OSError as error:
            raise write_error(error, target) from error
        remove_stale(target)
        _refuse_unfinished(target, opened.path, plan, listener)
        run, parent = begin(target, opened, plan, options, password, owned, listener)
        with _naming(run, listener):
            return Making(run, opened, plan, parent, options, password, listener).do()


def resume(
    folder: str | os.PathLike[str], *, password: str | None = None, source_password: str | None = None,
    listener: Listener | None = None,
) -> BackupReport:  # fmt: skip
    """Go on with the unfinished backup in a folder, or named by its own folder.

    Raises RefusedError where the source has changed where it was read, and what ``backup`` does.
    """
    listener = listener or Listener()
    run = Unfinished.open(_the_unfinished(Path(folder)))
    with ExitStack() as owned:
        image_id = str(run.job["image_id"])
        owned.enter_context(SetLock(run.folder.parent, image_id))
        run = Unfinished.open(run.folder)  # as it is now that nobody else writes
        owned.enter_context(_naming(run, listener))
        if run.state.moves:
            report = report_of(run, run.move_into_set(), 0.0)
            _drop_snapshots(run)
            return report
        try:
            options = BackupOptions.of(run.job["options"])
        except (KeyError, TypeError, ImagingError) as error:
            raise RefusedError(
                f"its job is damaged ({error!r})", path=run.folder, hint="--discard drops it"
            ) from error
        source, fingerprint = Path(run.job["source"]), run.job["fingerprint"]
        opened = _open(source, options, source_password, owned, str(run.job.get("snapshots", "")))
        plan = _plan(opened, options, listener)
        if plan.fingerprint() != fingerprint:
            raise RefusedError(
                "its partitions are no longer those of the unfinished backup",
                path=source,
                hint="--discard drops the unfinished backup; then start anew",
            )
        parent = None
        if run.job["parent"] is not None:
            parent = open_parent(run.folder.parent, image_id, run.job["parent"], run.job["file_number"])
            owned.enter_context(parent.container)
        return Making(run, opened, plan, parent, options, password, listener).do()


def discard(folder: str | os.PathLike[str]) -> Path:
    """Drop the unfinished backup in a folder; returns what was removed. The set stays as it is."""
    path = _the_unfinished(Path(folder))
    with SetLock(path.parent, path.name[:16]):
        run = Unfinished(path, {}, State())
        with suppress(RefusedError):  # a job that is damaged can be dropped as well
            run = Unfinished.open(path)
        run.take_back()
        run.drop()
        _drop_snapshots(run)
    return path


def _drop_snapshots(run: Unfinished) -> None:
    """Remove the snapshots that a run kept while it was unfinished."""
    if name := run.job.get("snapshots"):
        drop_snapshots(str(name))


@contextmanager
def _naming(run: Unfinished, listener: Listener) -> Iterator[None]:
    """Name what can be gone on with, whatever ends the run before it is complete."""
    try:
        yield
    except BaseException:
        if not run.is_empty:
            listener.say(f"unfinished, to be gone on with: imagefs backup --resume {run.folder}")
        raise


def _the_unfinished(folder: Path) -> Path:
    """Return the one unfinished backup that a path names or contains."""
    found = [folder] if is_unfinished(folder.absolute()) else find_unfinished(folder)
    if len(found) > 1:  # what an interrupted removal left is none
        found = [path for path in found if (path / "state.json").exists()]
    if not found:
        raise UsageError("there is no unfinished backup", path=folder)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(
            f"there are several unfinished backups: {names}", path=folder, hint="name one of them"
        )
    return found[0].absolute()


def _open(
    path: Path, options: BackupOptions, password: str | None, owned: ExitStack, snapshots: str = ""
) -> Source:
    return owned.enter_context(
        open_source(
            path,
            password=password,
            live=options.live,
            snapshot=options.snapshot,
            direct=options.direct,
            sector_size=options.sector_size,
            partitions=options.partitions,
            snapshots=snapshots,
        )
    )


def _plan(source: Source, options: BackupOptions, listener: Listener) -> Plan:
    plan = make_plan(source, exact=options.exact, exclude=options.exclude, skip_bad=options.skip_bad)
    for line in (*source.warnings, *plan.warnings):
        listener.say(line)
    return plan


def _refuse_unfinished(folder: Path, source: Path, plan: Plan, listener: Listener) -> None:
    """Complete what only lacks its names; refuse to begin beside an unfinished backup of the same source."""
    for path in find_unfinished(folder):
        try:
            run = Unfinished.open(path)
        except RefusedError:
            _sweep(path)
            continue
        is_same = run.job["source"] == str(source.absolute()) or run.job["fingerprint"] == plan.fingerprint()
        try:
            with SetLock(folder, run.job["image_id"]):
                if path.exists():  # else it was completed meanwhile
                    _complete(Unfinished.open(path), listener, is_same=is_same)
        except RefusedError as error:
            if is_same:
                raise
            listener.say(str(error))


def _complete(run: Unfinished, listener: Listener, *, is_same: bool) -> None:
    if run.state.moves:
        for done in run.move_into_set():
            listener.say(f"completed {done}, which an interruption had left without its name")
        _drop_snapshots(run)
    elif is_same:
        raise RefusedError(
            "an unfinished backup of this source is here",
            path=run.folder,
            hint="--resume goes on with it, --discard drops it",
        )


def _sweep(folder: Path) -> None:
    """Remove what an interrupted start or removal has left, which holds nothing; not what is damaged."""
    run = Unfinished(folder, {}, State())
    with suppress(RefusedError), SetLock(folder.parent, folder.name[:16]):
        if folder.exists() and run.is_empty:
            run.drop()
