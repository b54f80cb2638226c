"""An NBD server: exports as disks for clients on this machine or, encrypted, on others.

Each connection has threads of its own, so that none waits for another. What leaves this machine is
encrypted, unless the caller insists.
"""

import errno
import logging
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from mounters.errors import error_number
from mounters.export import Export
from mounters.nbd_address import (
    Address,
    AddressError,
    Listeners,
    are_loopback,
    is_loopback,
    parse_address,
    resolve,
)
from mounters.nbd_handshake import HandshakeSession, Refused
from mounters.nbd_protocol import LONGEST_STRING
from mounters.nbd_transmission import Transmission
from mounters.nbd_wire import Gone, Input, PlainWire, Wire, prepare, shut
from mounters.tls_psk import PskCredentials

__all__ = ["Address", "AddressError", "NbdServer", "is_loopback", "parse_address"]

log = logging.getLogger(__name__)

_GRACE = 3.0  # seconds for requests in flight when the server stops, before their connections are cut
_LONGEST_WAIT = 0.5  # seconds
_PAUSE = 0.2  # seconds without accepting, when the system has no more descriptors
_NO_MORE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class NbdServer:
    """Serves exports at one address until it is stopped.

    ``bind`` and then ``serve`` in one thread; ``stop`` from any other or from a signal handler. As a
    context manager it binds, and leaves no thread, socket or socket file behind.
    """

    def __init__(
        self,
        exports: Sequence[Export],
        address: Address,
        *,
        default: str | None = None,
        tls: PskCredentials | None = None,
        insecure: bool = False,
        max_connections: int = 64,
        handshake_timeout: float = 30.0,
        threads: int | None = None,
        secret: str = "",
    ) -> None:
        """Take exports in the order in which they are listed; ``default`` is the one without a name.

        ``tls`` makes encryption a must for every client; it stays the caller's to close. ``insecure``
        allows addresses beyond this machine without it. ``threads`` is the number of requests of one
        connection that are answered at once. With a ``secret`` clients must name an export with it before
        the name, and none is listed: for whom else can connect.
        """
        self._exports = {secret + export.name: export for export in exports}
        self._listed = not secret
        if len(self._exports) != len(exports):
            raise ValueError("two exports have one name")
        if default is not None and default not in self._exports:
            raise ValueError(f"no export {default!r} to be the default one")
        for export in exports:
            _check_export(export)
        self._wanted = address
        self._default = default
        self._tls = tls
        self._insecure = insecure
        self._max_connections = max_connections
        self._handshake_timeout = handshake_timeout
        self._threads = threads or min(16, max(4, (os.cpu_count() or 1) + 2))
        self._listeners: Listeners | None = None
        self._connections: list[_Connection] = []
        self._stopping = False
        self._wakers: tuple[socket.socket, socket.socket] | None = None  # what wakes serve, and its other end

    @property
    def address(self) -> Address:
        """Where the server listens; after ``bind`` with the port that it got."""
        return self._listeners.address if self._listeners is not None else self._wanted

    def bind(self) -> None:
        """Begin to listen, so that clients can connect; raises AddressError."""
        if self._listeners is not None:
            return
        wanted = self._wanted
        names = [] if wanted.path else resolve(wanted)
        if not (wanted.path or self._insecure or self._tls or are_loopback(names)):
            raise AddressError(
                f"{wanted}: others could read the disks on their way"
                " (encrypt with a file of keys, listen at localhost, or allow it as insecure)",
                6,
            )
        self._listeners = Listeners(wanted, names)
        self._wakers = socket.socketpair()
        for waker in self._wakers:
            waker.setblocking(False)

    def serve(self) -> None:
        """Serve until ``stop`` is called; end all connections before returning."""
        self.bind()
        assert self._listeners is not None and self._wakers is not None
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._wakers[0], selectors.EVENT_READ)
                for listener in self._listeners.sockets:
                    selector.register(listener, selectors.EVENT_READ, listener)
                while not self._stopping:
                    for key, _ in selector.select(_interruptible(self._reap())):
                        if key.data is None:
                            self._take_wakes()
                        elif not self._stopping:
                            self._accept(key.data)
        finally:
            self.close()

    def stop(self) -> None:
        """Make ``serve`` end; safe in signal handlers and from any thread, also before and after it."""
        self._stopping = True
        self._wake()

    def close(self) -> None:
        """Stop listening and end all connections; ``serve`` has done so when it returned."""
        self._stopping = True
        if self._listeners is not None:
            self._wanted = self._listeners.address
            self._listeners.close()
            self._listeners = None
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.end()
        deadline = time.monotonic() + _GRACE
        for connection in connections:
            connection.thread.join(max(0.0, deadline - time.monotonic()))
        for connection in connections:
            connection.cut()
        for connection in connections:
            connection.thread.join()
        wakers, self._wakers = self._wakers, None
        for waker in wakers or ():
            waker.close()

    def __enter__(self) -> Self:
        try:
            self.bind()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, peer = listener.accept()
        except OSError as error:  # most often a client that left again
            if error.errno in _NO_MORE:
                log.warning("no client can be accepted: %s", error.strerror)
                time.sleep(_PAUSE)
            return
        label = f"client {peer[0]}:{peer[1]}" if isinstance(peer, tuple) else f"client {accepted.fileno()}"
        if len(self._connections) >= self._max_connections:
            log.warning("%s: turned away, for %d are connected", label, len(self._connections))
            accepted.close()
            return
        connection = _Connection(self, accepted, label)
        try:
            connection.thread.start()
        except RuntimeError:
            log.warning("%s: turned away, for there are no threads left", label)
            accepted.close()
            return
        self._connections.append(connection)

    def _wake(self) -> None:
        wakers = self._wakers
        if wakers is not None:
            with suppress(OSError):  # full, which wakes as well; or closed by now
                wakers[1].send(b".")

    def _take_wakes(self) -> None:
        """Take what has woken ``serve``: only then, or a wake between a look and the next wait is lost."""
        assert self._wakers is not None
        with suppress(BlockingIOError):
            while self._wakers[0].recv(4096):
                pass

    def _reap(self) -> float | None:
        """Forget ended connections, cut slow handshakes; return the seconds until the next is due."""
        now = time.monotonic()
        living = []
        for connection in self._connections:
            if connection.ended:
                connection.thread.join()
                continue
            living.append(connection)
            if connection.deadline is not None and connection.deadline <= now:
                log.info("%s: no handshake within %.0f seconds", connection.label, self._handshake_timeout)
                connection.deadline = None
                connection.cut()
        self._connections = living
        deadlines = [connection.deadline for connection in living if connection.deadline is not None]
        return max(0.0, min(deadlines) - now) if deadlines else None


