"""Bytes between an NBD server and one client, plain or encrypted.

One thread receives while others send, one at a time: whoever sends holds a lock of its own.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from typing import Protocol

_IOV_MAX = min(1024, os.sysconf("SC_IOV_MAX")) if hasattr(os, "sysconf") else 16
_SOCKET_BUFFER = 2 << 20  # bytes; a reply of usual size is handed over at once
_INPUT = 64 << 10  # bytes received ahead: many requests by one call
_KEEPALIVE_IDLE = 30  # seconds
_KEEPALIVE_INTERVAL = 10  # seconds
_KEEPALIVE_COUNT = 6

Buffer = bytes | bytearray | memoryview


class Gone(Exception):  # noqa: N818  (it is how connections end, as StopIteration is how loops do)
    """The client has ended the connection, in the middle of something or not."""


class Wire(Protocol):
    """A way to and from the client. Errors are OSError."""

    def recv_into(self, view: memoryview) -> int:
        """Receive up to as many bytes as there is room for; 0 at the end."""

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send all bytes of all buffers."""

    def close(self) -> None:
        """Say good-bye where that is usual, and free what is held; the socket stays open."""


class PlainWire:
    """The socket itself."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def recv_into(self, view: memoryview) -> int:
        """Receive; see Wire."""
        return self._socket.recv_into(view)

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send; see Wire."""
        if len(buffers) == 1 or sys.platform == "win32":  # where sockets take one buffer at a time
            self._socket.sendall(buffers[0] if len(buffers) == 1 else b"".join(buffers))
            return
        left = list(buffers)
        while left:
            sent = self._socket.sendmsg(left[:_IOV_MAX])
            done = 0
            while done < len(left) and sent >= len(left[done]):
                sent -= len(left[done])
                done += 1
            del left[:done]
            if sent:
                left[0] = memoryview(left[0])[sent:]

    def close(self) -> None:
        """Do nothing: the end of the connection says it all."""


class Input:
    """What is received, ahead of what is asked for. Raises Gone where the client ends."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._buffer = bytearray(_INPUT)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    @property
    def buffered(self) -> int:
        """Bytes that were received and not yet asked for."""
        return self._end - self._start

    def exactly(self, length: int) -> bytes:
        """Return the next bytes."""
        if self._end - self._start < length:
            if length > _INPUT:
                whole = bytearray(length)
                self.into(memoryview(whole))
                return bytes(whole)
            self._fill(length)
        start = self._start
        self._start = start + length
        return bytes(self._view[start : self._start])

    def into(self, target: memoryview) -> None:
        """Fill ``target`` with the next bytes."""
        have = min(self.buffered, len(target))
        target[:have] = self._view[self._start : self._start + have]
        self._start += have
        while have < len(target):
            have += self._receive(target[have:])

    def skip(self, length: int) -> None:
        """Drop the next bytes."""
        while length:
            if not self.buffered:
                self._start = self._end = 0
                self._end = self._receive(self._view)
            step = min(length, self.buffered)
            self._start += step
            length -= step

    def _fill(self, length: int) -> None:
        if self._start + length > _INPUT or self._start == self._end:
            have = self._end - self._start
            self._buffer[:have] = self._buffer[self._start : self._end]
            self._start, self._end = 0, have
        while self._end - self._start < length:
            self._end += self._receive(self._view[self._end :])

    def _receive(self, view: memoryview) -> int:
        try:
            received = self.wire.recv_into(view)
        except OSError as error:
            raise Gone(str(error)) from None
        if not received:
            raise Gone("the client closed the connection")
        return received


def prepare(connection: socket.socket) -> None:
    """Set a connection up for speed, and for noticing that the other side is dead.

    There is no limit to how long a living client may leave replies unread: a paused machine is one.
    """
    connection.setblocking(True)
    with contextlib.suppress(OSError):
        if sys.platform != "win32" and connection.family == socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
            return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_COUNT)


def shut(connection: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """End what is being received or sent, whichever thread waits for it."""
    with contextlib.suppress(OSError):
        connection.shutdown(how)
