r"""A disk or volume of Windows as a target: ``\\.\PhysicalDrive1``, ``\\?\Volume{…}``.

Windows writes to a disk only where no mounted volume lies, or where whoever writes has locked it. So each
volume on it is locked, which fails while a file of it is open, and held so to the end; just before the first
write they are dismounted, and what Windows knows of the disk's partitions is dropped with the table: an
interruption leaves no volume that it could mount. Taking the disk offline instead would cut off whoever uses
it, and does not work with removable disks.

Source: Microsoft, "WriteFile function" (https://learn.microsoft.com/windows/win32/api/fileapi/), the pages
of the control codes ("winioctl.h header").
"""

import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from imagefs.errors import ImagingError, RefusedError, SourceReadError, TargetWriteError
from imagefs.machine.windows import api as calls
from imagefs.machine.windows import disks, layouts, volumes
from imagefs.machine.windows.api import Api, ApiError
from imagefs.machine.windows.volumes import Volume
from imagefs.restore.target import Target

FSCTL_DISMOUNT_VOLUME = 0x90020
IOCTL_DISK_DELETE_DRIVE_LAYOUT = 0x7C100
IOCTL_DISK_UPDATE_PROPERTIES = 0x70140

_ACCESS = calls.GENERIC_READ | calls.GENERIC_WRITE
_FLAGS = calls.FILE_FLAG_NO_BUFFERING | calls.FILE_FLAG_WRITE_THROUGH
_TRIES, _WAIT = 10, 0.5  # seconds: a scanner or an indexer may have a file open for a moment
_IN_USE = {calls.ERROR_ACCESS_DENIED, calls.ERROR_SHARING_VIOLATION}
# What a volume answers on which Windows knows no file system: then nothing is mounted that hinders.
_NOTHING_MOUNTED = {
    calls.ERROR_INVALID_FUNCTION,
    calls.ERROR_INVALID_PARAMETER,
    calls.ERROR_NOT_SUPPORTED,
    calls.ERROR_UNRECOGNIZED_VOLUME,
}
_GONE = {calls.ERROR_DEVICE_NOT_CONNECTED, calls.ERROR_DEV_NOT_EXIST, calls.ERROR_DEVICE_REMOVED,
         calls.ERROR_NOT_READY, calls.ERROR_NO_MEDIA_IN_DRIVE, calls.ERROR_FILE_NOT_FOUND}  # fmt: skip


class WindowsTarget(Target):
    """A disk, or a volume, that is open for writing. Its volumes are locked until it is closed."""

    is_device = True
    direct = True

    def __init__(
        self, api: Api, path: Path, handle: int, *, is_disk: bool, held: Sequence[int], owned: ExitStack,
        size: int, sector_size: int,
    ) -> None:  # fmt: skip
        super().__init__(-1, path, path, size, fresh=False)
        self.sector_size = sector_size
        self._api = api
        self._handle = handle
        self._is_disk = is_disk
        self._held = held  # handles of the volumes that are locked
        self._owned = owned
        self._changing = threading.Lock()
        self._is_changed = False
        self._failed: ApiError | None = None

    # --- Reading and writing ---

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill page-aligned memory; raises SourceReadError."""
        done = 0
        while done < len(view):
            try:
                step = self._api.read_file(self._handle, offset + done, view[done:])
            except ApiError as error:
                what = f"can't be read at {offset + done}: {error.strerror}"
                raise SourceReadError(what, path=self.path, offset=offset, length=len(view)) from error
            if not step:
                what = f"ends at {offset + done}"
                raise SourceReadError(what, path=self.path, offset=offset, length=len(view))
            done += step

    def write(self, offset: int, view: memoryview) -> None:
        """Write page-aligned memory, whole sectors; raises TargetWriteError."""
        self._take_over()
        done = 0
        while done < len(view):
            try:
                step = self._api.write_file(self._handle, offset + done, view[done:])
            except ApiError as error:
                raise device_error(error, self.path, offset + done) from error
            if not step:
                raise TargetWriteError(f"takes no more at {offset + done}", path=self.path)
            done += step

    def _take_over(self) -> None:
        """Before the first write, have Windows forget what is on the target."""
        with self._changing:
            if self._is_changed:
                return
            try:
                for volume in self._held:
                    with suppress_codes(_NOTHING_MOUNTED):
                        self._api.device_io_control(volume, FSCTL_DISMOUNT_VOLUME)
                if self._is_disk:
                    with suppress_codes(_NOTHING_MOUNTED):  # a disk without a table
                        self._api.device_io_control(self._handle, IOCTL_DISK_DELETE_DRIVE_LAYOUT)
            except ApiError as error:
                raise device_error(error, self.path) from error
            self._is_changed = True

    def discard(self, offset: int, length: int, *, zeros: bool) -> bool:
        """Return False: Windows gives ranges of a device back for nobody but file systems."""
        del offset, length, zeros
        return False

    def holes(self, offset: int, length: int) -> bool:
        """Return False: a device can't be asked."""
        del offset, length
        return False

    # --- Ending ---

    def flush(self) -> None:
        """Return once everything is on stable storage; a failure is final: what was lost is not known."""
        if self._failed is None:
            try:
                self._api.flush_file_buffers(self._handle)
                return
            except ApiError as error:
                self._failed = error
        raise device_error(self._failed, self.path)

    def forget_cached(self) -> None:
        """Do nothing: there is no cache."""

    def read_table_anew(self) -> bool:
        """Have Windows see a disk's new partitions; False where it can't now."""
        if self._is_disk and self._is_changed:
            try:
                self._api.device_io_control(self._handle, IOCTL_DISK_UPDATE_PROPERTIES)
            except ApiError:
                return False
        return True

    def close(self) -> None:
        """Close it, and unlock its volumes."""
        self._owned.close()


