"""Mount a tree on Linux by the kernel's own protocol, without a library.

Threads take requests from /dev/fuse, ask the tree and answer, each on its own from beginning to end; the
kernel copies while the interpreter's lock is free. There is always one more thread than there is work, up to
a bound, and reads leave some of them to the rest, so that slow reads never hold up a listing. All caches
of the kernel are on, since a tree never changes. One process can hold several mounts.
"""

import sys

assert sys.platform != "win32"

import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mounters.devfuse_device import connect, detach
from mounters.devfuse_operations import Operations
from mounters.devfuse_protocol import (
    BUFFER,
    IN_HEADER,
    INIT_IN,
    INIT_OUT,
    LARGEST_READ,
    MAJOR,
    MINOR,
    OLDEST_MINOR,
    OUT_HEADER,
    InitFlag,
    Opcode,
)
from mounters.errors import MountError
from mounters.mountpoints import Mounted, find_mount
from mounters.session import MountOptions, Session
from mounters.tree import Tree

log = logging.getLogger(__name__)

READ_THREADS = max(16, 4 * (os.cpu_count() or 1))
OTHER_THREADS = 8
_GRACE = 4.0  # seconds for requests in flight, once the mount is to end
_BACKGROUND = 32  # requests that the kernel reads ahead with at once
_WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.EXPLICIT_INVAL_DATA
)
_GONE = (errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED)


def open_session(tree: Tree, mountpoint: str, options: MountOptions) -> Session:
    """Return the session that will mount ``tree``; nothing is mounted yet."""
    return DevfuseSession(tree, mountpoint, options)


class DevfuseSession(Session):
    """A mount through /dev/fuse."""

    def __init__(self, tree: Tree, mountpoint: str, options: MountOptions) -> None:
        self._operations = Operations(tree)
        self._mountpoint = mountpoint
        self._options = options
        self._device = -1
        self._mounted: Mounted | None = None
        self._stopping = threading.Event()
        self._change = threading.Condition()  # of what follows
        self._threads = 0
        self._idle = 0  # threads that wait for a request
        self._reading = 0  # threads that answer reads
        self._reads: deque[bytes] = deque()  # that wait for one of those

    def run(self, mounted: Callable[[], None]) -> None:
        """Mount, call ``mounted``, answer until unmounted. Raises MountError."""
        self._device = connect(self._mountpoint, self._options)
        try:
            self._mounted = find_mount(self._mountpoint)
            self._agree()
            mounted()
            self._start_thread()
            self._wait()
        finally:
            if self._is_mounted():
                detach(self._mountpoint)
            os.close(self._device)
            self._operations.close_all()

    def stop(self) -> None:
        """Make ``run`` unmount and return."""
        self._stopping.set()
        with self._change:
            self._change.notify_all()
        if not self._is_mounted():  # someone has unmounted it, and something else may be there
            return
        try:
            root = os.open(self._mountpoint, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return
        detach(self._mountpoint)
        threading.Thread(target=self._wake_all, args=(root,), name="mount-wake", daemon=True).start()

    def _is_mounted(self) -> bool:
        return self._mounted is not None and find_mount(self._mountpoint) == self._mounted

    # The beginning

    def _agree(self) -> None:
        """Agree with the kernel on how to talk: it begins with INIT. Raises MountError."""
        while True:
            request = os.read(self._device, BUFFER)
            _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
            major, minor, read_ahead, flags = INIT_IN.unpack_from(request, IN_HEADER.size)
            if opcode != Opcode.INIT or major < MAJOR or (major == MAJOR and minor < OLDEST_MINOR):
                raise MountError(f"the kernel speaks version {major}.{minor} of FUSE, which is too old")
            self._operations.opens_directories = not flags & InitFlag.NO_OPENDIR_SUPPORT
            body = INIT_OUT.pack(
                MAJOR,
                min(minor, MINOR),
                read_ahead,
                flags & _WANTED,
                _BACKGROUND,
                _BACKGROUND * 3 // 4,
                4096,  # the least; nothing is written
                1,  # nanosecond, the granularity of times
                LARGEST_READ // os.sysconf("SC_PAGE_SIZE"),
                0,
            )
            os.writev(self._device, [OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique), body])
            if major == MAJOR:
                return

    # The threads

    def _start_thread(self) -> None:
        with self._change:
            self._threads += 1
        try:
            threading.Thread(target=self._work, name=f"mount-{self._threads}", daemon=True).start()
        except RuntimeError:  # no more of them, or the interpreter ends
            with self._change:
                self._threads -= 1
                if not self._threads:
                    raise

    def _work(self) -> None:
        try:
            while not self._stopping.is_set():
                with self._change:
                    self._idle += 1
                try:
                    request = self._next_request()
                finally:
                    with self._change:
                        self._idle -= 1
                        short = not self._idle and self._threads < READ_THREADS + OTHER_THREADS
                if request is None:
                    return
                if short and not self._stopping.is_set():
                    self._start_thread()
                self._serve(request)
        except Exception:
            log.exception("%s: a thread of the mount ends", self._mountpoint)
        finally:
            with self._change:
                self._threads -= 1
                self._change.notify_all()

    def _next_request(self) -> bytes | None:
        """Wait for a request; None when the mount has ended."""
        while True:
            try:
                return os.read(self._device, BUFFER) or None
            except OSError as error:
                if error.errno == errno.ENOENT:  # it was taken back
                    continue
                if error.errno not in _GONE:
                    raise
                return None

    def _serve(self, request: bytes) -> None:
        """Answer a request. Of reads there may be too many at once: they wait for a thread that reads."""
        if IN_HEADER.unpack_from(request)[1] != Opcode.READ:
            self._answer(request)
            return
        with self._change:
            if self._reading >= READ_THREADS:
                self._reads.append(request)
                return
            self._reading += 1
        waiting: bytes | None = request
        while waiting is not None:
            self._answer(waiting)
            with self._change:
                waiting = self._reads.popleft() if self._reads else None
                if waiting is None:
                    self._reading -= 1

    def _answer(self, request: bytes) -> None:
        answer = self._operations.answer(request)
        if answer is None:
            return
        try:
            os.writev(self._device, answer)
        except OSError as error:
            if error.errno not in (*_GONE, errno.ENOENT):  # ENOENT: nobody waits for it any more
                log.exception("%s: the kernel refuses an answer", self._mountpoint)

    # The end

    def _wait(self) -> None:
        """Wait until all threads have ended; those in flight at a stop lose the kernel after a while."""
        with self._change:
            self._change.wait_for(lambda: not self._threads or self._stopping.is_set())
            if not self._change.wait_for(lambda: not self._threads, _GRACE):
                with Path(os.devnull).open("r+b") as nowhere:  # keeps the number, which threads may use yet
                    os.dup2(nowhere.fileno(), self._device, inheritable=False)
            self._change.wait_for(lambda: not self._threads)

    def _wake_all(self, root: int) -> None:
        """Send requests until no thread waits for one: each ends when it has answered.

        What is sent too much is not answered; it ends with the connection.
        """
        try:
            while self._threads:
                os.fstatvfs(root)
        except OSError:
            log.debug("%s: the connection has ended", self._mountpoint)
        finally:
            with suppress(OSError):
                os.close(root)
