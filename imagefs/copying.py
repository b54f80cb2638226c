"""Copying files and directories of a tree to a folder of the running system."""

import errno
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from formats.blockreader import BlockReader
from formats.errors import DamagedError, FormatError
from formats.files import open_file, sync, truncate, write_at
from imagefs.filesystems import GoneError, RecoveryState
from imagefs.left_out import bytes_left_out
from imagefs.readahead import ReadAheadHandle
from imagefs.stream_copies import finish, leads_to_directory, system
from imagefs.target_names import Doubts, Made
from imagefs.tree import ImageTree
from mounters.tree import Attributes, NodeType

_STEP = 1 << 20  # bytes read at a time
_WORKERS = 4  # files copied at once: two cores decode while others wait for the target
_LEAST_HOLE = 1 << 16  # bytes; Windows keeps files with holes in a way of its own
_TAKEN = "another file of this copy has its name"

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass
class CopyResult:
    """What a copy did. ``failures`` has a line for each thing that was not copied, or not all of it.

    ``left_out`` are paths beside the files of a volume, such as $Deleted, which are copied when they are
    named; ``incomplete`` has a line for each file of which the image leaves something out on purpose, as of
    paging files: zeros in the copy. ``deleted`` counts deleted files by what was left of them. ``renamed``
    has what Windows takes no name of, or another one but for case: its path, and its name in the copy.
    """

    files: int = 0
    bytes: int = 0
    failures: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    deleted: Counter[RecoveryState] = field(default_factory=Counter)
    renamed: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    """A node to copy, found in the tree."""

    path: str  # in the tree
    target: Path
    attributes: Attributes


@dataclass(frozen=True)
class _Made:
    """The copy of a file with several names."""

    path: Path
    identity: tuple[int, ...]


