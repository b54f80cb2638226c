"""Choose a mechanism, mount, wait until the mount answers, unmount.

A mechanism is a module with ``open_session(tree, mountpoint, options) -> Session`` and one line in
MECHANISMS.
"""

import errno
import importlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

from mounters.background import ready_fd, report_failure, report_ready, start_in_background
from mounters.errors import MountError, MountPointError
from mounters.mountpoints import LINUX, check_mountpoint, find_mount, set_read_ahead
from mounters.session import MountOptions, Session
from mounters.tree import Tree
from mounters.windows_mounts import Claim, claim, root_of, winfsp_problem
from mounters.winfsp_binding import INSTALL_WINFSPY

if sys.platform == "win32":
    from mounters.windows_mounts import is_mounted, probe, real_path, unmount
else:
    from mounters.mountpoints import is_mounted, probe, real_path, unmount

__all__ = [
    "MECHANISMS",
    "Mount",
    "MountError",
    "MountOptions",
    "MountPointError",
    "mechanisms",
    "mount",
    "ready_fd",
    "report_failure",
    "report_ready",
    "serve",
    "start_in_background",
    "unavailable",
    "unmount",
    "wait_ready",
]

log = logging.getLogger(__name__)

_GRACE = 5.0  # seconds for requests in flight, once a mount is to end
_POLL = 0.01  # seconds


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A way of mounting: its module, the systems it works on, what to install for it."""

    module: str
    systems: tuple[str, ...]  # prefixes of sys.platform
    install: str


MECHANISMS = {  # in the order of preference
    "devfuse": Mechanism("mounters.devfuse_mount", ("linux",), ""),
    "winfsp": Mechanism("mounters.winfsp_mount", ("win32",), ""),  # it says itself what to install
    "mfusepy": Mechanism(
        "mounters.fusepy_windows" if sys.platform == "win32" else "mounters.fusepy_mount",
        ("linux", "darwin", "freebsd", "win32"),
        INSTALL_WINFSPY if sys.platform == "win32" else "pip install 'imagefs[fuse]'",
    ),
}


def mechanisms() -> dict[str, str]:
    """Return every mechanism's name with the reason why it cannot be used here; "" when it can."""
    return {name: _missing(name) for name in MECHANISMS}


def _missing(name: str) -> str:
    mechanism = MECHANISMS[name]
    if not sys.platform.startswith(mechanism.systems):
        return f"{name} does not work on {sys.platform}"
    try:
        importlib.import_module(mechanism.module)
    except ImportError as error:
        return f"{name} is not installed ({error})" + (f": {mechanism.install}" if mechanism.install else "")
    except (OSError, AttributeError, NotImplementedError, RuntimeError) as error:  # it is loaded on import
        return f"{name} finds no FUSE library ({error}): {_library_hint()}"
    return ""


def _library_hint() -> str:
    if sys.platform == "win32":
        return "install WinFsp from https://winfsp.dev"
    if sys.platform == "darwin":
        return "install macFUSE from https://macfuse.github.io"
    if sys.platform.startswith("freebsd"):
        return "install the package fusefs-libs3 and load the module: kldload fusefs"
    return "install the package fuse3 (libfuse3)"


def _system_problem(options: MountOptions) -> str:
    """Return why nothing can be mounted on this system by this user, with the remedy; "" when it can."""
    if sys.platform == "win32":
        return winfsp_problem()
    if not LINUX:
        return ""
    device = Path("/dev/fuse")
    if not device.exists():
        return "/dev/fuse is missing: load its module (modprobe fuse), or start the container with it"
    if not os.access(device, os.R_OK | os.W_OK):
        return "/dev/fuse is not open to you: ask for membership of its group, or mount as root"
    if os.geteuid() == 0:
        return ""
    if shutil.which("fusermount3") is None and shutil.which("fusermount") is None:
        return "fusermount3 is missing: install the package fuse3, or mount as root"
    if options.allow_other and not _user_allow_other():
        return "other users can be let in only if /etc/fuse.conf has the line user_allow_other, or by root"
    return ""


def _user_allow_other() -> bool:
    try:
        lines = Path("/etc/fuse.conf").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def unavailable(options: MountOptions | None = None) -> str:
    """Return why this process cannot mount in this way, and what to install; "" when it can."""
    options = options or MountOptions()
    problem = _system_problem(options)
    if problem:
        return problem
    if options.mechanism != "auto":
        return _missing(options.mechanism)
    reasons = []
    for name in MECHANISMS:  # the first that works is enough: the others are not even imported
        reason = _missing(name)
        if not reason:
            return ""
        reasons.append(reason)
    return "nothing to mount with: " + "; ".join(reasons)


def _choose(options: MountOptions) -> str:
    """Return the name of the mechanism to use. Raises MountError with what to install."""
    if options.mechanism != "auto" and options.mechanism not in MECHANISMS:
        raise MountError(f"no such mechanism: {options.mechanism}; there are {', '.join(MECHANISMS)}", 2)
    problem = unavailable(options)
    if problem:
        raise MountError(problem)
    if options.mechanism != "auto":
        return options.mechanism
    return next(name for name in MECHANISMS if not _missing(name))


