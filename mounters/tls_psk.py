"""TLS with keys that both sides know beforehand, and no certificates: a binding of GnuTLS.

It is the library that qemu, nbdkit and libnbd use; Python 3.11's ``ssl`` knows no such keys. Keys are in a
file as psktool writes it: lines of ``user:key``, the key in hexadecimal digits. Offered are TLS 1.3 and
1.2; forward secrecy is preferred, a client that can only do without it gets that.
"""

import contextlib
import ctypes
import ctypes.util
import logging
import os
import re
import socket
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mounters.errors import MountError
from mounters.nbd_wire import Buffer

log = logging.getLogger(__name__)

_PRIORITIES = (
    b"NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-KX-ALL:+ECDHE-PSK:+DHE-PSK:+PSK"
    b":-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305:%SERVER_PRECEDENCE"  # the fastest first
)

# gnutls.h
_SERVER, _NO_SIGNAL, _NO_TICKETS = 1 << 0, 1 << 6, 1 << 10  # flags of gnutls_init
_CREDENTIALS_PSK = 4
_SEC_PARAM_MEDIUM = 35
_RECORD_WAIT = 1
_SHUT_WR = 1
_E_AGAIN, _E_REHANDSHAKE, _E_INTERRUPTED = -28, -37, -52
_RETRY = (_E_AGAIN, _E_INTERRUPTED)

_CORK = 4 << 20  # bytes that the library gathers, to encrypt and send them by one call
_LINE = re.compile(rb"[^:\s]+:(?:[0-9A-Fa-f]{2})+")
_LARGEST_FILE = 1 << 20


class TlsError(MountError):
    """Encryption can't be offered: no library, or no usable file of keys; ``exit_code`` says which."""


class TlsFailedError(ConnectionError):
    """One connection's encryption failed; the message is the library's."""


class _GnuTls:
    """The library's functions, with their types. Calls release the interpreter's lock."""

    def __init__(self) -> None:
        library = _load()
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        integer, unsigned, text = ctypes.c_int, ctypes.c_uint, ctypes.c_char_p

        def function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
            found = getattr(library, f"gnutls_{name}")
            found.restype, found.argtypes = result, list(arguments)
            return found  # type: ignore[no-any-return]

        try:
            self.strerror = function("strerror", text, integer)
            self.allocate_credentials = function("psk_allocate_server_credentials", integer, pointer)
            self.free_credentials = function("psk_free_server_credentials", None, pointer)
            self.credentials_file = function("psk_set_server_credentials_file", integer, pointer, text)
            self.known_dh_params = function("psk_set_server_known_dh_params", integer, pointer, integer)
            self.init = function("init", integer, pointer, unsigned)
            self.deinit = function("deinit", None, pointer)
            self.priority = function("priority_set_direct", integer, pointer, text, pointer)
            self.credentials_set = function("credentials_set", integer, pointer, integer, pointer)
            self.transport = function("transport_set_int2", None, pointer, integer, integer)
            self.timeout = function("handshake_set_timeout", None, pointer, unsigned)
            self.handshake = function("handshake", integer, pointer)
            self.alert = function("alert_send_appropriate", integer, pointer, integer)
            self.username = function("psk_server_get_username", text, pointer)
            self.version = function("protocol_get_version", integer, pointer)
            self.version_name = function("protocol_get_name", text, integer)
            self.exchange = function("kx_get", integer, pointer)
            self.exchange_name = function("kx_get_name", text, integer)
            self.cipher = function("cipher_get", integer, pointer)
            self.cipher_name = function("cipher_get_name", text, integer)
            self.recv = function("record_recv", ctypes.c_ssize_t, pointer, pointer, size)
            self.send = function("record_send", ctypes.c_ssize_t, pointer, pointer, size)
            self.cork = function("record_cork", None, pointer)
            self.uncork = function("record_uncork", integer, pointer, unsigned)
            self.bye = function("bye", integer, pointer, integer)
        except (AttributeError, ValueError) as error:
            raise TlsError(
                f"the GnuTLS library is too old: {error} (TLS with keys needs version 3.6)"
            ) from None

    def check(self, result: int, doing: str) -> None:
        """Raise what a function's result says."""
        if result < 0:
            raise TlsFailedError(f"{doing}: {self.strerror(result).decode(errors='replace')}")


def _load() -> ctypes.CDLL:
    for name in ("libgnutls.so.30", "libgnutls.30.dylib", ctypes.util.find_library("gnutls")):
        if name:
            with contextlib.suppress(OSError):
                return ctypes.CDLL(name)
    raise TlsError("TLS needs the GnuTLS library (Debian, Ubuntu: apt install libgnutls30; others: gnutls)")


_library_lock = threading.Lock()
_libraries: list[_GnuTls] = []


def _gnutls() -> _GnuTls:
    with _library_lock:
        if not _libraries:
            _libraries.append(_GnuTls())
        return _libraries[0]


