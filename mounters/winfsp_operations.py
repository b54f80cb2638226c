"""What the driver asks, in terms of a tree. Nothing can be written.

Several callbacks run at once, in native threads. An open file or directory is a small object that holds no
reader: Windows keeps files open for as long as its cache likes.
"""

import logging
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

from mounters.tree import Attributes, Entry, NodeType, Tree
from mounters.winfsp_binding import load
from mounters.winfsp_names import cut
from mounters.winfsp_nodes import Directory, Node, Nodes, file_attributes
from mounters.winfsp_readers import Readers
from mounters.winfsp_security import for_reading, is_usable
from mounters.winfsp_statuses import Status, status_of
from mounters.winfsp_views import Rows

log = logging.getLogger(__name__)

BINDING = load()
_winfspy, _ffi, _lib = BINDING
_NTStatusError = _winfspy.NTStatusError

SECTOR = 512  # bytes
ALLOCATION_UNIT = 4096  # bytes
_LONGEST_LABEL = 32  # UTF-16 units
_EPOCH = 116_444_736_000_000_000  # 1970 in FILETIME: 100 ns since 1601
_LAST_TIME = 2**63 - 1
_ZERO_INODE = 2**64 - 2  # Windows takes 0 for "none"; a tree's numbers end at 2**63
_ACL = "system.ntfs_acl"

# NtCreateFile, https://learn.microsoft.com/en-us/windows/win32/api/winternl/nf-winternl-ntcreatefile
_DIRECTORY_FILE, _NON_DIRECTORY_FILE, _DELETE_ON_CLOSE = 0x1, 0x40, 0x1000
_SUPERSEDE, _OVERWRITE, _OVERWRITE_IF = 0, 4, 5
_READING = 0x1 | 0x20  # FILE_READ_DATA, FILE_EXECUTE
_WRITING = 0x2 | 0x4 | 0x10 | 0x40 | 0x100 | 0x10000  # data, append, EAs, children, attributes, DELETE

_Result = TypeVar("_Result")


class Context:
    """An open file or directory."""

    __slots__ = ("info", "node", "path", "rows")

    def __init__(self, node: Node, path: str, info: dict[str, int]) -> None:
        self.node = node
        self.path = path  # as it is shown
        self.info = info
        self.rows: Rows | None = None  # of the listing that is under way


def _refuse(status: Status) -> Exception:
    return _NTStatusError(status)  # type: ignore[no-any-return]


def _answering(operation: Callable[..., _Result]) -> Callable[..., _Result]:
    """Turn what the tree raises into statuses; the first argument says what it is about."""

    @wraps(operation)
    def answer(self: "Operations", about: "str | Context", *arguments: Any) -> _Result:
        try:
            return operation(self, about, *arguments)
        except _NTStatusError:
            raise
        except Exception as error:
            where = about.path if isinstance(about, Context) else about
            shown = " ".join(repr(argument) for argument in (where, *arguments))
            raise _refuse(status_of(error, operation.__name__, shown)) from None

    return answer


