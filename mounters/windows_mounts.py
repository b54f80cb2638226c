r"""Mount points of Windows: letters and directories, who serves them, and how they are asked to end.

A mount point is a drive letter (``X:``), one that the mount manager gives to all sessions (``\\.\X:``), or
a directory that must not exist: it is made with the mount and goes with it. The process that serves it
waits for a named event, which others set to have it end. Windows takes the mount of a process that has
ended away itself: there are no dead mounts.
"""

import hashlib
import ntpath
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Self

from mounters import mountpoints
from mounters.errors import MountError, MountPointError
from mounters.windows_calls import Calls, calls

_POLL = 0.02  # seconds
_GRACE = 5.0  # seconds
_LETTERS = "ZYXWVUTSRQPONMLKJIHGFED"  # A: and B: are floppy disks to many programs
_LONGEST_DIRECTORY = 247  # UTF-16 units: CreateDirectoryW without \\?\, "Maximum Path Length Limitation"
_LETTER = re.compile(r"(\\\\[.?]\\)?([A-Za-z]):\\?")
_SHARE = re.compile(r"\\\\[^\\/:*?\"<>|]+\\[^\\/:*?\"<>|]+\\?")


@cache
def _windows() -> Calls:
    return calls()


def drive_letter(mountpoint: str) -> str:
    r"""Return the letter of ``X:``, ``x:\``, ``X:/``, ``\\.\X:`` and the like as "X"; "" for directories."""
    found = _LETTER.fullmatch(mountpoint.replace("/", "\\"))
    return found[2].upper() if found else ""


def real_path(mountpoint: str | os.PathLike[str]) -> str:
    r"""Return the one form of a mount point: ``X:``, ``\\.\X:`` or an absolute directory without links.

    The directory itself is not touched.
    """
    text = os.fspath(mountpoint).replace("/", "\\")
    letter = drive_letter(text)
    if letter:
        return rf"\\.\{letter}:" if text.startswith("\\\\") else f"{letter}:"
    parent, name = os.path.split(os.path.abspath(text))  # noqa: PTH100  (Path.resolve would ask the mount)
    path = os.path.join(os.path.realpath(parent), name)  # noqa: PTH118
    return re.sub(r"\A\\\\[?.]\\(?=[A-Za-z]:)", "", path).rstrip("\\")


def root_of(path: str) -> str:
    """Return the path by which programs reach the root of a mount, from its one form."""
    letter = drive_letter(path)
    return f"{letter}:\\" if letter else path


def about(path: str) -> str:
    r"""Return what a message about a mount point begins with, from its one form: ``X:`` or ``C:\mnt:``."""
    return f"{drive_letter(path) or path}:"


def event_names(path: str) -> tuple[str, str]:
    r"""Return the names of the event of a mount point, from its one form: of this session, and of all.

    A name is at most 260 characters long and has no other backslash ("Kernel object namespaces").
    """
    letter = drive_letter(path)
    key = letter or hashlib.sha256(ntpath.normcase(path).encode("utf-8", "surrogatepass")).hexdigest()
    return rf"Local\imagefs-mount-{key}", rf"Global\imagefs-mount-{key}"


def _number_name(event: str) -> str:
    return f"{event}-process"


def is_mounted(path: str) -> bool:
    """Tell whether a letter is taken, or a directory is there, from a mount point's one form."""
    letter = drive_letter(path)
    if letter:
        return bool(_windows().logical_drives() >> (ord(letter) - ord("A")) & 1)
    return os.path.lexists(path)


def free_letters() -> list[str]:
    """Return the letters that nothing uses, in the order in which they are taken."""
    windows = _windows()
    taken = windows.logical_drives()
    free = [letter for letter in _LETTERS if not taken >> (ord(letter) - ord("A")) & 1]
    return [letter for letter in free if not windows.is_remembered(letter)]


def probe(path: str, timeout: float = 2.0) -> int | None:
    """Ask the file system at a mount point's one form; return 0, its errno, or None without an answer."""
    return mountpoints.probe(root_of(path), timeout)


def is_hidden(mountpoint: str) -> bool:
    r"""Tell whether the user's other programs, Explorer among them, don't see a mount of this process.

    Letters belong to a logon, and an administrator's elevated programs have one of their own ("Defining an
    MS-DOS device name", Microsoft).
    """
    is_own = drive_letter(mountpoint) != "" and not mountpoint.startswith("\\")
    return is_own and _windows().is_elevated()


def winfsp_problem() -> str:
    """Return what to install where WinFsp is missing; "" when it is there."""
    return "" if _windows().winfsp_folder() else "WinFsp is missing: install it from https://winfsp.dev"


