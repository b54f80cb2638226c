"""Making an image: the front door for the command line and for programs."""

import os
import secrets
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zstandard

from formats.container import Role
from formats.errors import FormatError, PasswordError
from formats.mrimgx import checks
from formats.mrimgx.authentication import AuthenticationKeys
from formats.mrimgx.backup_set import FolderScan, Members
from formats.mrimgx.cipher import BlockCipher, derive_key, key_check
from formats.mrimgx.document import Encryption
from formats.mrimgx.image_file import ImageFile
from formats.mrimgx.index import ResolvedIndex
from formats.mrimgx.layout import ELEMENT
from formats.mrimgx.new_document import NewFile
from imagefs.imaging.errors import ImagingError, RefusedError, TargetWriteError, UsageError
from imagefs.imaging.lock import SetLock, remove_stale
from imagefs.imaging.matching import Parent, find_parent, open_parent
from imagefs.imaging.options import BackupOptions, BackupReport, Listener, Progress
from imagefs.imaging.plan import Plan, make_plan
from imagefs.imaging.run import Keys, Run
from imagefs.imaging.sources import Source, open_source
from imagefs.imaging.target import largest_file, write_error
from imagefs.imaging.unfinished import SUFFIX, State, Unfinished, find_unfinished, is_unfinished, sync_folder
from imagefs.verify import check_all


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

    Raises ImagingError (``imaging.errors``) and FormatError. Whatever is raised, or happens, the sets in the
    folder are as they were; what was stored of this one can be gone on with by ``resume``.
    """
    options, listener = options or BackupOptions(), listener or Listener()
    target = Path(folder).absolute()
    with ExitStack() as owned:
        opened = _open(Path(source), options, source_password, owned)
        plan = _plan(opened, options, listener)
        try:
            target.mkdir(parents=True, exist_ok=True)
            sync_folder(target.parent)
        except OSError as error:
            raise write_error(error, target) from error
        remove_stale(target)
        _refuse_unfinished(target, opened.path, plan, listener)
        run, parent = _begin(target, opened, plan, options, password, owned, listener)
        with _naming(run, listener):
            return _Job(run, opened, plan, parent, options, password, listener).do()


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
            return _report(run, run.move_into_set(), 0.0)
        try:
            options = BackupOptions.of(run.job["options"])
        except (KeyError, TypeError, ImagingError) as error:
            raise RefusedError(
                f"its job is damaged ({error!r})", path=run.folder, hint="--discard drops it"
            ) from error
        source, fingerprint = Path(run.job["source"]), run.job["fingerprint"]
        opened = _open(source, options, source_password, owned)
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
        return _Job(run, opened, plan, parent, options, password, listener).do()


def discard(folder: str | os.PathLike[str]) -> Path:
    """Drop the unfinished backup in a folder; returns what was removed. The set stays as it is."""
    path = _the_unfinished(Path(folder))
    with SetLock(path.parent, path.name[:16]):
        run = Unfinished(path, {}, State())
        with suppress(RefusedError):  # a job that is damaged can be dropped as well
            run = Unfinished.open(path)
        run.take_back()
        run.drop()
    return path


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


def _open(path: Path, options: BackupOptions, password: str | None, owned: ExitStack) -> Source:
    return owned.enter_context(
        open_source(
            path,
            password=password,
            live=options.live,
            snapshot=options.snapshot,
            direct=options.direct,
            sector_size=options.sector_size,
            partitions=options.partitions,
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


def _begin(
    folder: Path,
    source: Source,
    plan: Plan,
    options: BackupOptions,
    password: str | None,
    owned: ExitStack,
    listener: Listener,
) -> tuple[Unfinished, Parent | None]:
    """Choose the set and what kind of image goes into it; lock it, and begin the run."""
    parent = _choose_parent(folder, plan, options, password, listener)
    if parent is not None:
        owned.enter_context(parent.container)
    image_id = parent.container.image_id if parent is not None else secrets.token_hex(8).upper()
    owned.enter_context(SetLock(folder, image_id))
    now = int(time.time())
    job: dict[str, Any] = {
        "version": 1,
        "source": str(source.path.absolute()),
        "image_id": image_id,
        "file_number": 0,
        "increment": 0,
        "role": str(Role.FULL),
        "created": now,
        "set_created": now,
        "guid": str(uuid.uuid4()),
        "name": options.name,
        "compression": options.compression or "medium",
        "encryption": None,
        "parent": None,
        "disk_numbers": [disk.record.number for disk in plan.disks],
        "options": options.document(),
    }
    if password is None and options.aes is not None:
        raise UsageError("encryption needs a password", hint="--password-file or IMAGEFS_PASSWORD")
    if password is not None and parent is None:
        encryption = Encryption(options.aes or "aes-256", b"", options.key_iterations)
        key = derive_key(password, bytes.fromhex(image_id), encryption.iterations)
        job["encryption"] = _encryption_document(
            Encryption(encryption.aes_type, key_check(key), encryption.iterations)
        )
    if parent is not None:
        # Another writer may have been faster than the lock: what was chosen must still be the newest.
        open_parent(folder, image_id, parent.point.file_number, parent.next_number).container.close()
        job |= _continued(parent, options, password, listener)
    if job["role"] != Role.INCREMENTAL:
        _refuse_small_files(plan, _file_limit(folder, options))
    plan = plan.numbered(job["disk_numbers"])
    job["fingerprint"] = plan.fingerprint()
    name = f"{image_id}-{job['increment']:02}-{job['file_number']:02}{SUFFIX}"
    return Unfinished.create(folder / name, job), parent


def _file_limit(folder: Path, options: BackupOptions) -> int | None:
    """Return the bytes that a file of the image may have, None where nothing limits it."""
    return min((size for size in (options.split, largest_file(folder)) if size), default=None)


def _refuse_small_files(plan: Plan, limit: int | None) -> None:
    """Refuse at once files that the index, of which every block has an element, can't be in."""
    records = [part.record for disk in plan.disks for part in disk.partitions]
    needed = sum(-(-part.data_length // part.block_size) * ELEMENT.itemsize for part in records)
    if limit is not None and needed > limit:
        raise UsageError(f"the index needs {needed} bytes, files of {limit} are too small for it")


def _choose_parent(
    folder: Path, plan: Plan, options: BackupOptions, password: str | None, listener: Listener
) -> Parent | None:
    """Return what the image builds upon, None for a full."""
    if options.type == "full":
        return None
    match = find_parent(folder, plan, encrypted=password is not None, differential=options.type == "diff")
    if match.parent is not None:
        return match.parent
    if match.locked and password is None:
        raise PasswordError(f"set {match.locked} of this source is encrypted", hint="give its password")
    if options.type != "auto" and match.problem is not None:
        raise match.problem
    if options.type != "auto" and not match.is_reshaped:
        reasons = "; ".join(match.reasons) or "no set of this source is here"
        raise RefusedError(
            f"there is nothing to build upon: {reasons}", path=folder, hint="--type full begins a set"
        )
    for reason in match.reasons:
        listener.say(f"{reason}: a new full is made")
    return None


def _continued(
    parent: Parent, options: BackupOptions, password: str | None, listener: Listener
) -> dict[str, Any]:
    """Return what an image takes over from its set: numbers, compression, encryption."""
    newest = (
        parent.files[-1].document if not parent.files[-1].document.split_file else parent.point.image.document
    )
    if password is not None:
        parent.container.unlock(password)
        parent.point.require_key()
    for what, wanted, has in (
        ("compression", options.compression, newest.compression),
        ("encryption", options.aes, newest.encryption.aes_type if newest.encryption else None),
    ):
        if wanted is not None and wanted != has:
            listener.say(f"the set has {what} {has}, which stays: {wanted} needs a new full")
    role = Role.DIFFERENTIAL if options.type == "diff" else Role.INCREMENTAL
    definition = newest.json.get("_auxiliary_data", {}).get("backup_definition", {})
    return {
        "file_number": parent.next_number,
        "increment": parent.next_increment,
        "role": str(role),
        "set_created": newest.json["_header"].get("backupset_time", int(parent.point.created.timestamp())),
        "name": options.name or _safe_name(definition.get("filename_template")),
        "compression": newest.compression,
        "encryption": _encryption_document(newest.encryption) if newest.encryption else None,
        "parent": parent.point.file_number,
        "disk_numbers": [disk.number for disk in newest.disks],
    }


def _safe_name(name: object) -> str:
    """Return a set's name where it can be part of a file name; Reflect may have a template with braces."""
    if not isinstance(name, str) or "{" in name:
        return ""
    try:
        return BackupOptions(name=name).name
    except UsageError:
        return ""


def _encryption_document(encryption: Encryption) -> dict[str, Any]:
    return {
        "aes_type": encryption.aes_type,
        "enable": True,
        "hmac": encryption.hmac.hex(),  # in lower case, as Reflect
        "key_derivation": "pbkdf2",
        "key_iterations": encryption.iterations,
    }


class _Job:
    """A run that has begun, with everything that it needs."""

    def __init__(
        self,
        unfinished: Unfinished,
        source: Source,
        plan: Plan,
        parent: Parent | None,
        options: BackupOptions,
        password: str | None,
        listener: Listener,
    ) -> None:
        job = unfinished.job
        self._unfinished = unfinished
        self._folder = unfinished.folder.parent
        self._source = source
        self._plan = plan = plan.numbered(job["disk_numbers"])
        self._parent = parent
        self._options = options
        self._listener = listener
        self._cipher: BlockCipher | None = None
        keys = self._keys(job, password)
        self._file = _new_file(job, plan, parent, options)
        self._run = Run(
            source,
            plan,
            self._file,
            self._path_of,
            _parent_indexes(parent),
            unfinished,
            options,
            listener,
            keys,
            _file_limit(self._folder, options),
        )

    def _keys(self, job: Mapping[str, Any], password: str | None) -> Keys | None:
        """Return the keys of an encrypted set; raises PasswordError without its password."""
        record = job["encryption"]
        if record is None:
            return None
        image_id = str(job["image_id"])
        if password is None:
            raise PasswordError(f"set {image_id} is encrypted", hint="give its password")
        encryption = Encryption(record["aes_type"], bytes.fromhex(record["hmac"]), record["key_iterations"])
        key = derive_key(password, bytes.fromhex(image_id), encryption.iterations)
        self._cipher = BlockCipher(key, encryption, bytes.fromhex(image_id))
        if not self._cipher.fits(encryption):
            raise PasswordError("the password is wrong", path=self._unfinished.folder)
        tags: Mapping[int, bytes] = {}
        if self._parent is not None:
            self._parent.container.unlock(password)
            tags = self._parent.container.members.tags
        return Keys(self._cipher, AuthenticationKeys(key), tuple(tags.items()))

    def _path_of(self, number: int) -> Path:
        job = self._unfinished.job
        middle = f"-{job['name']}" if job["name"] else ""
        name = f"{job['image_id']}{middle}-{job['increment']:02}-{number:02}.mrimgx"
        return self._folder / name

    def do(self) -> BackupReport:
        """Store, complete, verify, and let the set have it."""
        start = time.monotonic()
        self._run.store()
        self._source.check()
        files = self._run.finish(self._own())
        if self._options.verify:
            self._verify(len(files))
        moves = [(f"data-{part}", Path(file.path).name) for part, file in enumerate(files)]
        self._unfinished.state = replace(self._unfinished.state, moves=moves)
        self._unfinished.save()
        paths = self._unfinished.move_into_set()
        report = _report(self._unfinished, paths, time.monotonic() - start)
        report.left_out = self._plan.left_out
        report.warnings = [*self._source.warnings, *self._plan.warnings]
        return report

    def _own(self) -> dict[str, object]:
        """Return what our own metadata block tells: what nobody would expect of an image of used blocks."""
        own: dict[str, object] = {}
        if self._options.exclude:
            own["excluded"] = list(self._options.exclude)
            own["left_out"] = self._plan.left_out[:_MOST_LEFT_OUT]
        if self._unfinished.state.unreadable:
            own["unreadable"] = _unreadable(self._unfinished.state)
        return own

    def _verify(self, parts: int) -> None:
        """Read back what was written; raises TargetWriteError where it is not what it should be."""
        folder, image_id = self._unfinished.folder, str(self._unfinished.job["image_id"])
        with ExitStack() as owned:
            images = []
            for part in range(parts):
                _forget(folder / f"data-{part}")
                try:
                    images.append(ImageFile.open(folder / f"data-{part}"))
                except FormatError as error:
                    raise _unverified(str(error), folder / f"data-{part}") from error
                owned.callback(images[-1].close)
            members = Members(image_id, FolderScan(self._folder, tuple(images)))
            if self._cipher is not None:
                members.store.ciphers = dict.fromkeys(images, self._cipher)
                members.check_store.ciphers = members.store.ciphers
            result = check_all(
                checks.check_set(members),
                lambda done, total: self._listener.progress(
                    Progress("verifying", done * 65536, total * 65536, self._unfinished.state.lengths[-1])
                ),
                checks.count_set(members),
            )
        if not result.ok:
            more = f" (and {len(result.bad) - 1} more)" if len(result.bad) > 1 else ""
            raise _unverified(f"{result.bad[0].reason}{more}", result.bad[0].file)


def _forget(path: Path) -> None:
    """Have what is read of a file come from where it is stored, where the system can."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _unverified(reason: str, path: Path | None) -> TargetWriteError:
    return TargetWriteError(
        f"what was written can't be read back: {reason}",
        path=path,
        hint="the target is not to be trusted; --discard drops this backup",
    )


_MOST_LEFT_OUT = 500  # names; the patterns tell the rest


def _unreadable(state: State) -> list[dict[str, int]]:
    """Return the unreadable ranges as they are recorded; offsets are bytes from the partition's start."""
    return [
        {"disk": disk, "partition": partition, "offset": offset, "length": length}
        for disk, partition, offset, length in state.unreadable
    ]


def _parent_indexes(parent: Parent | None) -> dict[tuple[int, int], ResolvedIndex]:
    """Return what each partition's blocks were, by the positions of disk and partition."""
    if parent is None:
        return {}
    return {
        (disk_at, at): partition.indexes[1]
        for disk_at, disk in enumerate(parent.point.disks)
        for at, partition in enumerate(disk.partitions)
    }


def _new_file(job: Mapping[str, Any], plan: Plan, parent: Parent | None, options: BackupOptions) -> NewFile:
    """Return the record of a run's first file, without its path and its own place in the history."""
    files = parent.files if parent is not None else ()
    return NewFile(
        image_id=job["image_id"],
        file_number=job["file_number"],
        increment=job["increment"],
        backup_type=job["role"],
        delta_index=job["role"] == Role.INCREMENTAL,
        created=job["created"],
        set_created=job["set_created"],
        compression=job["compression"],
        encryption=job["encryption"] or {"enable": False, "key_iterations": 0},
        disks=tuple(disk.record for disk in plan.disks),
        path="",
        history=[(image.document.file_number, str(image.path.absolute())) for image in files],
        host=socket.gethostname().partition(".")[0].upper()[:15],
        software=(
            f"imagefs {version('imagefs')}",
            f"Zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}",
        ),
        comment=options.comment,
        name=job["name"],
        used_blocks_only=not options.exact,
        split_size=options.split,
        guid=job["guid"],
    )


def _report(run: Unfinished, paths: list[Path], seconds: float) -> BackupReport:
    counts, job = run.state.counts, run.job
    return BackupReport(
        path=paths[-1],
        paths=paths,
        image_id=job["image_id"],
        role=job["role"],
        file_number=job["file_number"] + len(paths) - 1,
        increment=job["increment"],
        blocks_written=counts.get("written", 0),
        blocks_unchanged=counts.get("unchanged", 0),
        blocks_freed=counts.get("freed", 0),
        bytes_read=counts.get("read", 0),
        bytes_stored=sum(path.stat().st_size for path in paths),
        seconds=seconds,
        unreadable=_unreadable(run.state),
    )
