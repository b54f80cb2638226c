"""Reading a disk, a volume or a shadow copy of Windows, and to the exact sector that fails. Never writing."""

from pathlib import Path

from formats.blockreader import BlockReader
from imagefs.errors import SourceReadError
from imagefs.machine.raw import AlignedMemory, failing_unit
from imagefs.machine.windows import api as calls
from imagefs.machine.windows import layouts
from imagefs.machine.windows.api import Api, ApiError
from imagefs.machine.windows.disks import length_of

ADMINISTRATOR = "run it as administrator"

_STEP = 4 << 20  # bytes that are read at once, into a buffer that each reading thread keeps
# What a medium answers for a place that it can't read; other errors hit every place alike.
_LOCAL = {
    calls.ERROR_CRC,
    calls.ERROR_SEEK,
    calls.ERROR_SECTOR_NOT_FOUND,
    calls.ERROR_READ_FAULT,
    calls.ERROR_IO_DEVICE,
    calls.ERROR_DISK_OPERATION_FAILED,
}
# What a volume without a file system answers that would limit reading.
_NO_FILE_SYSTEM = {
    calls.ERROR_INVALID_FUNCTION,
    calls.ERROR_INVALID_PARAMETER,
    calls.ERROR_NOT_SUPPORTED,
    calls.ERROR_UNRECOGNIZED_VOLUME,
}


def read_error(error: ApiError, path: str, offset: int = 0, length: int = 0) -> SourceReadError:
    """Return what Windows said as an error of the source, with what helps."""
    at = f" at {offset}+{length}" if length else ""
    hint = ADMINISTRATOR if error.code == calls.ERROR_ACCESS_DENIED else ""
    return SourceReadError(f"{error.strerror}{at}", path=Path(path), offset=offset, length=length, hint=hint)


class DeviceReader(BlockReader):
    r"""A device of Windows (``\\.\PhysicalDrive0``) as bytes; safe from several threads, closed by ``close``.

    ``unit`` is the physical sector in bytes, whole ones of which are read into aligned memory. It is opened
    for reading alone, and shared with everybody. ``direct`` passes the cache by. Raises SourceReadError that
    names the first unit that can't be read.
    """

    def __init__(self, api: Api, path: str, *, unit: int = 512, direct: bool = False) -> None:
        self.path = Path(path)
        self.name = path
        self._api = api
        self._unit = unit
        self._memory = AlignedMemory()
        flags = calls.FILE_FLAG_NO_BUFFERING if direct else 0
        try:
            self._handle: int | None = api.create_file(
                path, calls.GENERIC_READ, calls.SHARE_ALL, calls.OPEN_EXISTING, flags
            )
            try:
                super().__init__(length_of(api, self._handle))
            except BaseException:
                self.close()
                raise
        except ApiError as error:
            raise read_error(error, path) from error

    def control(self, code: int) -> None:
        """Ask the driver for something that has no answer (FSCTL_LOCK_VOLUME); raises ApiError."""
        assert self._handle is not None
        self._api.device_io_control(self._handle, code)

    def close(self) -> None:
        """Close the device; reading fails from then on."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._api.close_handle(handle)

    def _read(self, offset: int, length: int) -> bytes:
        memory = bytearray(length)
        self._read_into(offset, memoryview(memory))
        return bytes(memory)

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        try:
            self._read_range(offset, buffer)
        except ApiError as error:
            length = len(buffer)
            place, lost = offset, length
            if error.code in _LOCAL:
                place, lost = failing_unit(offset, length, self._unit, self._fails)
            raise read_error(error, self.name, place, lost) from error

    def _read_range(self, offset: int, buffer: memoryview) -> None:
        """Read a range by whole units; raises ApiError, and SourceReadError where the device ends in it."""
        done = 0
        while done < len(buffer):
            at = offset + done
            first = at - at % self._unit
            end = offset + len(buffer)
            # A device fails what reaches behind its end, which needn't be that of a physical sector.
            span = min(end + -end % self._unit, self.size, first + _STEP) - first
            whole = self._memory.take(span)
            got = self._read_once(first, whole)
            piece = whole[at - first : min(got, end - first)]
            if not piece:
                raise SourceReadError(
                    f"ends at {first + got}, {self.size} bytes were expected",
                    path=self.path,
                    offset=at,
                    length=end - at,
                )
            buffer[done : done + len(piece)] = piece
            done += len(piece)

    def _read_once(self, offset: int, buffer: memoryview) -> int:
        if self._handle is None:
            raise ApiError(calls.ERROR_INVALID_HANDLE, "ReadFile", "it is closed")
        return self._api.read_file(self._handle, offset, buffer)

    def _fails(self, start: int, end: int) -> bool:
        try:
            self._read_range(start, memoryview(bytearray(end - start)))
        except ApiError:
            return True
        return False


def open_volume(api: Api, device: str, *, unit: int, direct: bool = False) -> DeviceReader:
    """Open a volume so that all of it can be read, also behind its file system; raises SourceReadError."""
    reader = DeviceReader(api, device, unit=unit, direct=direct)
    try:
        reader.control(layouts.FSCTL_ALLOW_EXTENDED_DASD_IO)
    except ApiError as error:
        if error.code not in _NO_FILE_SYSTEM:
            reader.close()
            raise read_error(error, device) from error
    return reader