@contextmanager
def suppress_codes(codes: Container[int]) -> Iterator[None]:
    """Let errors of these codes pass: they don't matter here."""
    try:
        yield
    except ApiError as error:
        if error.code not in codes:
            raise


def open_target(api: Api, path: Path, *, sleep: Callable[[float], None] = time.sleep) -> WindowsTarget:
    """Open a disk or a volume for writing, its volumes locked; nothing is written. Raises RefusedError."""
    number = disks.disk_number(str(path))
    with ExitStack() as owned:
        try:
            if number is not None:
                handle = _opened(api, disks.disk_path(number), owned)
                there = [
                    one for one in volumes.all_volumes(api) if any(e.disk == number for e in one.extents)
                ]
                held = [
                    _locked(api, path, volume, _opened(api, volume.device, owned), sleep) for volume in there
                ]
                known = disks.look_at(api, number)
                size, sector_size = disks.length_of(api, handle), known.sector_size
            else:
                name = volumes.volume_name(str(path))
                if name is None:
                    raise RefusedError("is neither a disk nor a volume", path=path)
                volume = volumes.look_at(api, name)
                handle = _opened(api, volume.device, owned)
                held = [_locked(api, path, volume, handle, sleep)]
                with suppress_codes(_NOTHING_MOUNTED):
                    api.device_io_control(handle, layouts.FSCTL_ALLOW_EXTENDED_DASD_IO)
                size = disks.length_of(api, handle)
                sector_size = max(disks.look_at(api, one.disk).sector_size for one in volume.extents)
        except ApiError as error:
            raise cannot_open(error, path) from error
        if not size or not sector_size:
            raise RefusedError("does not tell its size", path=path, hint="plug it in anew")
        return WindowsTarget(
            api, path, handle, is_disk=number is not None, held=held, owned=owned.pop_all(),
            size=size, sector_size=sector_size,
        )  # fmt: skip


def _opened(api: Api, name: str, owned: ExitStack) -> int:
    handle = api.create_file(name, _ACCESS, calls.SHARE_ALL, calls.OPEN_EXISTING, _FLAGS)

    def close() -> None:
        with suppress(ApiError):  # of a disk that was pulled out
            api.close_handle(handle)

    owned.callback(close)
    return handle


def _locked(api: Api, path: Path, volume: Volume, handle: int, sleep: Callable[[float], None]) -> int:
    """Lock a volume, trying for some seconds."""
    for tries_left in reversed(range(_TRIES)):
        try:
            api.device_io_control(handle, layouts.FSCTL_LOCK_VOLUME)
            return handle
        except ApiError as error:
            if not volume.file_system and error.code in _NOTHING_MOUNTED:
                return handle
            if error.code not in _IN_USE:
                raise
            if not tries_left:
                raise RefusedError(
                    f"{volume.title} is in use, and can't be locked",
                    path=path,
                    hint="close the programs and windows that show its files; Resource Monitor names them",
                ) from error
        sleep(_WAIT)
    raise AssertionError("unreachable")


def device_error(error: ApiError, path: Path, offset: int | None = None) -> ImagingError:
    """Return the error of this package for one of Windows."""
    where = "" if offset is None else f" at {offset}"
    hint = ""
    if error.code in _GONE:
        hint = "it was taken out: plug it in, and finish with --delta"
    elif error.code == calls.ERROR_WRITE_PROTECT:
        hint = "it is write-protected: look for a switch on it, or see attributes disk in diskpart"
    elif error.code == calls.ERROR_ACCESS_DENIED:
        hint = "another program has taken it: close what shows disks, and finish with --delta"
    return TargetWriteError(f"can't be written{where}: {error.strerror}", path=path, hint=hint)


def cannot_open(error: ApiError, path: Path) -> RefusedError:
    """Return the error for a target that Windows does not let us write."""
    hint = {
        calls.ERROR_ACCESS_DENIED: "start the command line as an administrator",
        calls.ERROR_SHARING_VIOLATION: "another program has it for itself: end that",
        calls.ERROR_WRITE_PROTECT: "look for a switch on it, or see attributes disk in diskpart",
        calls.ERROR_FILE_NOT_FOUND: "imagefs disks lists the disks",
    }.get(error.code, "")
    return RefusedError(f"can't be opened for writing: {error.strerror}", path=path, hint=hint)
