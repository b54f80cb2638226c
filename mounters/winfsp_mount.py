r"""Mount a tree on Windows through WinFsp.

The forms of a mount point are "X:", a drive letter of the user's own; ``\\.\X:``, one for the whole machine,
for which administrators may ask; and a directory that does not exist. One process can hold several mounts.
Nothing of the process may read from them through a map of a file while it holds the interpreter's lock.
"""

import re
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mounters.errors import MountError, MountPointError
from mounters.session import MountOptions, Session
from mounters.tree import Tree
from mounters.winfsp_binding import create, delete, dispatcher_result, preflight, start, succeeded
from mounters.winfsp_names import LONGEST_NAME
from mounters.winfsp_operations import ALLOCATION_UNIT, BINDING, SECTOR, Operations, filetime
from mounters.winfsp_security import own_descriptor

_FOREVER = 0xFFFFFFFF  # ms; this value alone lets Windows cache data and read ahead
_POLL = 0.5  # seconds
_LONGEST_PREFIX = 95  # UTF-16 units
_LETTER = re.compile(r"(\\\\\.\\)?[A-Za-z]:")
_NETWORK = re.compile(r"\\{1,2}([^\\/]+)((?:\\[^\\/]+)+)\\?")


def open_session(tree: Tree, mountpoint: str, options: MountOptions) -> Session:
    """Return the session that will mount ``tree``; nothing is mounted yet. Raises MountPointError."""
    return WinfspSession(tree, mountpoint, options)


class WinfspSession(Session):
    """A mount through WinFsp."""

    def __init__(self, tree: Tree, mountpoint: str, options: MountOptions) -> None:
        self._mountpoint = mountpoint
        self._options = options
        self._parameters = volume_parameters(options)
        self._operations = Operations(
            tree,
            options.label,
            _descriptor(options),
            original_security=options.original_security,
        )
        self._stopping = threading.Event()

    def run(self, mounted: Callable[[], None]) -> None:
        """Mount, call ``mounted``, answer until stopped. Raises MountError."""
        try:
            file_system = self._mount()
            try:
                mounted()
                self._wait(file_system)
            finally:
                delete(BINDING, file_system)
        finally:
            self._operations.close_all()

    def stop(self) -> None:
        """Make ``run`` unmount and return."""
        self._stopping.set()

    def _mount(self) -> Any:
        """Return the file system, mounted."""
        network = bool(self._options.network)
        check_place(self._mountpoint, network=network)
        if not preflight(BINDING, self._mountpoint, network=network):
            raise MountPointError(f"{self._mountpoint} is in use")
        file_system = create(BINDING, self._mountpoint, self._operations, dict(self._parameters))
        start(BINDING, file_system)
        return file_system

    def _wait(self, file_system: Any) -> None:
        """Wait until the mount is to end. Raises MountError when the driver ends it."""
        while not self._stopping.wait(_POLL):
            result = dispatcher_result(BINDING, file_system)
            if not succeeded(result):
                raise MountError(f"{self._mountpoint}: WinFsp has ended the mount ({result:#010x})")


def _descriptor(options: MountOptions) -> bytes:
    try:
        return own_descriptor(allow_other=options.allow_other)
    except OSError as error:
        raise MountError(f"cannot find out who mounts: {error}") from None


def check_place(mountpoint: str, *, network: bool) -> None:
    """Raise MountPointError for a mount point that is neither a letter nor a directory that can be made."""
    if _LETTER.fullmatch(mountpoint):
        return
    if network:
        raise MountPointError(f"{mountpoint}: a network drive needs a letter, such as X:")
    path = Path(mountpoint)
    if path.exists() or path.is_symlink():
        raise MountPointError(f"{mountpoint} exists: WinFsp makes the directory itself, and removes it again")
    if not path.parent.is_dir():
        raise MountPointError(f"{path.parent} is no directory: {mountpoint} would be made in it")


def serial_number(options: MountOptions) -> int:
    """Return 32 bits that are not 0 and the same for the same source."""
    return options.serial & 0xFFFFFFFF or zlib.crc32(options.source.encode("utf-8", "surrogatepass")) or 1


def volume_parameters(options: MountOptions) -> dict[str, Any]:
    """Return the parameters of the volume. Raises MountPointError for a network name that is none."""
    parameters: dict[str, Any] = {
        "sector_size": SECTOR,
        "sectors_per_allocation_unit": ALLOCATION_UNIT // SECTOR,
        "max_component_length": LONGEST_NAME,
        "volume_creation_time": filetime(options.created) if options.created else 0,
        "volume_serial_number": serial_number(options),
        "file_info_timeout": _FOREVER,
        "case_sensitive_search": 0,
        "case_preserved_names": 1,
        "unicode_on_disk": 1,
        "persistent_acls": 1,
        "read_only_volume": 1,
        "post_cleanup_when_modified_only": 1,
        "um_file_context_is_user_context2": 1,
        "named_streams": 0,
        "reparse_points": 0,
        "file_system_name": "imagefs",  # 7 characters are all that winfspy passes on
    }
    if options.network:
        found = _NETWORK.fullmatch(options.network)
        prefix = f"\\{found[1]}{found[2]}" if found else ""
        if not found or len(prefix.encode("utf-16-le", "surrogatepass")) // 2 > _LONGEST_PREFIX:
            raise MountPointError(rf"{options.network}: not a network name such as \\imagefs\disk")
        parameters["prefix"] = prefix
    return parameters