class Operations(_winfspy.BaseFileSystemOperations):  # type: ignore[misc,name-defined]
    """The driver's requests; see WinFsp's FSP_FILE_SYSTEM_INTERFACE, https://winfsp.dev/apiref."""

    def __init__(self, tree: Tree, label: str, descriptor: bytes, *, original_security: bool) -> None:
        super().__init__()
        self._tree = tree
        self._label = cut(label.encode("utf-16-le", "replace").decode("utf-16-le"), _LONGEST_LABEL)
        self._descriptor = descriptor
        self._original_security = original_security
        self._nodes = Nodes(tree)
        self._readers = Readers(tree)

    def close_all(self) -> None:
        """Release what is open: no close comes for it once the driver has gone."""
        self._opened_objs.clear()
        self._readers.close_all()

    # The volume

    def get_volume_info(self) -> dict[str, Any]:
        """Return sizes and label."""
        try:
            size = self._tree.size()
        except Exception as error:
            raise _refuse(status_of(error, "size of", "the volume")) from None
        return {
            "total_size": _allocation(max(size, ALLOCATION_UNIT)),
            "free_size": 0,
            "volume_label": self._label,
        }

    # Names

    @_answering
    def get_security_by_name(self, file_name: str) -> tuple[int, bytes, int]:
        """Return attributes and descriptor: what the driver checks rights by before it opens."""
        node, _ = self._nodes.resolve(file_name)
        descriptor = self._security(node)
        if descriptor is not self._descriptor:
            descriptor = for_reading(descriptor)
        return file_attributes(node.attributes), descriptor, len(descriptor)

    @_answering
    def get_dir_info_by_name(self, context: Context, file_name: str) -> dict[str, Any]:
        """Return what a listing would say of one name."""
        directory = _directory_of(context)
        view = self._nodes.view(directory)
        at = view.find(file_name)
        if at is None:
            raise _refuse(Status.OBJECT_NAME_NOT_FOUND)
        node = self._nodes.child(directory, view.entries[at])
        return {**_info(node.attributes), "file_name": view.names[at]}

    def ll_get_dir_info_by_name(self, file_context: Any, file_name: Any, dir_info: Any) -> int:
        """Give the name as it is stored: the driver asks in upper case, and winfspy repeats that."""
        try:
            found = self.get_dir_info_by_name(_ffi.from_handle(file_context), _ffi.string(file_name))
        except _NTStatusError as error:
            return int(error.value)
        name = found["file_name"].encode("utf-16-le")
        _ffi.memmove(dir_info.FileNameBuf, name, len(name))
        dir_info.Size = _ffi.sizeof("FSP_FSCTL_DIR_INFO") + len(name)
        _winfspy.operations.configure_file_info(dir_info.FileInfo, **found)
        return 0

    # Opening

    @_answering
    def open(self, file_name: str, create_options: int, granted_access: int) -> Context:
        """Open for reading; refuse everything that announces a change."""
        disposition = create_options >> 24
        if (
            disposition in (_SUPERSEDE, _OVERWRITE, _OVERWRITE_IF)
            or create_options & _DELETE_ON_CLOSE
            or granted_access & _WRITING
        ):
            raise _refuse(Status.MEDIA_WRITE_PROTECTED)
        node, path = self._nodes.resolve(file_name)
        if node.directory is None and create_options & _DIRECTORY_FILE:
            raise _refuse(Status.NOT_A_DIRECTORY)
        if node.directory is not None and create_options & _NON_DIRECTORY_FILE:
            raise _refuse(Status.FILE_IS_A_DIRECTORY)
        if node.attributes.type is NodeType.OTHER and granted_access & _READING:
            raise _refuse(Status.ACCESS_DENIED)  # there is nothing to read in a device or a socket
        context = Context(node, path, _info(node.attributes))
        self._readers.opened(node.attributes.inode)
        return context

    def ll_open(
        self, file_name: Any, create_options: int, granted_access: int, p_file_context: Any, file_info: Any
    ) -> int:
        """Tell the driver the path as it is stored: it would go on with the one it was asked for."""
        status: int = super().ll_open(file_name, create_options, granted_access, p_file_context, file_info)
        if status == 0:
            name = _ffi.from_handle(p_file_context[0]).path.encode("utf-16-le")
            opened = _lib.FspFileSystemGetOpenFileInfo(file_info)
            if len(name) <= opened.NormalizedNameSize:  # the room that there is
                _ffi.memmove(opened.NormalizedName, name, len(name))
                opened.NormalizedNameSize = len(name)
        return status

    def close(self, context: Context) -> None:
        """Let go of an open file."""
        context.rows = None
        self._readers.closed(context.node.attributes.inode)

    def cleanup(self, context: Context, file_name: str | None, flags: int) -> None:
        """Do nothing: there is nothing to be cleaned up after reading."""

    def flush(self, context: Context) -> None:
        """Do nothing: there is nothing to be written."""

    # What is open

    def get_file_info(self, context: Context) -> dict[str, int]:
        """Return what was found out at opening."""
        return context.info

    @_answering
    def get_security(self, context: Context) -> tuple[bytes, int]:
        """Return the descriptor that is shown."""
        descriptor = self._security(context.node)
        return descriptor, len(descriptor)

    def ll_get_security(self, file_context: Any, room: Any, size: Any) -> int:
        """Say how much room a larger descriptor needs, which winfspy does not."""
        try:
            descriptor, needed = self.get_security(_ffi.from_handle(file_context))
        except _NTStatusError as error:
            return int(error.value)
        if size != _ffi.NULL:
            given, size[0] = size[0], needed
            if needed > given:
                return Status.BUFFER_OVERFLOW
            if room != _ffi.NULL:
                _ffi.memmove(room, descriptor, needed)
        return 0

    @_answering
    def read(self, context: Context, offset: int, length: int) -> bytes:
        """Return ``length`` bytes, fewer only at the end of the file."""
        node = context.node
        if node.directory is not None:
            raise _refuse(Status.FILE_IS_A_DIRECTORY)
        if offset >= node.attributes.size:
            raise _refuse(Status.END_OF_FILE)
        if node.text is not None:
            return node.text[offset : offset + length]
        return self._readers.read(node.attributes.inode, offset, min(length, node.attributes.size - offset))

    @_answering
    def read_directory(self, context: Context, marker: str | None) -> Iterator[dict[str, Any]]:
        """Return the entries behind the one that was returned last."""
        directory = _directory_of(context)
        rows = context.rows
        if marker is None or rows is None:
            rows = context.rows = self._nodes.rows(directory)
        special: list[dict[str, Any]] = []
        if directory.above is not None:
            special = [
                {**context.info, "file_name": "."},
                {**self._info_of_directory(directory.above), "file_name": ".."},
            ]
        if marker is None:
            return self._listing(context, rows, special, 0)
        if marker in (".", ".."):
            return self._listing(context, rows, special[1:] if marker == "." else [], 0)
        return self._listing(context, rows, [], rows.view.after(marker))

    def _listing(
        self, context: Context, rows: Rows, special: list[dict[str, Any]], start: int
    ) -> Iterator[dict[str, Any]]:
        """Give entries until the driver's page is full. Nothing may be raised from here."""
        directory = _directory_of(context)
        yield from special
        names, entries, attributes = rows.view.names, rows.view.entries, rows.attributes
        for at in range(start, len(names)):
            known = attributes[at]
            if known is not None and known.type is NodeType.LINK:
                known = self._shown_in_listing(directory, known)
            info = _info(known if known is not None else _unreadable(entries[at]))
            info["file_name"] = names[at]
            yield info
        context.rows = None

    def _shown_in_listing(self, directory: Directory, link: Attributes) -> Attributes | None:
        try:
            return self._nodes.shown(directory, link).attributes
        except Exception:  # whatever it is, it is raised and reported where the link is opened
            return None

    def _info_of_directory(self, directory: Directory) -> dict[str, int]:
        return _info(self._tree.attributes(directory.inode))

    def _security(self, node: Node) -> bytes:
        """Return a node's own descriptor where that is asked for and there is one; else ours."""
        if self._original_security:
            try:
                found = self._tree.extended_attribute(node.attributes.inode, _ACL)
            except Exception as error:
                log.debug("inode %d has no descriptor of its own: %s", node.attributes.inode, error)
            else:
                if is_usable(found):
                    return found
        return self._descriptor

    # Changes

    def create(self, *_: Any) -> Context:
        """Refuse, in the one way that Explorer tells as what it is."""
        raise _refuse(Status.ACCESS_DENIED)

    def _write_protected(self, *_: Any) -> Any:
        """Refuse a change."""
        raise _refuse(Status.MEDIA_WRITE_PROTECTED)

    set_volume_label = overwrite = write = set_basic_info = set_file_size = _write_protected
    can_delete = rename = set_security = set_reparse_point = delete_reparse_point = _write_protected

    def _no_reparse_point(self, *_: Any) -> Any:
        """Say that there is none."""
        raise _refuse(Status.NOT_A_REPARSE_POINT)

    get_reparse_point = resolve_reparse_points = _no_reparse_point


