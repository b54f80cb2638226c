"""A backup that has begun: its blocks stored, its image completed, read back, and given to the set."""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zstandard

from formats.container import Role
from formats.errors import FormatError, PasswordError
from formats.files import forget_cached, open_file
from formats.mrimgx import checks
from formats.mrimgx.authentication import AuthenticationKeys
from formats.mrimgx.backup_set import FolderScan, Members
from formats.mrimgx.cipher import BlockCipher, derive_key
from formats.mrimgx.document import Encryption
from formats.mrimgx.image_file import ImageFile
from formats.mrimgx.index import ResolvedIndex
from formats.mrimgx.new_document import NewFile
from imagefs.errors import TargetWriteError
from imagefs.imaging.begin import file_limit
from imagefs.imaging.matching import Parent
from imagefs.imaging.options import BackupOptions, BackupReport, Listener, Progress
from imagefs.imaging.plan import Plan
from imagefs.imaging.run import Keys, Run
from imagefs.imaging.sources import Source
from imagefs.imaging.unfinished import State, Unfinished
from imagefs.verify import check_all

_MOST_LEFT_OUT = 500  # names; the patterns tell the rest


class Making:
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
            file_limit(self._folder, options),
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
        report = report_of(self._unfinished, paths, time.monotonic() - start)
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
    fd = open_file(path)
    try:
        forget_cached(fd)
    finally:
        os.close(fd)


def _unverified(reason: str, path: Path | None) -> TargetWriteError:
    return TargetWriteError(
        f"what was written can't be read back: {reason}",
        path=path,
        hint="the target is not to be trusted; --discard drops this backup",
    )


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


def report_of(run: Unfinished, paths: list[Path], seconds: float) -> BackupReport:
    """Return the report of a run whose files have got their names."""
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
