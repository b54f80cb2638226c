"""A stand-in for winfsp-x64.dll and the parts of Windows that winfspy calls, for a cffi of this system.

Each function is entered through a C function pointer of its real type, so that arguments are converted, and
refused, as on Windows. Written from "WinFsp API", https://winfsp.dev/apiref/, and the functions' pages on
Microsoft Learn.
"""

import re
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from tests.mounters.winfsp.faults import Faults
from tests.mounters.winfsp.native_threads import NativeThreads
from tests.mounters.winfsp.nt import NtError, Status
from tests.mounters.winfsp.pe_types import EXTERN_PYTHON, FUNCTIONS, Types, make_ffi

DISK, NET = "WinFsp.Disk", "WinFsp.Net"
CONSTANTS = {  # by the C compiler into code: "NtCreateFile function" and others, Microsoft Learn
    "STD_ERROR_HANDLE": 0xFFFFFFF4,
    "WFSPY_FILE_DIRECTORY_FILE": 0x1,
    "WFSPY_FILE_WRITE_THROUGH": 0x2,
    "WFSPY_FILE_SEQUENTIAL_ONLY": 0x4,
    "WFSPY_FILE_NO_INTERMEDIATE_BUFFERING": 0x8,
    "WFSPY_FILE_SYNCHRONOUS_IO_ALERT": 0x10,
    "WFSPY_FILE_SYNCHRONOUS_IO_NONALERT": 0x20,
    "WFSPY_FILE_NON_DIRECTORY_FILE": 0x40,
    "WFSPY_FILE_CREATE_TREE_CONNECTION": 0x80,
    "WFSPY_FILE_COMPLETE_IF_OPLOCKED": 0x100,
    "WFSPY_FILE_NO_EA_KNOWLEDGE": 0x200,
    "WFSPY_FILE_RANDOM_ACCESS": 0x800,
    "WFSPY_FILE_DELETE_ON_CLOSE": 0x1000,
    "WFSPY_FILE_OPEN_BY_FILE_ID": 0x2000,
    "WFSPY_FILE_OPEN_FOR_BACKUP_INTENT": 0x4000,
    "WFSPY_FILE_OPEN_REQUIRING_OPLOCK": 0x10000,
    "WFSPY_FILE_RESERVE_OPFILTER": 0x100000,
    "WFSPY_FILE_OPEN_REPARSE_POINT": 0x200000,
    "WFSPY_FILE_ATTRIBUTE_INVALID_FILE_ATTRIBUTES": 0xFFFFFFFF,
    "WFSPY_STRING_SECURITY_DESCRIPTOR_REVISION": 1,
    "WFSPY_OWNER_SECURITY_INFORMATION": 1,
    "WFSPY_GROUP_SECURITY_INFORMATION": 2,
    "WFSPY_DACL_SECURITY_INFORMATION": 4,
    "WFSPY_SACL_SECURITY_INFORMATION": 8,
}
NUMBERS_BEFORE_FLAGS = (
    "SectorSize", "SectorsPerAllocationUnit", "MaxComponentLength", "VolumeCreationTime",
    "VolumeSerialNumber", "TransactTimeout", "IrpTimeout", "IrpCapacity", "FileInfoTimeout",
)  # fmt: skip
FLAGS_AT, FLAGS_BEHIND_AT = (
    36,
    456,
)  # offsets in FSP_FSCTL_VOLUME_PARAMS, whose bit fields cffi's tables leave out
RESERVED_BITS = {18: 6, 24: 3}  # arguments that are wider than a bit: um_reserved_flags, km_reserved_flags
FREED = 0xDD
_THREADS = 8


