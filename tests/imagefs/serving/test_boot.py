"""A disk with a few bytes of boot code, imaged, and run from its image."""

import hashlib
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixtures.content import noise
from fixtures.partition_tables import MIB
from fixtures.tools import find_tool, run
from imagefs.imaging import backup
from tests.conftest import Ran, run_imagefs

SECTOR = 512
WRITTEN = 2100  # the sector that the machine writes to, inside the partition
FIRST, SECOND, FAILED = b"started\r\n", b"wrote\r\n", b"failed\r\n"
TCG = ("--serial", "--accel", "tcg", "--memory", "64M", "--cpus", "1")


def boot_code(*, ends: bool = True) -> bytes:
    """Return code for 0000:7C00: it tells COM1, writes itself to a sector, tells COM1, and ends."""
    head = bytes.fromhex("fa 31c0 8ed8 8ec0 8ed0 bc007c fb fc 52")  # segments, stack; keep the drive
    printing = bytes.fromhex("ac 84c0 7406 baf803 ee ebf5 c3")  # from SI, up to a zero
    power_off = bytes.fromhex("ba0406 b80020 ef") if ends else b""  # the chipset's sleep register
    halt = bytes.fromhex("f4 ebfd")
    packet = struct.pack("<BBHHHQ", 16, 0, 1, 0x7C00, 0, WRITTEN)
    texts = [FIRST + b"\0", SECOND + b"\0", FAILED + b"\0"]

    def code(places: list[int], print_at: int) -> bytes:
        out = bytearray(head)

        def call() -> None:
            out.extend(b"\xe8" + struct.pack("<h", print_at - (0x7C00 + len(out) + 3)))

        def point(place: int) -> None:
            out.extend(b"\xbe" + struct.pack("<H", place))

        point(places[1])
        call()
        out.extend(b"\x5a")  # the drive again
        point(places[0])
        out.extend(bytes.fromhex("b443 b000 cd13"))  # extended write
        point(places[2])
        out.extend(b"\x73\x03")  # it worked: skip what follows
        point(places[3])
        call()
        return bytes(out) + power_off + halt

    length = len(code([0] * 4, 0))
    pieces = [printing, packet, *texts]
    starts = [0x7C00 + length + sum(map(len, pieces[:at])) for at in range(len(pieces))]
    return code(starts[1:], starts[0]) + b"".join(pieces)


def boot_disk(path: Path, *, ends: bool = True) -> None:
    """Make a disk that starts: an MBR with the code, and one active partition of noise."""
    code = boot_code(ends=ends)
    assert len(code) <= 440
    entry = struct.pack("<B3xB3xII", 0x80, 0x83, 2048, 2048)
    sector = code.ljust(446, b"\0") + entry.ljust(64, b"\0") + b"\x55\xaa"
    with path.open("wb") as stream:
        stream.write(sector)
        stream.seek(MIB)
        stream.write(noise(8, 0, MIB))
        stream.truncate(3 * MIB)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    find_tool("qemu-system-x86_64")
    folder = tmp_path_factory.mktemp("boot")
    boot_disk(folder / "disk.raw")
    return backup(folder / "disk.raw", folder / "set").path


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def check_ran(done: Ran) -> None:
    assert done.code == 0, done.errors
    assert done.output == FIRST + SECOND


def test_an_image_runs_and_stays_as_it_is(image: Path) -> None:
    before = digests(image.parent)
    check_ran(run_imagefs("boot", image, *TCG))
    assert digests(image.parent) == before


def test_what_is_written_is_kept(image: Path, tmp_path: Path) -> None:
    """The overlay has the sector that the machine wrote, and a second run goes on with it."""
    before, overlay = digests(image.parent), tmp_path / "overlay"
    for _ in range(2):
        check_ran(run_imagefs("boot", image, *TCG, "--keep-overlay", overlay))
        served = tmp_path / "socket"
        arguments = [sys.executable, "-m", "imagefs", "serve", str(image), "--nbd", f"unix:{served}"]
        with subprocess.Popen([*arguments, "--overlay", str(overlay)], stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout is not None
                server.stdout.readline()
                run("qemu-img", "convert", "-f", "raw", "-O", "raw", f"nbd+unix:///?socket={served}",
                    tmp_path / "after.raw")  # fmt: skip
            finally:
                server.terminate()
        data = (tmp_path / "after.raw").read_bytes()
        disk = bytearray((image.parent.parent / "disk.raw").read_bytes())
        disk[WRITTEN * SECTOR : (WRITTEN + 1) * SECTOR] = disk[:SECTOR]
        assert data == disk
    assert digests(image.parent) == before


def test_the_overlay_of_another_image(image: Path, tmp_path: Path) -> None:
    boot_disk(tmp_path / "disk.raw")
    other = backup(tmp_path / "disk.raw", tmp_path / "set").path
    check_ran(run_imagefs("boot", other, *TCG, "--keep-overlay", tmp_path / "overlay"))
    done = run_imagefs("boot", image, *TCG, "--keep-overlay", tmp_path / "overlay")
    assert (done.code, done.output) == (6, b"")
    assert "the overlay belongs to disk0 of set" in done.errors


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ended_by_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """The machine ends with imagefs, however that ends; after SIGTERM no file is left either."""
    find_tool("qemu-system-x86_64")
    boot_disk(tmp_path / "disk.raw", ends=False)
    image = backup(tmp_path / "disk.raw", tmp_path / "set").path
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "imagefs", "boot", str(image), *TCG]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline() for _ in range(2)]
            (machine,) = children(process.pid)
        finally:
            process.send_signal(number)
        process.wait(60)
    assert lines == [FIRST, SECOND]
    deadline = time.monotonic() + 60
    while Path(f"/proc/{machine}").exists():
        assert time.monotonic() < deadline, "the machine goes on"
        time.sleep(0.02)
    if number == signal.SIGTERM:
        assert process.returncode == 130
        assert not list(scratch.iterdir())


def test_qemu_fails(image: Path) -> None:
    """What it said is told."""
    done = run_imagefs("boot", image, "--serial", "--accel", "tcg", "--memory", "100000000G")
    assert (done.code, done.output) == (7, b"")
    assert "qemu-system-x86_64: " in done.errors
    assert done.errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--firmware", "coreboot"], "there is no firmware 'coreboot'"),
        (["--accel", "magic"], "there is no accelerator 'magic'"),
        (["--memory", "much"], "'much' is no size of a memory"),
        (["--disk", "disk7"], "there is no disk7"),
        (["--vnc", "127.0.0.1:80"], "is no address for VNC"),
    ],
)
def test_wrong_usage(image: Path, arguments: list[str], says: str) -> None:
    done = run_imagefs("boot", image, *arguments)
    assert (done.code, done.output) == (2, b"")
    assert says in done.errors