class Claim:
    """A mount point that this process serves, known to others by its name, until it is released."""

    def __init__(self, path: str) -> None:
        """Claim a mount point by its one form. Raises MountPointError when another imagefs has it."""
        self.mountpoint = path
        self._windows = _windows()
        self._watcher: threading.Thread | None = None
        self._lock = threading.Lock()  # held while it is released
        self._released = False
        local, everywhere = event_names(path)
        name = everywhere if path.startswith("\\\\.\\") else local
        # This user alone, SYSTEM and administrators may end it.
        descriptor = f"D:P(A;;GA;;;{self._windows.user()})(A;;GA;;;SY)(A;;GA;;;BA)"
        try:
            event = self._windows.create_event(name, descriptor)
        except PermissionError:  # of another user
            event = None
        if event is None:
            raise MountPointError(f"{about(path)} another imagefs serves it; choose another mount point")
        self._event = event
        try:
            self._number = self._windows.share_number(_number_name(name), descriptor, os.getpid())
        except OSError:
            self._windows.close(event)
            raise

    def watch(self, end: Callable[[], None]) -> None:
        """Call ``end``, in a thread of its own, when somebody asks for the end of the mount."""

        def wait() -> None:
            self._windows.wait_for(self._event)
            if not self._released:
                end()

        self._watcher = threading.Thread(target=wait, name="mount-watch", daemon=True)
        self._watcher.start()

    def release(self) -> None:
        """Give the mount point up, once it is gone: who waits for its end is told by that."""
        with self._lock:
            if self._released:
                return
            self._released = True
            self._windows.set_event(self._event)
            if self._watcher is not None:
                self._watcher.join(_GRACE)  # it may be ending a mount that is stuck
            self._windows.close(self._number)
            self._windows.close(self._event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def claim(mountpoint: str | os.PathLike[str], network: str = "") -> Claim:
    r"""Claim a fit mount point: a free letter, a directory that is not there, or for "" the next free letter.

    ``network`` is the name of a network drive, ``\\server\share``. Raises MountPointError.
    """
    text = os.fspath(mountpoint)
    if network:
        _check_network(network, text)
    if not text:
        return _next_letter()
    path = real_path(text)
    if drive_letter(path):
        _check_letter(path)
    else:
        _check_directory(path)
    return Claim(path)


def _next_letter() -> Claim:
    for letter in free_letters():
        with suppress(MountPointError):  # another imagefs is about to mount there
            return Claim(f"{letter}:")
    raise MountPointError("no drive letter is free; mount on a directory")


def _check_network(network: str, mountpoint: str) -> None:
    if not _SHARE.fullmatch(network.replace("/", "\\")):
        raise MountPointError(rf"{network}: is no name of a network drive; \\server\share is one", 2)
    if mountpoint and not drive_letter(mountpoint):
        raise MountPointError(f"{mountpoint}: a network drive needs a letter, such as X:")


def _check_letter(path: str) -> None:
    letter = drive_letter(path)
    if not is_mounted(path) and not _windows().is_remembered(letter):
        return
    free = free_letters()
    use = f"choose another, {free[0]}: is free" if free else "mount on a directory"
    raise MountPointError(f"{letter}: is in use already; {use}")


def _check_directory(path: str) -> None:
    if path.startswith("\\\\"):
        raise MountPointError(f"{path}: is on a network; mount on a letter, or a directory on a local disk")
    if len(path.encode("utf-16-le", "surrogatepass")) // 2 > _LONGEST_DIRECTORY:
        raise MountPointError(f"{path}: is too long; {_LONGEST_DIRECTORY} characters can be mounted on")
    parent = os.path.dirname(path)  # noqa: PTH120
    if os.path.lexists(path):
        raise MountPointError(f"{path}: exists already; on Windows the directory is made by the mount")
    if not os.path.isdir(parent):  # noqa: PTH112
        raise MountPointError(f"{parent}: no such directory; create it first: mkdir {parent}")


def unmount(mountpoint: str | os.PathLike[str], *, force: bool = False, timeout: float = 10.0) -> None:
    """Ask the process that serves a mount to end it, and wait, at most ``timeout`` seconds, until it is gone.

    What still reads from it gets errors. With ``force`` a process that does not end in time is killed, and
    Windows takes its mount away. Raises MountPointError when nothing of imagefs is mounted there.
    """
    path = real_path(mountpoint)
    windows = _windows()
    for name in event_names(path):
        try:
            event = windows.open_event(name)
            number = windows.shared_number(_number_name(name)) if event is not None else 0
        except PermissionError:
            raise MountError(f"{about(path)} is not yours to unmount") from None
        if event is not None:
            break
    else:
        what = "is no mount of imagefs" if is_mounted(path) else "nothing is mounted here"
        raise MountPointError(f"{about(path)} {what}")
    try:
        windows.set_event(event)
    finally:
        windows.close(event)
    if _wait_until_gone(path, name, number, timeout):
        return
    if not force or not number:
        hint = "" if force else "; --force ends its process"
        raise MountError(f"{about(path)} is still mounted {timeout:.0f} seconds after unmounting it{hint}")
    try:
        windows.end_process(number)
    except PermissionError:
        raise MountError(f"{about(path)} its process {number} is not yours to end") from None
    if not _wait_until_gone(path, name, number, timeout):
        raise MountError(f"{about(path)} is still mounted, though its process has been ended")


def _wait_until_gone(path: str, name: str, number: int, timeout: float) -> bool:
    """Wait until a process no longer serves a mount point; False when the time is over."""
    deadline = time.monotonic() + timeout
    while _is_served(path, name, number):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


def _is_served(path: str, name: str, number: int) -> bool:
    """Tell whether the mount of the process with a number is still there, not one that came after it."""
    try:
        serving = _windows().shared_number(_number_name(name))
    except PermissionError:  # of a user who came after
        return False
    # A process that is killed may be without its names for a moment before it is without its mount.
    return serving == number if serving else is_mounted(path)
