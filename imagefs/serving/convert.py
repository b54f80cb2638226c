"""A disk or a partition as a file of another kind: ``qemu-img`` writes it, from what is served here."""

import json
import os
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import formats
from formats.blockreader import BlockReader
from formats.errors import FormatError, NotAnImageError, ReportedError
from formats.files import move_new, open_file, replace_file, sync
from imagefs.errors import RefusedError, TargetWriteError, UsageError
from imagefs.imaging import backup
from imagefs.imaging.options import BackupOptions, Listener
from imagefs.imaging.sources import Source, open_source
from imagefs.machine.volumes import stored_bytes
from imagefs.serving.children import ProgramError, find_program, run_watched
from imagefs.serving.exports import ReaderExport
from imagefs.serving.server import private_server
from mounters.export import Export, Handle, Run

# What qemu-img calls each format, and what it is told of it. A VHD keeps the disk's size only where it is
# forced to; else it is rounded to a geometry.
_FORMATS = {
    "raw": ("raw", ""),
    "qcow2": ("qcow2", ""),
    "vhd": ("vpc", "subformat=dynamic,force_size=on"),
    "vhdx": ("vhdx", "subformat=dynamic"),
    "vmdk": ("vmdk", ""),
}
FORMATS = (*_FORMATS, "mrimgx")
_SUFFIXES = {".img": "raw", ".dd": "raw", ".vpc": "vhd"}
_COMPRESSED = {"qcow2": "", "vmdk": "subformat=streamOptimized"}  # what can be, and its options
_LARGEST_VHD = 2040 << 30  # bytes


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What is converted, and into what."""

    format: str | None = None  # None: by the suffix of the file
    disk: str = ""  # "disk4"; needed where there are several
    partition: str = ""  # "disk4/p1" or "p1": this partition alone
    compress: bool = False
    replace: bool = False  # a file that is there
    live: bool = False  # take the risk of a source that is written to


@dataclass(frozen=True, slots=True)
class Converted:
    """What came of it; sizes are bytes."""

    path: Path
    format: str
    size: int  # of the disk or partition
    stored_bytes: int  # of the file


@dataclass
class ConvertListener:
    """Who is told: ``progress`` of the bytes done and of all bytes, ``say`` of a line for people."""

    progress: Callable[[int, int], None] = lambda _done, _total: None
    say: Callable[[str], None] = lambda _: None


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: ConvertOptions | None = None,
    *,
    password: str | None = None,
    listener: ConvertListener | None = None,
) -> Converted:
    """Write a disk of an image, a device or a disk file, or one of its partitions, into a new file.

    Raises UsageError, RefusedError (a file is there; the source is in use or was changed), FormatError and
    SourceReadError where the source can't be read, TargetWriteError, ProgramError. Nothing is left then.
    To be called in the main thread.
    """
    options, listener = options or ConvertOptions(), listener or ConvertListener()
    target = Path(out).absolute()
    kind = chosen_format(target, options)
    if kind == "mrimgx":
        return _make_image(Path(source), target, options, password, listener)
    _refuse_target(Path(source), target, options)
    program = find_program("qemu-img")
    with open_source(Path(source), password=password, live=options.live) as opened:
        for line in opened.warnings:
            listener.say(line)
        reader, sector_size = _chosen(opened, options)
        if sector_size != 512:
            listener.say(f"its sectors have {sector_size} bytes, which {kind} does not record: attach it so")
        if kind == "vhd" and reader.size > _LARGEST_VHD:
            raise UsageError("a VHD has at most 2040 GiB", path=target, hint="vhdx has more")
        with _new_file(target, replace=options.replace) as temporary:
            _write(program, kind, reader, temporary, options, listener)
            opened.check()
        return Converted(target, kind, reader.size, stored_bytes(target))


def chosen_format(target: Path, options: ConvertOptions) -> str:
    """Return the format that is asked for, or that a file's suffix stands for; raises UsageError."""
    suffix = target.suffix.lower()
    kind = options.format or _SUFFIXES.get(suffix, suffix.removeprefix("."))
    if kind not in FORMATS:
        raise UsageError(
            f"there is no format {kind!r}" if options.format else f"{suffix!r} stands for no format",
            path=target if not options.format else None,
            hint=f"--format is one of {', '.join(FORMATS)}",
        )
    if options.compress and kind not in _COMPRESSED:
        raise UsageError(f"{kind} can't be compressed by qemu-img", hint=" and ".join(_COMPRESSED) + " can")
    if options.partition and options.disk and not options.partition.startswith(f"{options.disk}/"):
        raise UsageError(f"{options.partition} is not on {options.disk}")
    return kind