def _directory_of(context: Context) -> Directory:
    if context.node.directory is None:
        raise _refuse(Status.NOT_A_DIRECTORY)
    return context.node.directory


def _info(attributes: Attributes) -> dict[str, Any]:
    """Return attributes as winfspy takes them."""
    size = 0 if attributes.type is NodeType.DIRECTORY else attributes.size
    return {
        "file_attributes": file_attributes(attributes),
        "allocation_size": _allocation(size),
        "file_size": size,
        "creation_time": filetime(attributes.created),
        "last_access_time": filetime(attributes.accessed),
        "last_write_time": filetime(attributes.modified),
        "change_time": filetime(attributes.changed),
        "index_number": attributes.inode or _ZERO_INODE,
    }


def _unreadable(entry: Entry) -> Attributes:
    """Return what is shown of an entry whose attributes cannot be read: opening it tells why."""
    kind = entry.type if entry.type is NodeType.DIRECTORY else NodeType.FILE
    return Attributes(entry.inode, kind)


def _allocation(size: int) -> int:
    return -(-size // ALLOCATION_UNIT) * ALLOCATION_UNIT


def filetime(nanoseconds: int) -> int:
    """Return a time since 1970 as Windows counts it, 0 for what lies before 1601."""
    return min(max(nanoseconds // 100 + _EPOCH, 0), _LAST_TIME)