class FakeFFI:
    """cffi's FFI as the extension has it: with ``def_extern``."""

    def __init__(self, ffi: Any, library: "FakeLibrary") -> None:
        self._ffi = ffi
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ffi, name)

    def def_extern(self, name: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def take(function: Callable[..., Any]) -> Callable[..., Any]:
            self._library.define(name or function.__name__, function)
            return function

        return take


class FakeVolume:
    """A file system as the DLL knows it."""

    def __init__(self, library: "FakeLibrary", device: str, parameters: Any, interface: Any) -> None:
        self.library = library
        self.ffi = ffi = library.ffi
        self.faults = library.faults
        self.device = device
        self.parameters = ffi.new("FSP_FSCTL_VOLUME_PARAMS *", parameters[0])
        self.pointer = ffi.new("FSP_FILE_SYSTEM *")
        self.pointer.Interface = interface
        self.mountpoint = ""
        self.threads: NativeThreads | None = None
        self.deleted = False

    @property
    def running(self) -> bool:
        return self.threads is not None and not self.threads.ended

    def call(self, operation: str, *arguments: Any) -> int:
        """Call an operation of the adapter from a native thread, and return its status."""
        threads = self.threads
        if threads is None or threads.ended:
            raise NtError(Status.VOLUME_DISMOUNTED, operation)
        function = getattr(self.pointer.Interface, operation)
        if not function:
            raise NtError(Status.INVALID_DEVICE_REQUEST, operation)

        def task() -> Any:
            return function(self.pointer, *arguments)

        try:
            return threads.submit(task).result() or 0
        except CancelledError:
            raise NtError(Status.CANCELLED, operation) from None


class FakeLibrary:
    """``lib`` of the extension. ``volumes`` are those that were made, newest last, until they are deleted."""

    def __init__(self, types: Types, faults: Faults) -> None:
        plain = make_ffi(types)
        self.ffi = FakeFFI(plain, self)
        self.faults = faults
        self.volumes: list[FakeVolume] = []
        self.driver_is_there = True
        self.letters_in_use: set[str] = {"C:"}
        self.failures_of_stat: list[OSError] = []  # what the next questions for a mount point end with
        self.descriptors: dict[str, bytes] = {}  # by their text
        self._globals = types.globals
        self._cache: dict[str, Any] = {}
        self._owned: dict[int, Any] = {}  # memory given out, by address
        for name in ("DISK", "NET"):
            text = {"DISK": DISK, "NET": NET}[name]
            self._cache[f"WFSPY_FSP_FSCTL_{name}_DEVICE_NAME"] = plain.new("char16_t[]", text)

    def begin(self) -> None:
        """Be as a machine on which nothing has happened yet."""
        self.faults.take()
        self.driver_is_there = True
        self.letters_in_use = {"C:"}
        self.failures_of_stat.clear()

    def end(self) -> int:
        """Take away what is still mounted, and return how much it was."""
        left = list(self.volumes)
        for volume in left:
            self.do_FspFileSystemStopDispatcher(volume.pointer)
            self.do_FspFileSystemDelete(volume.pointer)
        return len(left)

    def __getattr__(self, name: str) -> Any:
        """Return what the extension has by this name."""
        cache = self.__dict__.get("_cache", {})
        if name in cache:
            return cache[name]
        if name in CONSTANTS:
            return CONSTANTS[name]
        kind, _ = self.__dict__.get("_globals", {}).get(name, (0, 0))
        if kind not in FUNCTIONS:
            raise AttributeError(name)
        function = type(self).__dict__.get(f"do_{name}")
        if function is None:
            raise NotImplementedError(f"nothing stands in for {name} yet")
        cache[name] = self._pointer(f"type_of_{name} *", function.__get__(self), name)
        return cache[name]

    def _pointer(self, c_type: str, function: Callable[..., Any], name: str) -> Any:
        def failed(kind: type[BaseException], error: BaseException, _: Any) -> None:
            self.faults.add(f"{name}: {kind.__name__}: {error}")

        return self.ffi.callback(c_type, function, onerror=failed)

    def define(self, name: str, function: Callable[..., Any]) -> None:
        """Give one of the extension's callbacks into Python its function."""
        kind, _ = self._globals[name]
        assert kind == EXTERN_PYTHON, name
        self._cache[name] = self._pointer(f"type_of_{name}", function, name)

    # The file system

    def do_configure_FSP_FSCTL_VOLUME_PARAMS(self, parameters: Any, *values: Any) -> None:
        for name, value in zip(NUMBERS_BEFORE_FLAGS, values, strict=False):
            setattr(parameters, name, value)
        values = values[len(NUMBERS_BEFORE_FLAGS) :]
        bits, at = 0, 0
        for number, value in enumerate(values[:25]):
            width = RESERVED_BITS.get(number, 1)
            bits |= (value & ((1 << width) - 1)) << at
            at += width
        raw = self.ffi.cast("uint8_t *", parameters)
        self.ffi.cast("uint32_t *", raw + FLAGS_AT)[0] = bits
        prefix, name = (self.ffi.string(value) for value in values[25:27])
        parameters.Prefix = prefix[:95]
        parameters.FileSystemName = name[:7]  # 16 bytes with the end: a quirk of the extension
        valid = sum((value & 1) << number for number, value in enumerate(values[27:31]))
        self.ffi.cast("uint32_t *", raw + FLAGS_BEHIND_AT)[0] = valid
        for name, value in zip(
            ("VolumeInfo", "DirInfo", "Security", "StreamInfo"), values[32:36], strict=True
        ):
            setattr(parameters, f"{name}Timeout", value)

    def do_FspFileSystemCreate(self, device: Any, parameters: Any, interface: Any, result: Any) -> int:
        if not self.driver_is_there:
            return Status.NO_SUCH_DEVICE
        volume = FakeVolume(self, self.ffi.string(device), parameters, interface)
        self.volumes.append(volume)
        result[0] = volume.pointer
        return Status.SUCCESS

    def do_FspFileSystemPreflight(self, device: Any, mountpoint: Any) -> int:
        if not self.driver_is_there:
            return Status.NO_SUCH_DEVICE
        return self._collision(self.ffi.string(mountpoint)) if mountpoint else Status.SUCCESS

    def do_FspFileSystemSetMountPoint(self, pointer: Any, mountpoint: Any) -> int:
        """Unlike the real one it refuses a letter that is in use."""
        volume, name = self._volume(pointer, "SetMountPoint"), self.ffi.string(mountpoint)
        status = self._collision(name)
        if status:
            return status
        if letter(name):
            self.letters_in_use.add(letter(name))
        elif volume.device == NET:
            return Status.INVALID_PARAMETER
        else:
            Path(name).mkdir()
        volume.mountpoint = name
        return Status.SUCCESS

    def _collision(self, name: str) -> int:
        if letter(name):
            return Status.OBJECT_NAME_COLLISION if letter(name) in self.letters_in_use else Status.SUCCESS
        if not name or not Path(name).parent.is_dir():
            return Status.OBJECT_PATH_NOT_FOUND
        return Status.OBJECT_NAME_COLLISION if Path(name).exists() else Status.SUCCESS

    def do_FspFileSystemMountPointF(self, pointer: Any) -> Any:
        return self.ffi.NULL

    def do_FspFileSystemStartDispatcher(self, pointer: Any, count: int) -> int:
        volume = self._volume(pointer, "StartDispatcher")
        volume.threads = NativeThreads(count or _THREADS)
        return Status.SUCCESS

    def do_FspFileSystemStopDispatcher(self, pointer: Any) -> None:
        volume = self._volume(pointer, "StopDispatcher")
        if volume.threads is None:
            return
        if volume.threads.is_one():
            self.faults.add("StopDispatcher called from a callback: it would wait for itself")
        elif not volume.threads.ended:
            volume.threads.finish()

    def do_FspFileSystemDelete(self, pointer: Any) -> None:
        volume = self._volume(pointer, "Delete")
        if volume.running:
            self.faults.add("Delete of a file system whose dispatcher runs")
            return
        self._unmount(volume)
        volume.deleted = True
        self.volumes.remove(volume)
        self._owned[int(self.ffi.cast("uintptr_t", volume.pointer))] = (
            volume  # so that nothing else comes there
        )
        self.ffi.memmove(volume.pointer, bytes([FREED]) * self.ffi.sizeof("FSP_FILE_SYSTEM"), 792)

    def do_FspFileSystemRemoveMountPoint(self, pointer: Any) -> None:
        self._unmount(self._volume(pointer, "RemoveMountPoint"))

    def _unmount(self, volume: FakeVolume) -> None:
        if letter(volume.mountpoint):
            self.letters_in_use.discard(letter(volume.mountpoint))
        elif volume.mountpoint:
            Path(volume.mountpoint).rmdir()
        volume.mountpoint = ""

    def do_FspFileSystemGetDispatcherResultF(self, pointer: Any, result: Any) -> None:
        result[0] = self._volume(pointer, "GetDispatcherResult").pointer.DispatcherResult

    def do_FspFileSystemSetDebugLogF(self, pointer: Any, mask: int) -> None:
        self._volume(pointer, "SetDebugLog").pointer.DebugLog = mask

    def do_FspFileSystemGetOpenFileInfo(self, file_info: Any) -> Any:
        return self.ffi.cast("FSP_FSCTL_OPEN_FILE_INFO *", file_info)

    def do_FspFileSystemAddDirInfo(self, info: Any, buffer: Any, length: int, used: Any) -> int:
        """Append an entry on the next multiple of 8, or the end mark; 0 where there is no room for it."""
        at = -(-used[0] // 8) * 8
        target = self.ffi.cast("uint8_t *", buffer) + at
        if not info:
            if at + 2 > length:
                return 0
            self.ffi.cast("uint16_t *", target)[0] = 0
            used[0] = at + 2
            return 1
        if at + info.Size > length:
            return 0
        self.ffi.memmove(target, info, info.Size)
        used[0] = at + info.Size
        return 1

    def _volume(self, pointer: Any, doing: str) -> FakeVolume:
        for volume in self.volumes:
            if volume.pointer == pointer:
                return volume
        raise LookupError(f"{doing} of a file system that is not there")

    # What else winfspy calls

    def do_FspVersion(self, version: Any) -> int:
        version[0] = 2 << 16
        return Status.SUCCESS

    def do_GetLastError(self) -> int:
        return 0

    def do_malloc(self, size: int) -> Any:
        return self.give(bytes(size))

    def give(self, data: bytes) -> Any:
        """Return memory that stays until it is freed."""
        memory = self.ffi.new("uint8_t[]", data or b"\0")
        self._owned[int(self.ffi.cast("uintptr_t", memory))] = memory
        return self.ffi.cast("void *", memory)

    def do_LocalFree(self, pointer: Any) -> Any:
        """Overwrite, and keep: who reads what was freed finds something else."""
        memory = self._owned.get(int(self.ffi.cast("uintptr_t", pointer)))
        if memory is not None:
            self.ffi.memmove(memory, bytes([FREED]) * len(memory), len(memory))
        elif pointer:
            self.faults.add("LocalFree of what was not given out")
        return self.ffi.NULL

    def do_ConvertStringSecurityDescriptorToSecurityDescriptorW(
        self, text: Any, revision: int, descriptor: Any, size: Any
    ) -> int:
        """Know the descriptors of ``descriptors`` only."""
        data = self.descriptors[self.ffi.string(text)]
        descriptor[0] = self.ffi.cast("SECURITY_DESCRIPTOR *", self.give(data))
        size[0] = len(data)
        return 1

    def do_GetSecurityDescriptorLength(self, descriptor: Any) -> int:
        memory = self._owned.get(int(self.ffi.cast("uintptr_t", descriptor)))
        return len(memory) if memory is not None else 20

    def do_IsValidSecurityDescriptor(self, descriptor: Any) -> int:
        return 1

    def do_wcslen(self, text: Any) -> int:
        at = 0
        while text[at] != "\0":
            at += 1
        return at


def letter(mountpoint: str) -> str:
    r"""Return the drive letter of ``X:`` or ``\\.\X:``, with its colon; "" for a directory."""
    found = re.fullmatch(r"(?:\\\\\.\\)?([A-Za-z]:)", mountpoint)
    return found[1].upper() if found else ""
