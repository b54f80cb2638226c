"""An NBD server for a program that we run ourselves: at a socket that no other user can reach."""

import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mounters.export import Export
from mounters.nbd_server import Address, NbdServer

_LONGEST = 90  # bytes of a folder's path: a socket's may have little more than 100


@dataclass(frozen=True, slots=True)
class PrivateServer:
    """Where a private server listens, and the folder of its own, which is removed with it."""

    folder: Path
    address: Address

    def uri(self, name: str) -> str:
        """Return the NBD URI of an export."""
        return self.address.uri(name)


@contextmanager
def private_server(exports: Sequence[Export]) -> Iterator[PrivateServer]:
    """Serve exports from a thread, in a temporary folder of this user alone, until the block is left."""
    place = tempfile.gettempdir()
    if len(place) > _LONGEST:
        place = "/tmp"  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="imagefs-", dir=place) as name:
        folder = Path(name)
        server = NbdServer(exports, Address(path=str(folder / "nbd")))
        with server:
            thread = threading.Thread(target=server.serve, name="nbd")
            thread.start()
            try:
                yield PrivateServer(folder, server.address)
            finally:
                server.stop()
                thread.join()
