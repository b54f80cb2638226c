"""A stand-in for WinFsp's driver: it asks an adapter as the kernel would, and watches what it answers.

``Volume`` is what an application sees: names, handles, bytes, listings; refusals are NtError. What no driver
would forgive goes into ``faults``. Written from "WinFsp API", https://winfsp.dev/apiref/, and Windows'
documentation.

It runs over the real file system interface, wherever the adapter's callbacks come from: ``native`` calls an
operation from a thread that Python did not make.
"""

import fnmatch
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.mounters.winfsp import nt
from tests.mounters.winfsp.descriptors import USER, BadDescriptorError, Caller, caller, check_access, parse
from tests.mounters.winfsp.faults import Faults
from tests.mounters.winfsp.nt import Access, Attribute, Disposition, NtError, Options, Status

PAGE = 65536  # bytes of a listing that are asked for at once
DIR_INFO = 104  # bytes before the name in FSP_FSCTL_DIR_INFO
ROOM = 1024  # bytes for a descriptor, at the first time of asking
NAME_ROOM = 4096  # bytes for the name that an open gives back
NORMALIZED_MAX = 2048  # bytes; a longer one is ignored
GUARD, FILL = 4096, 0xA5
MOST_ENTRIES = 1_000_000
FLAGS = {  # bits of FSP_FSCTL_VOLUME_PARAMS at offset 36
    "case_sensitive_search": 0, "case_preserved_names": 1, "unicode_on_disk": 2, "persistent_acls": 3,
    "reparse_points": 4, "named_streams": 6, "hard_links": 7, "extended_attributes": 8, "read_only_volume": 9,
    "post_cleanup_when_modified_only": 10, "pass_query_directory_pattern": 11,
    "always_use_double_buffering": 12, "pass_query_directory_file_name": 13,
    "flush_and_purge_on_cleanup": 14, "device_control": 15,
    "um_file_context_is_user_context2": 16, "um_file_context_is_full_context": 17,
}  # fmt: skip


class Native(Protocol):
    """One file system below the driver: the DLL's part."""

    ffi: Any
    faults: Faults
    device: str
    mountpoint: str
    parameters: Any  # FSP_FSCTL_VOLUME_PARAMS *
    pointer: Any  # FSP_FILE_SYSTEM *

    @property
    def running(self) -> bool: ...

    def call(self, operation: str, *arguments: Any) -> int:
        """Call an operation from a native thread; its status. NtError where there is no dispatcher."""


@dataclass(frozen=True)
class Info:
    """FSP_FSCTL_FILE_INFO; times are FILETIME."""

    attributes: int
    reparse_tag: int
    allocated: int
    size: int
    created: int
    accessed: int
    written: int
    changed: int
    index: int

    @property
    def is_directory(self) -> bool:
        return bool(self.attributes & Attribute.DIRECTORY)


@dataclass(frozen=True)
class Found:
    name: str
    info: Info


@dataclass
class Handle:
    """What an application has opened."""

    volume: "Volume"
    context: Any
    name: str  # as GetFinalPathNameByHandle tells it
    granted: int
    info: Info
    closed: bool = field(default=False)

    def close(self) -> None:
        self.volume.close(self)

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Guarded:
    """A buffer that tells when somebody wrote beside it."""

    def __init__(self, volume: "Volume", size: int, what: str) -> None:
        self._volume, self._what, self.size = volume, what, size
        self._memory = volume.ffi.new("uint8_t[]", bytes([FILL]) * (size + 2 * GUARD))

    def at(self, c_type: str = "void *") -> Any:
        return self._volume.ffi.cast(c_type, self._memory + GUARD)

    def bytes(self, length: int | None = None) -> bytes:
        """Return the head of the buffer, after a look at its guards."""
        whole = bytes(self._volume.ffi.buffer(self._memory, self.size + 2 * GUARD))
        guard = bytes([FILL]) * GUARD
        if whole[:GUARD] != guard or whole[GUARD + self.size : GUARD + self.size + GUARD] != guard:
            self._volume.faults.add(f"{self._what}: written beside the buffer of {self.size} bytes")
        return whole[GUARD : GUARD + (self.size if length is None else min(length, self.size))]