def _chosen(source: Source, options: ConvertOptions) -> tuple[BlockReader, int]:
    """Return the bytes to convert and the size of their sectors; raises UsageError."""
    disk_name, _, name = options.partition.rpartition("/")
    disk_name = disk_name or options.disk
    disks = [disk for disk in source.disks if disk_name in ("", f"disk{disk.number}")]
    if len(disks) != 1:
        names = ", ".join(f"disk{disk.number}" for disk in source.disks)
        what = f"there are several disks: {names}" if disks else f"there is no {disk_name}, but {names}"
        raise UsageError(what, path=source.path, hint="--disk names one")
    (disk,) = disks
    if not name and source.kind == "partition":
        name = f"p{disk.partitions[0].number}"
    if not name:
        return disk.reader, disk.sector_size
    for part in disk.partitions:
        if name == f"p{part.number}":
            return part.reader, disk.sector_size
    names = ", ".join(f"p{part.number}" for part in disk.partitions) or "none"
    raise UsageError(f"there is no partition {name}; there are {names}", path=source.path)


# --- Through qemu-img ---


def _write(
    program: str,
    kind: str,
    reader: BlockReader,
    temporary: Path,
    options: ConvertOptions,
    listener: ConvertListener,
) -> None:
    export = _Watched(ReaderExport("disk", "", reader.size, lambda: reader))
    name, settings = _FORMATS[kind]
    if options.compress:
        settings = _COMPRESSED[kind]
    total = reader.size
    with private_server([export]) as server:
        command = [program, "convert", "-p", "-f", "raw", "-O", name]
        command += ["-c"] if options.compress else []
        command += ["-o", settings] if settings else []
        command += [server.uri(export.name), _as_file(temporary)]
        try:
            run_watched(command, lambda part: listener.progress(int(part * total), total))
        except ProgramError as error:
            export.raise_first()  # why qemu-img failed
            raise TargetWriteError(str(error), path=temporary.parent) from error
        export.raise_first()
    _check_size(program, name, temporary, total)


def _as_file(path: Path) -> str:
    """Return a path as qemu-img takes it: a colon in it would begin the name of a protocol."""
    return f"file:{path}"


def _check_size(program: str, name: str, path: Path, size: int) -> None:
    """Make sure that who opens the file sees a disk of this size."""
    command = [program, "info", "--output=json", "-f", name, _as_file(path)]
    done = subprocess.run(command, capture_output=True, check=False)
    try:
        found = json.loads(done.stdout)["virtual-size"]
    except (ValueError, LookupError, TypeError) as error:
        said = done.stderr.decode(errors="replace").strip() or "nothing that can be understood"
        raise ProgramError(f"qemu-img can't read the disk that it made: it says {said}") from error
    if found != size:
        raise ProgramError(f"qemu-img made a disk of {found} bytes, {size} were wanted")


