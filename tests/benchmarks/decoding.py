"""Benchmarks of what Windows compressed, on one core, against wimlib (XPRESS, LZX) and ntfs-3g (LZNT1).

The source is machine code and other files of this machine, 64 MiB. wimlib-imagex verifies a WIM file of it,
which is decoding and a SHA-1; ntfscat reads it from an NTFS volume on which it is compressed. The same
resource, and the same volume, are read through imagefs, 1 MiB at a time. Seconds are the processor's.
"""

import hashlib
import os
import resource
import statistics
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from fixtures.ntfs_wof import ALGORITHMS, resources, wof_point
from fixtures.partition_tables import MIB
from fixtures.tools import find_tool
from fixtures.tools import run as run_tool
from fixtures.volumes import make_ntfs, mounted_ntfs, set_xattr
from formats.blockreader import BlockReader, BytesReader, FileReader
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.wof import WofReader, parse_wof
from tests.benchmarks.imaging import real_files


def run(folder: Path, runs: int, *, small: bool) -> None:
    """Run them all and print."""
    source = _source(folder / "source", (6 if small else 64) * MIB)
    print(f"decoding {len(source) / MIB:.0f} MiB on one core: MB/s, median of {runs}")
    for name, (number, method, chunk) in ALGORITHMS.items():
        archive = folder / f"{name}.wim"
        options = (f"--compress={method}", f"--chunk-size={chunk}", "--no-solid", "--no-acls")
        run_tool("wimlib-imagex", "capture", folder / "source", archive, *options)
        stream = resources(archive.read_bytes())[hashlib.sha1(source).digest()]
        reader = WofReader(BytesReader(stream), len(source), parse_wof(wof_point(number), name), name)
        assert reader.read_at(0, reader.size) == source
        ours = [_seconds(lambda reader=reader: _read(reader)) for _ in range(runs)]  # type: ignore[misc]
        theirs = [_tool_seconds("wimlib-imagex", "verify", str(archive)) for _ in range(runs)]
        _print(name, len(source), ours, "wimlib-imagex verify", theirs)
    _lznt1(folder, source, runs)
    _one_byte()


def _source(folder: Path, size: int) -> bytes:
    folder.mkdir(exist_ok=True)
    content = bytearray()
    for path in real_files():
        content += path.read_bytes()
        if len(content) >= size:
            break
    (folder / "source").write_bytes(content[:size])
    return bytes(content[:size])


def _lznt1(folder: Path, source: bytes, runs: int) -> None:
    volume = make_ntfs(folder / "lznt1.volume", 2 * len(source) + 16 * MIB, "lznt1")
    with mounted_ntfs(volume) as root:
        set_xattr(root, "system.ntfs_attrib_be", struct.pack(">I", 0x810))
        (root / "source").write_bytes(source)
    with FileReader(volume) as lower:
        opened = NtfsFileSystem(lower)
        reader = opened.open(opened.lookup(opened.root, "source"))
        assert reader.read_at(0, reader.size) == source
        ours = [_seconds(lambda: _read(reader)) for _ in range(runs)]
    theirs = [_tool_seconds("ntfscat", "-f", str(volume), "source") for _ in range(runs)]
    _print("lznt1", len(source), ours, "ntfscat", theirs)


def _one_byte() -> None:
    """Read a byte in the middle of a file of 2 GiB, whose chunks are all alike."""
    size, chunk = 2 << 30, 4096
    count = size // chunk
    plain = bytes(range(256)) * (chunk // 256)
    table = struct.pack(f"<{count - 1}I", *(number * chunk for number in range(1, count)))

    class Stream(BlockReader):
        """The table, then chunks that are not compressed; counts what is read."""

        read = 0

        def _read(self, offset: int, length: int) -> bytes:
            Stream.read += length
            if offset + length <= len(table):
                return table[offset : offset + length]
            head = table[offset : offset + length]
            at = max(offset, len(table)) - len(table)
            return head + (plain * (length // chunk + 2))[at % chunk :][: length - len(head)]

    stream = Stream(len(table) + size)
    reader = WofReader(stream, size, parse_wof(wof_point(0), "file"), "file")
    start = time.perf_counter()
    reader.read_at(size // 2 + 1, 1)
    print(f"one byte of 2 GiB: {1e6 * (time.perf_counter() - start):.0f} µs, {Stream.read} bytes read")


def _read(reader: BlockReader) -> None:
    buffer = memoryview(bytearray(MIB))
    for offset in range(0, reader.size, MIB):
        reader.read_into(offset, buffer[: min(MIB, reader.size - offset)])


def _seconds(work: Callable[[], None]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _tool_seconds(tool: str, *arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [find_tool(tool), *arguments]
    with Path(os.devnull).open("wb") as nowhere:
        subprocess.run(command, check=True, stdout=nowhere, stderr=nowhere)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _print(name: str, size: int, ours: list[float], tool: str, theirs: list[float]) -> None:
    mine, other = (size / 1e6 / statistics.median(times) for times in (ours, theirs))
    print(f"{name:<12}{mine:8.0f}   {tool:<22}{other:8.0f}   ratio {mine / other:.2f}")
