"""Servers for tests, in a thread of this process; and the proof that nothing of them remains."""

import random
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fixtures.tools import find_tool, tool_environment
from mounters.nbd_server import Address, NbdServer
from mounters.tls_psk import PskCredentials
from tests.mounters.nbd_memory import MemoryExport

PATIENCE = 60.0  # seconds until a test that hangs fails instead


@contextmanager
def serving(
    exports: Sequence[MemoryExport],
    address: Address,
    *,
    default: str | None = None,
    tls: PskCredentials | None = None,
    max_connections: int = 64,
    handshake_timeout: float = 30.0,
) -> Iterator[NbdServer]:
    """Serve in the background; in the end no thread, socket file or open handle may remain."""
    server = NbdServer(
        exports,
        address,
        default=default,
        tls=tls,
        max_connections=max_connections,
        handshake_timeout=handshake_timeout,
    )
    before = nbd_threads()
    server.bind()
    thread = threading.Thread(target=server.serve, name="nbd-accepting")
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE)
        server.close()
    assert not thread.is_alive()
    assert nbd_threads() <= before
    if address.path:
        assert not Path(address.path).exists()
    for export in exports:
        assert export.opened == export.closed


def nbd_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("nbd-")}


def sparse_content(size: int, seed: int, block: int = 65536) -> bytes:
    """Return random bytes with holes: about every third block is zeros."""
    maker = random.Random(seed)
    parts = []
    for at in range(0, size, block):
        length = min(block, size - at)
        parts.append(bytes(length) if maker.random() < 0.35 else maker.randbytes(length))
    return b"".join(parts)


def failing(tool: str, *arguments: str | Path, timeout: float = PATIENCE) -> str:
    """Run a tool that is to fail, and return what it said."""
    done = subprocess.run(
        [find_tool(tool), *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=timeout,
        env=tool_environment(),
    )
    assert done.returncode != 0, done.stdout
    return (done.stdout + done.stderr).decode(errors="replace")
