"""Sets of small disks, and the server of the command line as a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.disks import change_disk, plain_disk
from fixtures.mrimgx_writer import SetWriter, WrittenFile
from fixtures.partition_tables import MIB
from fixtures.tools import find_tool

TOOLS = ("qemu-img", "qemu-io", "nbdinfo")


@dataclass(frozen=True)
class Plain:
    """A set of a disk without file systems: a full, and an incremental of the changed disk."""

    folder: Path
    full: WrittenFile
    incremental: WrittenFile


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    for tool in TOOLS:
        find_tool(tool)
    scratch, folder = tmp_path_factory.mktemp("disks"), tmp_path_factory.mktemp("set")
    built = plain_disk(scratch, sizes=(3 * MIB + 4096, MIB))
    writer = SetWriter(folder, image_id="5E12A1B2C3D4E5F6", name="plain")
    return Plain(folder, writer.full([built]), writer.incremental([change_disk(built, scratch, "changed")]))


@dataclass
class Server:
    """A server that listens: what it told of its exports."""

    process: subprocess.Popen[bytes]
    exports: dict[str, dict[str, object]]
    default: str | None
    errors: Path  # what it said on standard error
    socket: Path

    def uri(self, name: str) -> str:
        return str(self.exports[name]["uri"])

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it by a signal; return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


Serving = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    """Return what serves a source as a user would, until the block is left."""

    @contextmanager
    def serve(source: Path, *options: str | Path, nbd: str = "", password: str = "") -> Iterator[Server]:
        socket, said = tmp_path / "socket", tmp_path / "said"
        command = [sys.executable, "-m", "imagefs", "serve", str(source), "--json", *map(str, options)]
        with said.open("wb") as errors, subprocess.Popen(
            [*command, "--nbd", nbd or f"unix:{socket}"],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"IMAGEFS_PASSWORD": password},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            try:
                lines = []
                for line in process.stdout:
                    lines.append(line)
                    if line == b"}\n":
                        break
                assert lines, said.read_text()
                document = json.loads(b"".join(lines))
                exports = {entry["name"]: entry for entry in document["exports"]}
                yield Server(process, exports, document["default"], said, socket)
            finally:
                if process.poll() is None:
                    process.terminate()
        assert process.returncode == 0, said.read_text()
        assert not socket.exists()

    return serve