class PskCredentials:
    """The keys of a file, for any number of connections; close it after the last of them."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Check the file and load the library; raise TlsError."""
        self.path = Path(path)
        _check_file(self.path)
        self._library = _gnutls()
        self._pointer = ctypes.c_void_p()
        library = self._library
        try:
            library.check(library.allocate_credentials(ctypes.byref(self._pointer)), "TLS credentials")
            name = os.fsencode(self.path.absolute())
            library.check(library.credentials_file(self._pointer, name), str(self.path))
            library.check(library.known_dh_params(self._pointer, _SEC_PARAM_MEDIUM), "TLS parameters")
        except TlsFailedError as error:
            self.close()
            raise TlsError(str(error)) from None

    def accept(self, connection: socket.socket, timeout: float) -> "TlsWire":
        """Shake hands on a blocking socket within so many seconds; raise TlsFailedError."""
        if not self._pointer:
            raise TlsFailedError("the keys are closed")
        return TlsWire(self._library, self._pointer, connection, timeout)

    def close(self) -> None:
        """Forget the keys."""
        if self._pointer:
            self._library.free_credentials(self._pointer)
            self._pointer = ctypes.c_void_p()


class TlsWire:
    """An encrypted connection, as nbd_wire.Wire: one thread receives while one other sends."""

    def __init__(
        self, library: _GnuTls, credentials: ctypes.c_void_p, connection: socket.socket, timeout: float
    ) -> None:
        self._library = library
        self._socket = connection  # kept: the library knows only its number
        self._session = ctypes.c_void_p()
        library.check(library.init(ctypes.byref(self._session), _SERVER | _NO_SIGNAL | _NO_TICKETS), "TLS")
        try:
            session = self._session
            library.check(library.priority(session, _PRIORITIES, None), "TLS priorities")
            library.check(library.credentials_set(session, _CREDENTIALS_PSK, credentials), "TLS credentials")
            library.transport(session, connection.fileno(), connection.fileno())
            library.timeout(session, max(1, int(timeout * 1000)))
            result = library.handshake(session)
            while result in _RETRY:
                result = library.handshake(session)
            if result < 0:
                library.alert(session, result)
            library.check(result, "TLS handshake")
        except BaseException:
            self._free()
            raise

    @property
    def user(self) -> str:
        """The name that the client gave with its key."""
        name = self._library.username(self._session)
        return str(name.decode(errors="backslashreplace")) if name else ""

    @property
    def description(self) -> str:
        """The version and algorithms in use, such as "TLS1.3, ECDHE-PSK, AES-128-GCM"."""
        library, session = self._library, self._session
        names = (
            library.version_name(library.version(session)),
            library.exchange_name(library.exchange(session)),
            library.cipher_name(library.cipher(session)),
        )
        return ", ".join(name.decode() for name in names if name)

    def recv_into(self, view: memoryview) -> int:
        """Receive; see Wire."""
        target = (ctypes.c_char * len(view)).from_buffer(view)
        while True:
            result: int = self._library.recv(self._session, target, len(view))
            if result >= 0:
                return result
            if result not in _RETRY:  # a new handshake in mid-connection is not done either
                self._library.check(result, "TLS")

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send; see Wire."""
        library, session = self._library, self._session
        library.cork(session)
        gathered = 0
        for buffer in buffers:
            data = buffer if isinstance(buffer, bytes) else bytes(buffer)
            address = _address(data)
            for start in range(0, len(data), _CORK):
                step = min(_CORK, len(data) - start)
                if gathered + step > _CORK:
                    library.check(library.uncork(session, _RECORD_WAIT), "TLS")
                    library.cork(session)
                    gathered = 0
                library.check(library.send(session, address + start, step), "TLS")
                gathered += step
        library.check(library.uncork(session, _RECORD_WAIT), "TLS")

    def close(self) -> None:
        """Say good-bye, and free the session; only when no other thread uses it."""
        if self._session:
            self._socket.settimeout(0)  # a client that reads no more gets no good-bye
            with contextlib.suppress(OSError):
                self._library.bye(self._session, _SHUT_WR)
            self._free()

    def _free(self) -> None:
        self._library.deinit(self._session)
        self._session = ctypes.c_void_p()


def _address(data: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def _check_file(path: Path) -> None:
    """Refuse a file that holds no keys, before a client finds out."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                log.warning("%s: other users may read these keys (chmod 600)", path)
            text = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise TlsError(f"{path}: {error.strerror} (make keys: psktool -u NAME -p FILE)") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or len(text) > _LARGEST_FILE:
        raise TlsError(f"{path}: holds no keys (make keys: psktool -u NAME -p FILE)")
    for number, line in enumerate(lines, 1):
        if not _LINE.fullmatch(line):
            raise TlsError(f"{path}: key {number} is not USER:HEXADECIMAL-KEY, as psktool writes it")