class _Copy:
    """One call of ``copy_out``."""

    def __init__(
        self, tree: ImageTree, *, overwrite: bool, streams: bool, security: bool, progress: Progress
    ) -> None:
        self.tree = tree
        self.overwrite = overwrite
        self.streams = streams
        self.security = security
        self.result = CopyResult()
        self._progress = progress
        self._total = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._targets: set[Path] = set()
        self._folders = Made()  # those of this copy
        self.doubts = Doubts(())
        self.directories: list[tuple[_Job, bool]] = []  # and whether each was made here
        self.files: list[_Job] = []
        self.links: list[_Job] = []  # further names of what is in ``files``
        self._linked: set[int] = set()  # inodes of files with several names
        self._made: dict[int, _Made] = {}  # their copies

    def stop(self) -> None:
        """Let the files that are being copied end soon, without a trace."""
        self._stopped.set()

    def fail(self, path: str, error: Exception) -> None:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        with self._lock:
            self.result.failures.append(f"{path}: {reason}")

    def done(self, size: int) -> None:
        with self._lock:
            self.result.bytes += size
            self._progress(self.result.bytes, self._total)

    def place(self, path: str, folder: Path) -> Path:
        """Return where what is at a path is copied to in a folder."""
        name = path.rstrip("/").rpartition("/")[2]
        (given,) = system.target_names([name]) if name else [name]
        if given != name:
            self.result.renamed.append((path.strip("/"), given))
        return folder / given

    def collect(self, job: _Job) -> None:
        """Make the directories, and list what goes into them."""
        waiting = [job]
        seen: set[int] = set()  # directories: a damaged volume may have loops
        while waiting:
            job = waiting.pop()
            if job.attributes.type is not NodeType.DIRECTORY:
                if job.target in self._targets:
                    self.fail(job.path, FileExistsError(errno.EEXIST, _TAKEN))
                    continue
                self._targets.add(job.target)
                if job.attributes.type is NodeType.FILE and job.attributes.links > 1:
                    if job.attributes.inode in self._linked:
                        self.links.append(job)
                        continue
                    self._linked.add(job.attributes.inode)
                self.files.append(job)
                self._total += job.attributes.size
                continue
            try:
                if job.attributes.inode in seen:
                    raise DamagedError("the directory has another place as well")
                seen.add(job.attributes.inode)
                entries = self.tree.entries_with_attributes(job.attributes.inode)
                # Not made before: an empty one would tell that nothing is in it.
                self.directories.append((job, self._make_directory(job.target)))
            except (OSError, FormatError) as error:
                self.fail(job.path, error)
                continue
            names = system.target_names([entry.name for entry, _ in entries])
            for (entry, attributes), name in zip(entries, names, strict=True):
                path = f"{job.path}/{entry.name}"
                if self.tree.is_added(entry.inode):
                    self.result.left_out.append(path)
                    continue
                try:
                    _check_name(entry.name)
                    known = attributes or self.tree.attributes(entry.inode)  # which raises why it can't
                except (OSError, FormatError) as error:
                    self.fail(path, error)
                else:
                    waiting.append(_Job(path, job.target / name, known))
                    if name != entry.name:
                        self.result.renamed.append((path, name))

    def _make_directory(self, path: Path) -> bool:
        """Make a directory, or use the one that is there, never one behind a link; return whether it is new.

        Raises FileExistsError where another one of this copy is found by its name.
        """
        try:
            path.mkdir()
        except FileExistsError:
            if not stat.S_ISDIR(path.lstat().st_mode):
                raise
            other = self._folders.other(path)
            if other is not None:
                said = f"another directory of this copy, {other.name}, has its name there"
                raise FileExistsError(errno.EEXIST, said) from None
            self._folders.add(path)
            return False
        self._folders.add(path)
        return True

    def copy(self, job: _Job) -> None:
        """Copy one file or link."""
        try:
            if job.attributes.type is NodeType.LINK:
                self._link(job)
            elif job.attributes.type is NodeType.FILE:
                self._file(job)
            else:
                raise OSError(errno.EINVAL, "a device, socket or pipe is not copied")
        except (OSError, FormatError, ValueError) as error:
            self.fail(job.path, error)
            return
        with self._lock:
            self.result.files += 1

    def link(self, job: _Job) -> None:
        """Give a copied file one more name; where that can't be, copy it again."""
        made = self._made.get(job.attributes.inode)
        try:
            is_linked = made is not None and self._hard_link(made, job)
        except OSError as error:
            self.fail(job.path, error)
        else:
            if not is_linked:
                self._total += job.attributes.size
                self.copy(job)

    def _hard_link(self, made: _Made, job: _Job) -> bool:
        self._refuse_existing(job.target)
        scratch = _scratch(job.target)
        try:
            try:
                os.link(made.path, scratch)
            except OSError:  # another file system, one without hard links, or too many of them
                return False
            if _identity(scratch.lstat()) != made.identity:
                return False  # somebody put another file there
            self._place(scratch, job.target)
        finally:
            system.discard(scratch)  # also where replacing did nothing: it was the same file already
        with self._lock:
            self.result.files += 1
        return True

    def _link(self, job: _Job) -> None:
        text = self.tree.read_link(job.attributes.inode)
        self._refuse_existing(job.target)
        scratch = _scratch(job.target)
        try:
            system.make_link(
                scratch,
                system.link_text(text),
                lambda: leads_to_directory(self.tree, job.path, job.attributes.inode, text),
            )
            self._put(scratch, job)
        except BaseException:
            system.discard(scratch)
            raise

    def _file(self, job: _Job) -> None:
        self._refuse_existing(job.target)
        recovery = self.tree.recovery(job.attributes.inode)
        if recovery is not None:
            with self._lock:
                self.result.deleted[recovery.state] += 1
        reader = self.tree.open_reader(job.attributes.inode)
        scratch = _scratch(job.target)
        # Its mode from the start, with the umask: setting one later undoes the rights of NTFS.
        mode = (job.attributes.mode | stat.S_IWUSR) & 0o777
        fd = open_file(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        try:
            try:
                gone = self._write(reader, fd, job.attributes.inode)
                if self.overwrite:
                    sync(fd)  # what it replaces is given up only for what is safely there
            finally:
                os.close(fd)
            identity = self._put(scratch, job)
        except BaseException:
            system.discard(scratch)
            raise
        if gone:
            reason = f"{RecoveryState.PARTLY}: {gone} of its {reader.size} bytes are gone; the copy has holes"
            self.fail(job.path, GoneError(f"{reason} in their place"))
        missing = bytes_left_out(reader) if recovery is None else 0
        if missing:
            with self._lock:
                self.result.incomplete.append(f"{job.path}: {missing} of its {reader.size} bytes")
        if job.attributes.inode in self._linked:
            self._made[job.attributes.inode] = _Made(job.target, identity)

    def _write(self, reader: BlockReader, target: int, inode: int) -> int:
        """Write data runs; holes stay holes. Return how many bytes of a deleted file are left out: gone."""
        gone = 0
        with ReadAheadHandle(reader) as handle:
            for extent in reader.extents():
                if not extent.is_data:
                    if extent.length >= _LEAST_HOLE:
                        system.make_sparse(target)
                    self.done(extent.length)
                    continue
                for offset in range(extent.offset, extent.end, _STEP):
                    if self._stopped.is_set():
                        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
                    end = min(offset + _STEP, extent.end)
                    try:
                        _write_all(target, offset, handle.read(offset, end - offset))
                    except GoneError:
                        gone += self._write_what_is_left(reader, target, inode, offset, end)
                    self.done(end - offset)
        truncate(target, reader.size)
        return gone

    def _write_what_is_left(self, reader: BlockReader, target: int, inode: int, start: int, end: int) -> int:
        """Write a deleted file's clusters that are left, and return how many bytes of it are gone."""
        file_system = self.tree.file_system(inode)
        step = file_system.block_size if file_system is not None else _STEP
        gone = 0
        for offset in range(start, end, step):
            length = min(step, end - offset)
            try:
                _write_all(target, offset, reader.read_at(offset, length))
            except GoneError:
                gone += length
        return gone

    def _put(self, scratch: Path, job: _Job) -> tuple[int, ...]:
        """Give a finished file its times and its name, and return what it is known by."""
        self.finish(scratch, job)
        identity = _identity(scratch.lstat())
        self._place(scratch, job.target)
        return identity

    def finish(self, copy: Path, job: _Job, *, is_new: bool = True) -> None:
        """Give a copy what its node has beside data; the rights of a folder that was there stay."""
        for name, error in finish(
            self.tree,
            job.attributes,
            copy,
            streams=self.streams,
            security=self.security and is_new,
            overwrite=self.overwrite,
        ):
            if name or is_new or isinstance(error, FormatError):
                self.fail(f"{job.path}:{name}" if name else job.path, error)

    def _place(self, scratch: Path, target: Path) -> None:
        self._refuse_existing(target)
        try:
            system.put(scratch, target, overwrite=self.overwrite)
        except FileExistsError as error:
            raise _exists(target) from error
        with self._lock:
            self.doubts.made(target)

    def _refuse_existing(self, target: Path) -> None:
        if target in self.doubts:
            with self._lock:
                other = self.doubts.other(target)
            if other is not None:
                raise FileExistsError(errno.EEXIST, f"{_TAKEN} there: {other.name}")
        if not self.overwrite and os.path.lexists(target):
            raise _exists(target)


def copy_out(
    tree: ImageTree,
    paths: Sequence[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    streams: bool = False,
    security: bool = False,
    progress: Progress = lambda done, total: None,
) -> CopyResult:
    """Copy nodes of a tree, directories with all that is in them.

    ``target`` is a directory to copy into, or, for one path, a name that is not there yet or a file to
    replace. Times, holes and links are kept, hard ones among what is copied; on Windows also file attributes.
    With ``streams``, so are named streams, as ``user.`` extended attributes, on Windows as streams, and where
    Linux has NTFS the time of creation and the file attributes. With ``security``, so are the security
    descriptors of NTFS; folders that were there keep theirs. Each file is written under a temporary name in
    its folder and renamed; what is there is never replaced unless ``overwrite``. What can't be copied is told
    in the result, and the rest goes on. Raises OSError when a path is not in the tree or the target is no
    place for it, FormatError when a path can't be read, RefusedError when there are no descriptors at the
    target or the user may not set them.
    """
    copy = _Copy(tree, overwrite=overwrite, streams=streams, security=security, progress=progress)
    is_named_as_folder = os.fspath(target).endswith((os.sep, os.altsep or os.sep))
    target = system.target_path(target)
    into = target.is_dir()
    if not into and len(paths) > 1:
        raise NotADirectoryError(
            errno.ENOTDIR, "several things can only be copied into a folder", str(target)
        )
    if not into and is_named_as_folder:
        raise NotADirectoryError(errno.ENOTDIR, "there is no such folder", str(target))
    if not into and not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))
    if security:
        system.require_security(target if into else target.parent)
    jobs = []
    for path in paths:
        attributes = tree.attributes(tree.resolve(path))
        jobs.append(_Job(path.strip("/"), copy.place(path, target) if into else target, attributes))
    for job in jobs:
        copy.collect(job)
    copy.doubts = Doubts(job.target for job in (*copy.files, *copy.links))
    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            futures: list[Future[None]] = [
                pool.submit(copy.copy, job) for job in copy.files if job.target not in copy.doubts
            ]
            for future in futures:
                future.result()
        except BaseException:
            copy.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for job in copy.files:
        if job.target in copy.doubts:
            copy.copy(job)
    for job in copy.links:
        copy.link(job)
    # The innermost first: what is put into one changes its time.
    for job, is_new in reversed(copy.directories):
        copy.finish(job.target, job, is_new=is_new)
    return copy.result


def _write_all(fd: int, offset: int, content: bytes) -> None:
    data = memoryview(content)
    while data:
        written = write_at(fd, data, offset)
        data, offset = data[written:], offset + written


def _exists(target: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "is there already; --overwrite replaces it", str(target))


def _scratch(target: Path) -> Path:
    return target.with_name(f".{os.urandom(8).hex()}.imagefs")


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what a file is known by: its number alone may soon be another's."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check_name(name: str) -> None:
    """Refuse names that would lead elsewhere: a damaged or hostile file system can hold them."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(errno.EINVAL, "the name can't be used in a file system here")