class Volume:
    """A mounted file system, as applications see it."""

    def __init__(self, native: Native, who: Caller | None = None) -> None:
        self.native = native
        self.ffi = native.ffi
        self.faults = native.faults
        self.who = who or caller(USER)
        self.page = PAGE
        self.room = ROOM
        self.calls: list[str] = []  # the operations that were called, in order
        self.granted_by_open: list[int] = []
        self._open: set[int] = set()
        self._guard = threading.Lock()
        if not self.flag("um_file_context_is_user_context2"):
            self.faults.add("contexts belong to files, not to handles: a second open replaces the first's")

    # What the volume says of itself

    def flag(self, name: str) -> bool:
        raw = self.ffi.cast("uint8_t *", self.native.parameters)
        return bool(self.ffi.cast("uint32_t *", raw + 36)[0] >> FLAGS[name] & 1)

    def parameter(self, name: str) -> Any:
        value = getattr(self.native.parameters, name)
        return self.ffi.string(value) if name in ("Prefix", "FileSystemName") else value

    @property
    def is_case_sensitive(self) -> bool:
        return self.flag("case_sensitive_search")

    def volume_info(self) -> tuple[int, int, str]:
        """Return total and free bytes and the label."""
        room = Guarded(self, self.ffi.sizeof("FSP_FSCTL_VOLUME_INFO"), "GetVolumeInfo")
        self._call("GetVolumeInfo", room.at("FSP_FSCTL_VOLUME_INFO *"))
        room.bytes()
        info = room.at("FSP_FSCTL_VOLUME_INFO *")
        if info.VolumeLabelLength > 64:
            self.faults.add("a label of more than 32 units")
        label = bytes(self.ffi.buffer(info.VolumeLabel, 64))[: info.VolumeLabelLength]
        return info.TotalSize, info.FreeSize, label.decode("utf-16-le")

    # Opening

    def open(
        self,
        path: str,
        access: int = nt.READ | Access.SYNCHRONIZE,
        options: int = 0,
        *,
        disposition: Disposition = Disposition.OPEN,
        who: Caller | None = None,
        kernel: bool = False,
    ) -> Handle:
        """Open as NtCreateFile does; ``kernel``: from within the kernel, which no access check holds up."""
        who = who or self.who
        asked = self._asked(path)
        if disposition == Disposition.CREATE:
            return self._create(path, access, options, who, kernel)
        try:
            granted = self._check(asked, access, options, disposition, who, kernel)
        except NtError as error:
            missing = (Status.OBJECT_NAME_NOT_FOUND,)
            if disposition in (Disposition.OPEN, Disposition.OVERWRITE) or error.status not in missing:
                raise
            return self._create(path, access, options, who, kernel)
        return self._opened(path, "Open", (options | disposition << 24, granted))

    def _asked(self, path: str) -> str:
        """Return a path as the driver passes it on; OBJECT_NAME_INVALID where it would not."""
        if not path.startswith("\\"):
            raise NtError(Status.OBJECT_NAME_INVALID, path)
        for part in path[1:].split("\\") if path != "\\" else ():
            if not part or nt.FORBIDDEN & set(part) or nt.units(part) > 255:
                raise NtError(Status.OBJECT_NAME_INVALID, path)
        return path if self.is_case_sensitive else nt.upper(path)

    def _check(
        self, asked: str, access: int, options: int, disposition: Disposition, who: Caller, kernel: bool
    ) -> int:
        """Ask for attributes and descriptor, and judge as AccessCheck does; the rights that are granted."""
        if not who.traverses:
            parts = asked.split("\\")
            for count in range(1, len(parts)):
                self._judge("\\".join(parts[:count]) or "\\", Access.EXECUTE, who)
        access = wanted = specific(access)
        if options & Options.DELETE_ON_CLOSE:
            wanted |= Access.DELETE
        if disposition in (Disposition.SUPERSEDE, Disposition.OVERWRITE, Disposition.OVERWRITE_IF):
            wanted |= Access.WRITE_DATA
        attributes, granted = self._judge(asked, wanted, None if kernel else who)
        if options & Options.DIRECTORY_FILE and not attributes & Attribute.DIRECTORY:
            raise NtError(Status.NOT_A_DIRECTORY, asked)
        if options & Options.NON_DIRECTORY_FILE and attributes & Attribute.DIRECTORY:
            raise NtError(Status.FILE_IS_A_DIRECTORY, asked)
        # What is replaced or deleted needs a right that the handle does not get for it.
        return granted if access & Access.MAXIMUM_ALLOWED else granted & access

    def _judge(self, asked: str, wanted: int, who: Caller | None) -> tuple[int, int]:
        attributes, data = self.security_by_name(asked)
        if who is None:
            return attributes, wanted
        return attributes, check_access(self._parsed(data, asked), who, wanted)

    def _parsed(self, data: bytes, of: str) -> Any:
        try:
            return parse(data)
        except BadDescriptorError as error:
            self.faults.add(f"no security descriptor of {of}: {error}")
            raise NtError(Status.INVALID_SECURITY_DESCR, of) from error

    def security_by_name(self, asked: str) -> tuple[int, bytes]:
        """Return attributes and descriptor as GetSecurityByName tells them, with a second try for size."""
        size = self.ffi.new("SIZE_T *", self.room)
        attributes = self.ffi.new("UINT32 *", 0xFFFFFFFF)
        for _ in range(2):
            room = Guarded(self, size[0], "GetSecurityByName")
            before = size[0]
            status = self._status(
                "GetSecurityByName", self._text(asked), attributes, room.at("SECURITY_DESCRIPTOR *"), size
            )
            room.bytes()
            if status == Status.BUFFER_OVERFLOW and size[0] <= before:
                self.faults.add("a descriptor is too large for its buffer, but not larger")
            if status != Status.BUFFER_OVERFLOW:
                break
        if status:
            raise NtError(status, f"GetSecurityByName {asked}")
        if size[0] > room.size:
            self.faults.add("a descriptor that is larger than its buffer")
        return attributes[0], room.bytes(size[0])

    def _opened(self, path: str, operation: str, arguments: tuple[Any, ...]) -> Handle:
        room = Guarded(self, self.ffi.sizeof("FSP_FSCTL_OPEN_FILE_INFO"), operation)
        info = room.at("FSP_FSCTL_OPEN_FILE_INFO *")
        self.ffi.memmove(info, bytes(room.size), room.size)
        name = Guarded(self, NAME_ROOM, "NormalizedName")
        info.NormalizedName, info.NormalizedNameSize = name.at("PWSTR"), NAME_ROOM
        context = self.ffi.new("PVOID *")
        asked = self._asked(path)
        status = self._status(
            operation, self._text(asked), *arguments, context, self.ffi.addressof(info, "FileInfo")
        )
        room.bytes()
        if status:
            raise NtError(status, f"{operation} {path}")
        number = int(self.ffi.cast("uintptr_t", context[0]))
        with self._guard:
            if number in self._open or not number:
                self.faults.add(f"{operation} {path}: not a context of its own")
            self._open.add(number)
        said = self._normalized(info, name, asked)
        handle = Handle(self, context[0], said, arguments[1], self._info(info.FileInfo, path))
        if not self.is_case_sensitive and nt.upper(said) != asked:
            self.close(handle)
            raise NtError(Status.OBJECT_NAME_INVALID, f"{path} opened as {said}")
        return handle

    def _normalized(self, info: Any, room: Guarded, asked: str) -> str:
        size = info.NormalizedNameSize
        room.bytes()
        if size == NAME_ROOM or size > NORMALIZED_MAX:
            return asked
        if size % 2:
            self.faults.add("a name of an odd number of bytes")
        return room.bytes(size).decode("utf-16-le", "surrogatepass")

    def _create(self, path: str, access: int, options: int, who: Caller, kernel: bool) -> Handle:
        parent = path.rpartition("\\")[0] or "\\"
        if not kernel:
            right = Access.APPEND_DATA if options & Options.DIRECTORY_FILE else Access.WRITE_DATA
            attributes, _ = self._judge(self._asked(parent), right, who)
            if not attributes & Attribute.DIRECTORY:
                raise NtError(Status.OBJECT_PATH_NOT_FOUND, path)
        attributes = Attribute.DIRECTORY if options & Options.DIRECTORY_FILE else Attribute.NORMAL
        arguments = (options | Disposition.CREATE << 24, access, attributes, self.ffi.NULL, 0)
        return self._opened(path, "Create", arguments)

    def close(self, handle: Handle) -> None:
        if handle.closed:
            return
        handle.closed = True
        number = int(self.ffi.cast("uintptr_t", handle.context))
        with self._guard:
            self._open.discard(number)
        if not self.native.running:
            return
        if not self.flag("post_cleanup_when_modified_only"):
            self._status("Cleanup", handle.context, self.ffi.NULL, 0)
        self._status("Close", handle.context)

    @property
    def leaked(self) -> int:
        """Return how many contexts the adapter keeps whose handle is closed, or was never given."""
        operations = self.ffi.from_handle(self.native.pointer.UserContext)
        return len(operations._opened_objs) - len(self._open)

    # Opened files

    def info(self, handle: Handle) -> Info:
        room = Guarded(self, self.ffi.sizeof("FSP_FSCTL_FILE_INFO"), "GetFileInfo")
        self._call("GetFileInfo", handle.context, room.at("FSP_FSCTL_FILE_INFO *"))
        room.bytes()
        return self._info(room.at("FSP_FSCTL_FILE_INFO *"), handle.name)

    def read(self, handle: Handle, offset: int, length: int) -> bytes:
        """Return bytes of an open file; END_OF_FILE where there are none."""
        if not handle.granted & Access.READ_DATA:
            raise NtError(Status.ACCESS_DENIED, "read")
        room = Guarded(self, length, "Read")
        done = self.ffi.new("ULONG *", 0)
        status = self._status("Read", handle.context, room.at(), offset, length, done)
        data = room.bytes(done[0])
        if done[0] > length:
            self.faults.add(f"Read told of {done[0]} bytes where {length} were asked for")
        if status:
            raise NtError(status, f"Read {handle.name} at {offset}")
        if not done[0] and length:
            self.faults.add(f"Read of {handle.name} at {offset}: no bytes and no end of file")
            raise NtError(Status.UNEXPECTED_IO_ERROR, f"endless reading of {handle.name}")
        return data

    def security(self, handle: Handle) -> Any:
        """Return the descriptor of what is open."""
        size = self.ffi.new("SIZE_T *", 4096)
        room = Guarded(self, 4096, "GetSecurity")
        self._call("GetSecurity", handle.context, room.at("SECURITY_DESCRIPTOR *"), size)
        if size[0] > 4096:
            self.faults.add("a descriptor that is larger than its buffer")
        return self._parsed(room.bytes(size[0]), handle.name)

    def pages(self, handle: Handle, marker: str | None = None) -> Iterator[list[Found]]:
        """Yield a directory's pages, each as ReadDirectory tells it, behind a marker."""
        while True:
            room = Guarded(self, self.page, "ReadDirectory")
            done = self.ffi.new("ULONG *", 0)
            text = self.ffi.NULL if marker is None else self._text(marker)
            self._call("ReadDirectory", handle.context, self.ffi.NULL, text, room.at(), self.page, done)
            found, is_last = self._page(room.bytes(done[0]))
            if done[0] > self.page:
                self.faults.add("a page of a listing that is larger than its buffer")
            yield found
            if is_last or not found:
                return
            marker = found[-1].name

    def _page(self, data: bytes) -> tuple[list[Found], bool]:
        found: list[Found] = []
        at = 0
        while at + 2 <= len(data):
            size = int.from_bytes(data[at : at + 2], "little")
            if size == 0:
                return found, True
            if size < DIR_INFO or at + size > len(data):
                self.faults.add("an entry of a listing that is cut off")
                return found, True
            found.append(self._entry(data[at : at + size]))
            at += -(-size // 8) * 8
        return found, False

    def _entry(self, data: bytes) -> Found:
        raw = self.ffi.from_buffer("uint8_t[]", data)
        name = data[DIR_INFO:].decode("utf-16-le", "surrogatepass")
        if not 0 < nt.units(name) <= self.parameter("MaxComponentLength"):
            raise NtError(Status.OBJECT_NAME_INVALID, f"listing with {name}")
        return Found(name, self._info(self.ffi.cast("FSP_FSCTL_DIR_INFO *", raw).FileInfo, name))

    def read_directory(self, handle: Handle) -> list[Found]:
        """Return all entries of an open directory, with those of itself and its parent."""
        entries: list[Found] = []
        seen: set[str] = set()
        for page in self.pages(handle):
            for entry in page:
                key = entry.name if self.is_case_sensitive else nt.upper(entry.name)
                if key in seen:
                    self.faults.add(f"listed twice: {entry.name}")
                    raise NtError(Status.FILE_CORRUPT_ERROR, f"endless listing of {handle.name}")
                seen.add(key)
                if not entry.info.is_directory and nt.FORBIDDEN & set(entry.name):
                    self.faults.add(f"listed, but can't be opened: {entry.name!r}")
            entries += page
        dots = [entry.name for entry in entries if entry.name in (".", "..")]
        if dots != ([] if handle.name == "\\" else [".", ".."]) or dots != [
            e.name for e in entries[: len(dots)]
        ]:
            self.faults.add(f"{dots} in the listing of {handle.name}")
        return entries

    # What programs do

    def list(self, path: str, pattern: str = "*", who: Caller | None = None) -> list[Found]:
        """Return what FindFirstFile and its successors find, without dots; NO_SUCH_FILE for no such name."""
        options = Options.DIRECTORY_FILE | Options.OPEN_FOR_BACKUP_INTENT
        with self.open(path, nt.LIST, options, who=who) as handle:
            is_name = not set(pattern) & set('*?<>"')
            if is_name and self.flag("pass_query_directory_file_name"):
                return [self.find_in(handle, pattern)]
            entries = [entry for entry in self.read_directory(handle) if entry.name not in (".", "..")]
        wanted = nt.upper(pattern)
        matching = [entry for entry in entries if fnmatch.fnmatchcase(nt.upper(entry.name), escaped(wanted))]
        if not matching and pattern != "*":
            raise NtError(Status.NO_SUCH_FILE, pattern)
        return matching

    def find_in(self, handle: Handle, name: str) -> Found:
        """Return what GetDirInfoByName says of a name in an open directory."""
        asked = name if self.is_case_sensitive else nt.upper(name)
        room = Guarded(self, self.ffi.sizeof("FSP_FSCTL_DIR_INFO") + 255 * 2, "GetDirInfoByName")
        info = room.at("FSP_FSCTL_DIR_INFO *")
        status = self._status("GetDirInfoByName", handle.context, self._text(asked), info)
        data = room.bytes()
        if status:
            not_found = status == Status.OBJECT_NAME_NOT_FOUND
            raise NtError(Status.NO_SUCH_FILE if not_found else status, f"find {name}")
        if not DIR_INFO < info.Size <= room.size:
            self.faults.add(f"GetDirInfoByName of {name}: a size of {info.Size}")
            raise NtError(Status.INVALID_PARAMETER, name)
        return self._entry(data[: info.Size])

    def find(self, path: str) -> Found:
        """Return what FindFirstFile finds of one name: as it is stored."""
        parent, _, name = path.rpartition("\\")
        (found,) = self.list(parent or "\\", name)
        return found

    def stat(self, path: str, who: Caller | None = None) -> Info:
        with self.open(path, Access.READ_ATTRIBUTES | Access.SYNCHRONIZE, who=who) as handle:
            info = self.info(handle)
            if info != handle.info:
                self.faults.add(f"{path}: another file by GetFileInfo than by Open")
            return info

    def content(self, path: str, step: int = 1 << 20) -> bytes:
        """Return a file's bytes, as a program that copies it reads them."""
        options = Options.NON_DIRECTORY_FILE | Options.SEQUENTIAL_ONLY
        pieces = []
        with self.open(path, Access.GENERIC_READ | Access.SYNCHRONIZE, options) as handle:
            offset = 0
            while True:
                try:
                    pieces.append(self.read(handle, offset, step))
                except NtError as error:
                    if error.status != Status.END_OF_FILE:
                        raise
                    return b"".join(pieces)
                offset += len(pieces[-1])

    def walk(self, path: str = "\\") -> Iterator[tuple[str, Found]]:
        """Yield everything below a directory, with its path."""
        for entry in self.list(path):
            where = f"{path.rstrip(chr(92))}\\{entry.name}"
            yield where, entry
            if entry.info.is_directory:
                yield from self.walk(where)

    # What changes things: each comes to the adapter itself, as from within the kernel

    def create(self, path: str, *, directory: bool = False, kernel: bool = True) -> Handle:
        options = Options.DIRECTORY_FILE if directory else Options.NON_DIRECTORY_FILE
        return self.open(path, nt.WRITE, options, disposition=Disposition.CREATE, kernel=kernel)

    def write(self, handle: Handle, offset: int, data: bytes) -> None:
        done = self.ffi.new("ULONG *", 0)
        buffer = self.ffi.from_buffer(data)
        self._call("Write", handle.context, buffer, offset, len(data), 0, 0, done, self._file_info())

    def overwrite(self, handle: Handle) -> None:
        self._call("Overwrite", handle.context, 0, 0, 0, self._file_info())

    def set_size(self, handle: Handle, size: int) -> None:
        self._call("SetFileSize", handle.context, size, 0, self._file_info())

    def set_times(self, handle: Handle) -> None:
        self._call("SetBasicInfo", handle.context, 0xFFFFFFFF, 1, 1, 1, 1, self._file_info())

    def delete(self, handle: Handle) -> None:
        self._call("CanDelete", handle.context, self._text(handle.name))

    def rename(self, handle: Handle, new: str, *, replace: bool = False) -> None:
        self._call("Rename", handle.context, self._text(handle.name), self._text(new), int(replace))

    def set_security(self, handle: Handle, descriptor: bytes) -> None:
        data = self.ffi.from_buffer(descriptor)
        self._call("SetSecurity", handle.context, 4, self.ffi.cast("SECURITY_DESCRIPTOR *", data))

    def set_label(self, label: str) -> None:
        room = self.ffi.new("FSP_FSCTL_VOLUME_INFO *")
        self._call("SetVolumeLabel", self._text(label), room)

    def flush(self, handle: Handle) -> None:
        self._call("Flush", handle.context, self._file_info())

    def reparse_point(self, handle: Handle) -> bytes:
        size = self.ffi.new("SIZE_T *", 16384)
        room = Guarded(self, 16384, "GetReparsePoint")
        self._call("GetReparsePoint", handle.context, self._text(handle.name), room.at(), size)
        return room.bytes(size[0])

    def set_reparse_point(self, handle: Handle, data: bytes) -> None:
        buffer = self.ffi.from_buffer(data)
        self._call("SetReparsePoint", handle.context, self._text(handle.name), buffer, len(data))

    def delete_reparse_point(self, handle: Handle, data: bytes) -> None:
        buffer = self.ffi.from_buffer(data)
        self._call("DeleteReparsePoint", handle.context, self._text(handle.name), buffer, len(data))

    # Below

    def _file_info(self) -> Any:
        return self.ffi.new("FSP_FSCTL_FILE_INFO *")

    def _text(self, text: str) -> Any:
        """Return a text for the adapter; what lies behind it is no part of it."""
        data = text.encode("utf-16-le", "surrogatepass")
        memory = self.ffi.new("WCHAR[]", nt.units(text) + 1)
        self.ffi.memmove(memory, data, len(data))
        return memory

    def _status(self, operation: str, *arguments: Any) -> int:
        self.calls.append(operation)
        status = self.native.call(operation, *arguments)
        if status == Status.UNEXPECTED_IO_ERROR:
            self.faults.add(f"{operation}: the adapter's own fault")
        return status

    def _call(self, operation: str, *arguments: Any) -> None:
        status = self._status(operation, *arguments)
        if status:
            raise NtError(status, operation)

    def _info(self, info: Any, of: str) -> Info:
        unit = max(self.parameter("SectorSize") * self.parameter("SectorsPerAllocationUnit"), 1)
        found = Info(
            info.FileAttributes, info.ReparseTag, info.AllocationSize, info.FileSize, info.CreationTime,
            info.LastAccessTime, info.LastWriteTime, info.ChangeTime, info.IndexNumber,
        )  # fmt: skip
        if found.allocated % unit or found.allocated < found.size:
            self.faults.add(f"{of}: {found.allocated} bytes allocated for {found.size}")
        if found.reparse_tag and not found.attributes & Attribute.REPARSE_POINT:
            self.faults.add(f"{of}: a reparse tag without the attribute")
        return found


def specific(access: int) -> int:
    """Return rights with the generic ones as those of files."""
    for generic, rights in nt.GENERIC.items():
        if access & generic:
            access = access & ~generic | rights
    return access


def escaped(pattern: str) -> str:
    """Return a pattern of Windows as one of fnmatch: square brackets mean themselves."""
    return pattern.replace("[", "[[]")


@contextmanager
def refused(*statuses: Status) -> Iterator[None]:
    """Expect a refusal with one of some statuses."""
    try:
        yield
    except NtError as error:
        assert error.status in statuses, error
    else:
        raise AssertionError(f"not refused; expected {statuses}")
