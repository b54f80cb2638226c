"""Where an NBD server listens: addresses, what they resolve to, and listening sockets.

A socket file belongs to the server that made it: one left by a dead server is replaced, one of a living
server is not, and a file that is no socket is never touched.
"""

import contextlib
import errno
import ipaddress
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mounters.errors import MountError
from mounters.nbd_protocol import DEFAULT_PORT

_BACKLOG = 128
_SAME_PORT_TRIES = 16
_LOCK_SECONDS = 5.0


class AddressError(MountError):
    """The server can't listen there: misspelt (exit code 2), refused (6) or failed (7)."""


@dataclass(frozen=True, slots=True)
class Address:
    """A socket file (``path``), or a host and a port; port 0 is any free one."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"{self._bracketed()}:{self.port}"

    def uri(self, name: str = "", *, tls: bool = False) -> str:
        """Return the NBD URI of an export, as nbdinfo, nbdcopy and qemu take it."""
        scheme = "nbds" if tls else "nbd"
        if self.path:
            return f"{scheme}+unix:///{quote(name, safe='')}?socket={quote(self.path)}"
        return f"{scheme}://{self._bracketed()}:{self.port}/{quote(name, safe='')}"

    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def parse_address(text: str) -> Address:
    """Return the address of "unix:/path", "HOST", "HOST:PORT" or "[IPv6]:PORT"; else raise AddressError.

    Without a port it is 10809.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise AddressError(f"{text!r}: an address starting with unix: names a socket file", 2)
        return Address(path=os.path.abspath(path))  # noqa: PTH100  (links in it are kept)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest else str(DEFAULT_PORT)
        misspelt = not bracket or (rest != "" and not rest.startswith(":")) or not _is_ipv6(host)
    elif _is_ipv6(text):  # with one colon more it could be a port: with none, it can't
        host, port, misspelt = text, str(DEFAULT_PORT), False
    else:
        host, colon, port = text.partition(":")
        port = port if colon else str(DEFAULT_PORT)
        misspelt = not host or "/" in host or any(not " " < char <= "~" for char in host)
    if misspelt or not port.isdecimal() or not port.isascii() or int(port) > 65535:
        raise AddressError(f"{text!r} is no address (try HOST, HOST:PORT, [IPV6]:PORT or unix:/PATH)", 2)
    return Address(host, int(port))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


SocketName = tuple[socket.AddressFamily, tuple[object, ...]]


def resolve(address: Address) -> list[SocketName]:
    """Return every family and socket name of a host and port; raise AddressError where there is none."""
    try:
        found = socket.getaddrinfo(
            address.host,
            address.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        raise AddressError(f"{address.host}: {reason}", 7) from None
    internet = (socket.AF_INET, socket.AF_INET6)
    return list(dict.fromkeys((item[0], item[4]) for item in found if item[0] in internet))


def is_loopback(address: Address) -> bool:
    """Tell whether only this machine reaches an address: all that a host's name resolves to must be so."""
    return bool(address.path) or are_loopback(resolve(address))


def are_loopback(names: list[SocketName]) -> bool:
    """Tell whether all resolved addresses are of this machine alone."""
    return bool(names) and all(_is_local(str(name[0])) for _, name in names)


def _is_local(host: str) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (inner or address).is_loopback


class Listeners:
    """The listening sockets of one address; ``close`` also removes the socket file, if it is still ours."""

    def __init__(self, address: Address, names: list[SocketName]) -> None:
        """Listen at a socket file, or at resolved ``names``; raise AddressError where that fails."""
        self.sockets: list[socket.socket] = []
        self._identity: tuple[int, int] | None = None
        try:
            if address.path:
                self.address = address
                self._listen_at_file(address.path)
            else:
                self.address = Address(address.host, self._listen_at(address, names))
        except OSError as error:
            self.close()
            raise _explained(address, error) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening."""
        if self._identity is not None:
            path = Path(self.address.path)
            with contextlib.suppress(OSError):  # while we listen, nobody takes it for a dead server's
                info = path.lstat()
                if (info.st_dev, info.st_ino) == self._identity:
                    path.unlink()
            self._identity = None
        for listener in self.sockets:
            listener.close()
        self.sockets.clear()

    def _listen_at(self, address: Address, names: list[SocketName]) -> int:
        """Listen at all names with one port, and return it."""
        for _ in range(_SAME_PORT_TRIES):
            port = address.port
            failed: OSError | None = None
            for family, name in names:
                try:
                    listener = _listening(family, (name[0], port, *name[2:]))
                except OSError as error:
                    failed = error
                    if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                        continue  # a name for both families, on a machine with one
                    break
                self.sockets.append(listener)
                port = listener.getsockname()[1]
            else:
                if self.sockets:
                    return port
            assert failed is not None
            for listener in self.sockets:
                listener.close()
            self.sockets.clear()
            if address.port != 0 or failed.errno != errno.EADDRINUSE:
                raise failed
        raise AddressError(f"{address.host}: no port is free for all addresses of that name", 6)

    if sys.platform == "win32":

        def _listen_at_file(self, path: str) -> None:
            raise AddressError(f"unix:{path}: Windows serves at ports only (try localhost:10809)", 2)

    else:

        def _listen_at_file(self, path: str) -> None:
            with _locked(Path(path).parent):
                _remove_stale(Path(path))
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self.sockets.append(listener)
                # On Linux the file gets its mode from here; elsewhere it is narrowed before anybody can
                # connect, for nobody can before it listens.
                with contextlib.suppress(OSError):
                    os.fchmod(listener.fileno(), 0o600)
                listener.bind(path)
                info = os.lstat(path)
                self._identity = (info.st_dev, info.st_ino)
                if stat.S_IMODE(info.st_mode) != 0o600:
                    Path(path).chmod(0o600)
                listener.setblocking(False)
                listener.listen(_BACKLOG)


def _listening(family: socket.AddressFamily, name: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # where an address that may be used again is anybody's to take over
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(name)
        listener.setblocking(False)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


if sys.platform != "win32":
    import fcntl

    def _remove_stale(path: Path) -> None:
        """Remove the socket file of a server that is no more."""
        try:
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise AddressError(f"{path} exists and is no socket (choose another name)", 6)
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            except TimeoutError:  # its backlog is full: somebody listens
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    @contextlib.contextmanager
    def _locked(folder: Path) -> Iterator[None]:
        """Keep other servers from replacing socket files in a folder at the same moment."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        deadline = time.monotonic() + _LOCK_SECONDS
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:  # some programs lock a folder for good
                        raise AddressError(
                            f"{folder}: locked by another program (choose another)", 6
                        ) from None
                    time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)


def _explained(address: Address, error: OSError) -> AddressError:
    if error.errno == errno.EADDRINUSE:
        hint = "another server listens there; end it, or choose another address"
        return AddressError(f"{address}: in use ({hint})", 6)
    if error.errno in (errno.EACCES, errno.EPERM):
        port = "another program has that port" if sys.platform == "win32" else "ports below 1024 need root"
        hint = "choose a folder of your own" if address.path else port
        return AddressError(f"{address}: not allowed ({hint})", 6)
    if error.errno == errno.EADDRNOTAVAIL:
        return AddressError(f"{address}: this machine does not have that address", 6)
    return AddressError(f"{address}: {error.strerror or error}", 7)