def _interruptible(seconds: float | None) -> float | None:
    """Return how long to wait at once: on Windows Ctrl-C ends no wait, its handler runs behind it."""
    if sys.platform != "win32":
        return seconds
    return _LONGEST_WAIT if seconds is None else min(seconds, _LONGEST_WAIT)


class _Connection:
    """One client, from its greeting to its end, in a thread of its own."""

    def __init__(self, server: NbdServer, accepted: socket.socket, label: str) -> None:
        self.label = label
        self.deadline: float | None = time.monotonic() + server._handshake_timeout
        self.ended = False
        self.thread = threading.Thread(target=self._run, name=f"nbd-{label}", daemon=True)
        self._server = server
        self._socket = accepted
        self._closing = threading.Lock()
        self._transmission: Transmission | None = None
        self._wire: Wire = PlainWire(accepted)

    def end(self) -> None:
        """Answer what was asked, and end; a handshake ends at once."""
        if self._transmission is None:
            self.cut()
        else:
            self._transmission.end()
            self._shut(socket.SHUT_RD)

    def cut(self) -> None:
        """End at once, whatever is being received or sent."""
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        with self._closing:  # else the number could be another file's by then
            shut(self._socket, how)

    def _run(self) -> None:
        try:
            prepare(self._socket)
            self._serve()
        except Refused as refused:
            log.warning("%s: %s; disconnected", self.label, refused)
        except Gone as gone:
            log.info("%s: %s", self.label, gone)
        finally:
            self._wire.close()
            with self._closing:
                self._socket.close()
            self.ended = True
            self._server._wake()

    def _serve(self) -> None:
        server = self._server
        session = HandshakeSession(
            Input(self._wire),
            server._exports,
            server._default,
            self._secure if server._tls else None,
            server._listed,
        )
        agreement = session.run()
        export, handle = agreement.export, agreement.handle
        try:
            log.info("%s: export %r", self.label, export.name)
            transmission = Transmission(
                session.input, agreement, threads=server._threads, label=self.label, cut=self.cut
            )
            self._transmission = transmission
            self.deadline = None
            if server._stopping:  # the end may have come before there was a transmission to tell
                transmission.end()
            transmission.run()
        finally:
            try:
                handle.close()
            except Exception as error:  # whatever it is, it is logged, and the server goes on
                error_number(error, f"{self.label}: closing", f"export {export.name!r}")

    def _secure(self) -> Wire:
        tls = self._server._tls
        assert tls is not None
        wire = tls.accept(self._socket, self._server._handshake_timeout)
        self._wire = wire
        log.info("%s: user %r, %s", self.label, wire.user, wire.description)
        return wire


def _check_export(export: Export) -> None:
    block = export.smallest_block
    if block < 1 or block & (block - 1) or block > 65536:
        raise ValueError(f"export {export.name!r}: {block} is no size of a block")
    if not 0 <= export.size < 1 << 63 or export.size % block:
        raise ValueError(f"export {export.name!r}: {export.size} bytes can't be in blocks of {block}")
    if len(export.name.encode()) > LONGEST_STRING:
        raise ValueError(f"an export's name is longer than {LONGEST_STRING} bytes")
