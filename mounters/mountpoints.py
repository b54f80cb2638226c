"""Mount points of POSIX systems: which are fit, what is mounted, read-ahead, unmounting."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from mounters.errors import MountError, MountPointError

LINUX = sys.platform.startswith("linux")
_MOUNTS = Path("/proc/self/mountinfo")
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENXIO)
_POLL = 0.01  # seconds


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of /proc/self/mountinfo."""

    identifier: int  # never used again while it is mounted
    device: str  # "major:minor"
    path: str
    kind: str  # such as "fuse.imagefs"


def real_path(mountpoint: str | os.PathLike[str]) -> str:
    """Return the absolute path without symbolic links; a dead or stuck mount there is not touched."""
    path = Path(os.path.abspath(os.fspath(mountpoint)))  # noqa: PTH100  (Path.resolve would ask the mount)
    outside = os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118
    if LINUX and find_mount(outside) is not None:
        return outside
    return os.path.realpath(path)


def find_mount(path: str) -> Mounted | None:
    """Return the topmost mount at a real path (Linux), None when nothing is mounted there."""
    found = None
    wanted = os.fsencode(path)
    for line in _MOUNTS.read_bytes().splitlines():
        fields = line.split(b" ")
        if _unescaped(fields[4]) == wanted:
            kind = fields[fields.index(b"-") + 1]
            found = Mounted(int(fields[0]), fields[2].decode(), path, kind.decode())
    return found


def _unescaped(field: bytes) -> bytes:
    for code in (b"\\040", b"\\011", b"\\012", b"\\134"):
        field = field.replace(code, bytes([int(code[1:], 8)]))
    return field


def is_mounted(path: str) -> bool:
    """Tell whether something is mounted at a real path. Blocks on a stuck mount where there is no /proc."""
    if LINUX:
        return find_mount(path) is not None
    try:
        return os.path.ismount(path)
    except OSError:
        return True  # a dead mount


def probe(path: str, timeout: float = 2.0) -> int | None:
    """Ask the file system at a path and return 0, or the errno it fails with; None without an answer.

    It is asked for its size, which kernels do not cache; attributes of a dead mount may still be there.
    """
    answers: list[int] = []

    def ask() -> None:
        try:
            shutil.disk_usage(path)
        except OSError as error:
            answers.append(error.errno or errno.EIO)
        else:
            answers.append(0)

    thread = threading.Thread(target=ask, name="mount-probe", daemon=True)  # it may wait for ever
    thread.start()
    thread.join(timeout)
    return answers[0] if answers else None


def is_dead(path: str) -> bool:
    """Tell whether the mount at a path has lost the process that served it."""
    return probe(path) in _DEAD


def check_mountpoint(mountpoint: str | os.PathLike[str]) -> str:
    """Return the real path of a fit mount point: an empty directory of ours with nothing mounted.

    Raises MountPointError otherwise.
    """
    path = real_path(mountpoint)
    if is_mounted(path):
        if is_dead(path):
            raise MountPointError(
                f"{path}: holds a dead mount, its serving process has ended; clear it: imagefs umount {path}"
            )
        raise MountPointError(f"{path}: something is mounted here already; choose another directory")
    try:
        entries = os.scandir(path)
    except FileNotFoundError:
        raise MountPointError(f"{path}: no such directory; create it first: mkdir {path}") from None
    except NotADirectoryError:
        raise MountPointError(f"{path}: is not a directory; mount on an empty directory") from None
    except OSError as error:
        raise MountPointError(f"{path}: cannot be used as a mount point: {error.strerror}") from None
    with entries:
        if next(entries, None) is not None:
            raise MountPointError(f"{path}: is not empty; mount on an empty directory")
    if not os.access(path, os.W_OK):
        raise MountPointError(f"{path}: is not writable for you; mount on a directory of your own")
    return path


def set_read_ahead(path: str, length: int) -> bool:
    """Let the kernel read ``length`` bytes ahead on the mount at a real path; False if it is not allowed."""
    mounted = find_mount(path) if LINUX else None
    if mounted is None:
        return False
    try:
        Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb").write_text(str(length // 1024))
    except OSError:
        return False
    return True


def unmount(mountpoint: str | os.PathLike[str], *, force: bool = False, timeout: float = 10.0) -> None:
    """Unmount and wait, at most ``timeout`` seconds, until the mount is gone.

    A mount in use is refused with MountError, unless ``force``: then it is cut off, and what still reads
    from it gets errors. A dead mount is cleared in any case. Raises MountPointError when nothing is
    mounted there.
    """
    if sys.platform == "win32":
        raise MountError("mounting on Windows (WinFsp) is not built yet")
    path = real_path(mountpoint)
    if not is_mounted(path):
        raise MountPointError(f"{path}: nothing is mounted here")
    before = find_mount(path) if LINUX else None
    problem = _first_success(_commands(path, force=force), timeout)
    if problem and not force and is_dead(path):
        problem = _first_success(_commands(path, force=True), timeout)
    if problem:
        hint = "" if force else "; close what uses it, or use force"
        raise MountError(f"{path}: cannot unmount: {problem}{hint}")
    deadline = time.monotonic() + timeout
    while is_mounted(path) and (before is None or find_mount(path) == before):
        if time.monotonic() > deadline:
            raise MountError(f"{path}: is still mounted {timeout:.0f} seconds after unmounting it")
        time.sleep(_POLL)


def _commands(path: str, *, force: bool) -> list[list[str]]:
    """Return the commands to try in turn; the first that succeeds is enough."""
    if not LINUX:
        return [["umount", *(["-f"] if force else []), path]]
    helper = shutil.which("fusermount3") or shutil.which("fusermount") or "fusermount3"
    # -f cuts the connection off, so that readers that wait get an error at once.
    if sys.platform != "win32" and os.geteuid() == 0:
        return [["umount", *(["-f", "-l"] if force else []), path]]
    return [[helper, "-uz" if force else "-u", path]]


def _first_success(commands: list[list[str]], timeout: float) -> str:
    """Run commands until one succeeds; return "" then, else what the last one said."""
    problem = ""
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
        except FileNotFoundError:
            problem = f"{command[0]} is not installed"
        except subprocess.TimeoutExpired:
            problem = f"{command[0]} did not end within {timeout:.0f} seconds"
        else:
            if done.returncode == 0:
                return ""
            problem = done.stderr.decode(errors="replace").strip() or f"{command[0]} failed"
    return problem
