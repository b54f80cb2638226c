"""An NBD server for a program that we run ourselves, which no other user gets anything from.

On POSIX systems it listens at a socket in a folder of this user alone. On Windows it is a port of this
machine, which every user's programs can connect to: what it has must be asked for by a secret, which stands
in the command line of the program. That can be read by this user's programs and by administrators alone, and
so can what passes between.
"""

import secrets
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mounters.export import Export
from mounters.nbd_server import Address, NbdServer

_SECRET = 24  # bytes
_LONGEST = 90  # bytes of a folder's path: a socket's may have little more than 100


@dataclass(frozen=True, slots=True)
class PrivateServer:
    """Where a private server listens, and the folder of its own, which is removed with it."""

    folder: Path
    address: Address
    secret: str = ""  # before the name of each export

    def uri(self, name: str) -> str:
        """Return the NBD URI of an export."""
        return self.address.uri(self.secret + name)

    def node(self, name: str) -> dict[str, object]:
        """Return what qemu's "nbd" driver is told of an export."""
        where: dict[str, object] = {"type": "unix", "path": self.address.path}
        if not self.address.path:
            where = {"type": "inet", "host": self.address.host, "port": str(self.address.port)}
        return {"driver": "nbd", "server": where, "export": self.secret + name}


@contextmanager
def private_server(
    exports: Sequence[Export], *, at_port: bool = sys.platform == "win32"
) -> Iterator[PrivateServer]:
    """Serve exports from a thread, in a temporary folder of this user alone, until the block is left.

    ``at_port`` is for systems whose sockets have no files.
    """
    place = tempfile.gettempdir()
    if not at_port and len(place) > _LONGEST:
        place = "/tmp"  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="imagefs-", dir=place) as name:
        folder = Path(name)
        secret = secrets.token_urlsafe(_SECRET) if at_port else ""
        address = Address("127.0.0.1", 0) if at_port else Address(path=str(folder / "nbd"))
        server = NbdServer(exports, address, secret=secret)
        with server:
            thread = threading.Thread(target=server.serve, name="nbd")
            thread.start()
            try:
                yield PrivateServer(folder, server.address, secret)
            finally:
                server.stop()
                thread.join()