class _Watched(Export):
    """An export that keeps the first error of its reader: its client is told a number only."""

    def __init__(self, lower: Export) -> None:
        self._lower = lower
        self.name, self.description, self.size = lower.name, lower.description, lower.size
        self._lock = threading.Lock()
        self._first: Exception | None = None

    def open(self) -> Handle:
        """Return a view that keeps errors here."""
        return _WatchedHandle(self._lower.open(), self)

    def keep(self, error: Exception) -> None:
        """Remember an error, unless there was one before."""
        with self._lock:
            self._first = self._first or error

    def raise_first(self) -> None:
        """Raise the first error, if there was one."""
        if self._first is not None:
            raise self._first


class _WatchedHandle(Handle):
    def __init__(self, lower: Handle, export: _Watched) -> None:
        self._lower = lower
        self._export = export

    def read(self, offset: int, length: int) -> bytes:
        try:
            return self._lower.read(offset, length)
        except (ReportedError, OSError) as error:
            self._export.keep(error)
            raise

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        try:
            yield from self._lower.runs(offset, length)
        except (ReportedError, OSError) as error:
            self._export.keep(error)
            raise

    def close(self) -> None:
        self._lower.close()


# --- The file it becomes ---


def _refuse_target(source: Path, target: Path, options: ConvertOptions) -> None:
    """Refuse what must not be replaced; raises RefusedError, UsageError, TargetWriteError."""
    if not target.parent.is_dir():
        raise UsageError("there is no such folder", path=target.parent)
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise TargetWriteError(error.strerror or str(error), path=target) from error
    if not stat.S_ISREG(mode):
        raise RefusedError("is there, and is no regular file", path=target)
    if not options.replace:
        raise RefusedError("is there already", path=target, hint="--yes replaces it")
    with suppress(OSError):
        if target.samefile(source):
            raise RefusedError("is the source itself", path=target)
    with suppress(NotAnImageError):
        try:
            formats.open_container(target).close()
        except NotAnImageError:
            raise
        except FormatError:
            pass  # an image, if a broken one
        raise RefusedError("is a backup image, which is not replaced", path=target)


@contextmanager
def _new_file(target: Path, *, replace: bool) -> Iterator[Path]:
    """Give the name of a file in the target's folder, which becomes the target when all went well."""
    try:
        fd, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise TargetWriteError(error.strerror or str(error), path=target.parent) from error
    temporary = Path(name)
    try:
        os.close(fd)
        yield temporary
        try:
            temporary.chmod(0o666 & ~_umask())
            _sync_file(temporary)
            if replace:
                replace_file(temporary, target)
            else:
                move_new(temporary, target)
        except FileExistsError as error:
            raise RefusedError("has come to be there meanwhile", path=target) from error
        except OSError as error:
            raise TargetWriteError(error.strerror or str(error), path=target) from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Return the mode bits that new files shall not have."""
    with suppress(
        OSError, StopIteration, ValueError
    ):  # asking the process itself would change it for all threads
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    return 0o077


def _sync_file(path: Path) -> None:
    fd = open_file(path, os.O_RDWR)
    try:
        sync(fd)
    finally:
        os.close(fd)


# --- Into an image ---


def _make_image(
    source: Path, target: Path, options: ConvertOptions, password: str | None, listener: ConvertListener
) -> Converted:
    """Begin a new set in the target's folder; its file name begins with the set's id, as it must."""
    if options.disk:
        with open_source(source, password=password, live=options.live) as opened:
            _chosen(opened, ConvertOptions(disk=options.disk))
            if len(opened.disks) > 1:
                raise UsageError("an image holds all disks of its source", path=source)
    name = options.partition.rpartition("/")[2]
    if name and not (name.startswith("p") and name[1:].isdecimal()):
        raise UsageError(f"{options.partition!r} is no partition", hint="disk4/p1 is one")
    wanted = BackupOptions(
        type="full",
        name=target.stem,
        partitions=(int(name[1:]),) if name else (),
        live=options.live,
    )
    heard = Listener(lambda now: listener.progress(now.done, now.total), listener.say)
    report = backup(source, target.parent, wanted, source_password=password, listener=heard)
    return Converted(report.path, "mrimgx", report.bytes_read, report.bytes_stored)