class Mount:
    """A tree mounted by this process; a context manager that unmounts at its end.

    The process that serves a mount may read from it too, but must not map its files into memory.
    """

    def __init__(self, tree: Tree, mountpoint: str | os.PathLike[str], options: MountOptions) -> None:
        name = _choose(options)
        self._options = options
        self._identifier: int | None = None
        self._mounted = threading.Event()
        self._answering = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._claim: Claim | None = None
        if sys.platform == "win32":
            self._claim = claim(mountpoint, options.network)
            self.mountpoint = self._claim.mountpoint
        else:
            self.mountpoint = check_mountpoint(mountpoint)
        self.mechanism = name
        try:
            module = importlib.import_module(MECHANISMS[name].module)
            self._session: Session = module.open_session(tree, self.mountpoint, options)
        except BaseException:
            self._release()
            raise
        if self._claim is not None:
            self._claim.watch(self._end)
        threading.Thread(target=self._run, name="mount", daemon=True).start()

    def _run(self) -> None:
        try:
            self._session.run(self._on_mounted)
        except BaseException as error:  # handed to whoever waits
            self._error = error
        finally:
            self._ended.set()
            self._mounted.set()
            self._answering.set()
            self._release()

    def _on_mounted(self) -> None:
        found = find_mount(self.mountpoint) if LINUX else None
        self._identifier = found.identifier if found else 0
        self._mounted.set()
        threading.Thread(target=self._ask, name="mount-ready", daemon=True).start()

    def _ask(self) -> None:
        try:
            os.stat(root_of(self.mountpoint))  # noqa: PTH116  (returns when the first request has been answered)
        except OSError as error:
            if not self._ended.is_set():
                self._error = MountError(f"{self.mountpoint}: cannot read the root: {error.strerror}")
                self._session.stop()
            return
        # Not before: the kernel takes the smaller of this and its default when it starts to talk to us.
        if not set_read_ahead(self.mountpoint, self._options.read_ahead):
            log.debug("%s: read-ahead stays at the system's default", self.mountpoint)
        self._answering.set()

    @property
    def answering(self) -> bool:
        """Whether the mount has answered its first request."""
        return self._answering.is_set() and not self._ended.is_set()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the mount answers. Raises MountError when it fails or ``timeout`` seconds pass."""
        if not self._answering.wait(timeout):
            raise MountError(f"{self.mountpoint}: does not answer after {timeout} seconds")
        if self._ended.is_set():
            self._raise()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the mount has ended and tell whether it has. Raises what it failed with."""
        if not self._ended.wait(timeout):
            return False
        self._raise()
        return True

    def _raise(self) -> None:
        if isinstance(self._error, MountError):
            raise self._error
        if self._error is not None:
            raise MountError(f"{self.mountpoint}: the mount failed: {self._error!r}") from self._error

    def unmount(self) -> None:
        """End the mount, in use or not. Requests in flight get a few seconds, then they are cut off."""
        self._end()
        if not self._ended.wait(_GRACE):
            log.warning("%s: requests are still being answered; cut off", self.mountpoint)
        self._clear()
        self._ended.wait(1.0)
        self._release()

    def _end(self) -> None:
        self._mounted.wait(_GRACE)
        if not self._ended.is_set():
            self._session.stop()

    def _release(self) -> None:
        """Give the mount point up where it is gone; else it goes, with its name, when this process ends."""
        if self._claim is not None and (self._ended.is_set() or not is_mounted(self.mountpoint)):
            self._claim.release()

    def _clear(self) -> None:
        """Take away a mount of ours that is still there, never one that came after it."""
        if sys.platform == "win32":
            return  # only the session can, or the end of this process
        found = find_mount(self.mountpoint) if LINUX else None
        ours = (
            found is not None and found.identifier == self._identifier
            if LINUX
            else is_mounted(self.mountpoint)
        )
        if ours:
            unmount(self.mountpoint, force=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unmount()


def mount(
    tree: Tree,
    mountpoint: str | os.PathLike[str],
    options: MountOptions | None = None,
    *,
    timeout: float = 30.0,
) -> Mount:
    """Mount a tree, served by threads of this process, and return once the mount answers.

    Raises MountPointError when the mount point is refused, MountError for everything else.
    """
    mounted = Mount(tree, mountpoint, options or MountOptions())
    try:
        mounted.wait_ready(timeout)
    except BaseException:
        mounted.unmount()
        raise
    return mounted


def serve(
    tree: Tree,
    mountpoint: str | os.PathLike[str],
    options: MountOptions | None = None,
    *,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Mount a tree and serve it until it is unmounted, or SIGINT, SIGTERM, SIGHUP or SIGBREAK ends it.

    ``ready`` is called with the mount point once the mount answers. Signals are heeded when this is
    called in the main thread. Raises MountPointError when the mount point is refused, MountError for
    everything else.
    """
    with _signals() as stop:
        mounted = Mount(tree, mountpoint, options or MountOptions())
        told = False
        try:
            while not stop.is_set() and not mounted.wait(_POLL if not told else 0.2):
                if not told and mounted.answering:
                    told = True
                    if ready is not None:
                        ready(mounted.mountpoint)
        finally:
            mounted.unmount()


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Turn the signals that end a process into an event."""
    stop = threading.Event()

    def heed(number: int, _frame: FrameType | None) -> None:
        log.info("ending on %s", signal.Signals(number).name)
        stop.set()

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP, and SIGBREAK alone
            if number is not None:
                before[number] = signal.signal(number, heed)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_ready(mountpoint: str | os.PathLike[str], timeout: float = 30.0) -> None:
    """Wait until something is mounted at ``mountpoint`` and answers.

    Raises MountError after ``timeout`` seconds, or at once when the mount is dead. A mount of another
    user counts as answering when it says that we may not enter.
    """
    path = real_path(mountpoint)
    deadline = time.monotonic() + timeout
    while not is_mounted(path):
        if time.monotonic() > deadline:
            raise MountError(f"{path}: nothing is mounted after {timeout:.0f} seconds")
        time.sleep(_POLL)
    number = probe(path, max(0.1, deadline - time.monotonic()))
    if number is None:
        raise MountError(f"{path}: does not answer after {timeout:.0f} seconds")
    if number not in (0, errno.EACCES):
        raise MountError(f"{path}: {os.strerror(number)}")
