"""Benchmarks of getting data back, against qemu-img and qemu-nbd over a zstd qcow2 of the same disk.

The disk is that of the benchmarks of imaging. The MD5 bound is a bare loop over its used blocks, on as many
threads as there are cores: a delta restore that finds nothing to do has to hash as much.
"""

import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fixtures.partition_tables import MIB
from imagefs.restore.job import restore
from imagefs.restore.options import RestoreOptions
from tests.benchmarks.imaging import bare_loop, build, library, used_runs

_ROWS = (
    ("qemu-img convert", ()),
    ("restore", ("qemu-img convert",)),
    ("restore, command", ("qemu-img convert",)),
    ("MD5", ()),
    ("delta, nothing changed", ("MD5",)),
    ("delta, command", ("MD5",)),
    ("nbdcopy of qemu-nbd", ()),
    ("nbdcopy of serve", ("nbdcopy of qemu-nbd",)),
    ("one request at a time, qemu-nbd", ()),
    ("one request at a time, serve", ("one request at a time, qemu-nbd",)),
)


def command(*arguments: object) -> float:
    """Run imagefs as a command; return the seconds, its start included."""
    start = time.perf_counter()
    words = [sys.executable, "-m", "imagefs", *map(str, arguments)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def run_tool(*words: object) -> float:
    """Run a tool; return the seconds."""
    start = time.perf_counter()
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def by_library(image: Path, target: Path, *, delta: bool) -> float:
    """Restore by the library; return the seconds."""
    start = time.perf_counter()
    report = restore(image, target, RestoreOptions(delta=delta))
    assert (report.blocks_written == 0) is delta
    return time.perf_counter() - start


@contextmanager
def serving(words: Sequence[object], socket: Path) -> Iterator[None]:
    """Run a server until the block is left; entered when its socket is there."""
    with subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL) as process:
        try:
            while not socket.exists():
                if process.poll() is not None:
                    raise RuntimeError(f"{words[0]} ended with {process.returncode}")
                time.sleep(0.05)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def read_served(
    words: Sequence[object], socket: Path, runs: Sequence[tuple[int, int]]
) -> tuple[float, float]:
    """Read a served disk: all of it with many requests at once, and some of it with one at a time."""
    uri = f"nbd+unix:///?socket={socket}"
    with serving(words, socket):
        many = run_tool("nbdcopy", uri, "null:")
        reads = [word for at, length in runs[:256] for word in ("-c", f"read {at} {length}")]
        one = run_tool("qemu-io", "-r", "-f", "raw", *reads, f"nbd+unix:///?socket={socket}")
    return many, one


def run(folder: Path, runs: int, *, small: bool) -> None:
    """Build, measure, print."""
    scale = 10 if small else 1
    size, used = 6 * 1024 * MIB // scale // MIB * MIB, 2 * 1024 * MIB // scale
    disk_path, images, qcow2 = folder / "imaging.raw", folder / "set", folder / "disk.qcow2"
    print("building …", flush=True)
    disk = build(folder, size, used)
    (folder / "imaging.volume").unlink(missing_ok=True)
    shutil.rmtree(images, ignore_errors=True)
    library(disk_path, images)
    (image,) = images.iterdir()
    run_tool(
        "qemu-img",
        "convert",
        "-O",
        "qcow2",
        "-c",
        "-o",
        "compression_type=zstd",
        "-m",
        8,
        "-W",
        disk_path,
        qcow2,
    )
    blocks = used_runs(disk)
    total = sum(length for _, length in blocks)
    print(
        f"{total / 1e6:.0f} MB of used blocks on a disk of {disk.size / 1e6:.0f} MB, {os.cpu_count()} cores"
    )
    out, socket = folder / "out.raw", folder / "socket"
    serve = [sys.executable, "-m", "imagefs", "serve", image, "--nbd", f"unix:{socket}"]
    qemu_nbd = ["qemu-nbd", "-r", "-f", "qcow2", "-t", "-e", "8", "-k", socket, qcow2]
    figures: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        out.unlink(missing_ok=True)
        figures["qemu-img convert"].append(
            run_tool("qemu-img", "convert", "-O", "raw", "-m", 8, "-W", qcow2, out)
        )
        out.unlink()
        figures["restore, command"].append(command("restore", image, out))
        out.unlink()
        figures["restore"].append(by_library(image, out, delta=False))
        figures["MD5"].append(bare_loop(out, blocks, compress=False)[0])
        figures["delta, nothing changed"].append(by_library(image, out, delta=True))
        figures["delta, command"].append(command("restore", image, out, "--delta", "--yes"))
        out.unlink()
        for name, words in (("qemu-nbd", qemu_nbd), ("serve", serve)):
            many, one = read_served(words, socket, blocks)
            figures[f"nbdcopy of {name}"].append(many)
            figures[f"one request at a time, {name}"].append(one)
    show(figures, total)
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB,")
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"of the largest one that it started {children} MiB")


def show(figures: dict[str, list[float]], total: int) -> None:
    """Print the medians, and those of each round's ratios: a machine's speed changes between rounds."""
    print(f"\n{'':<34}{'seconds':>9}{'MB/s':>8}   ratio to")
    for name, against in _ROWS:
        seconds = statistics.median(figures[name])
        ratios = []
        for other in against:
            rounds = zip(figures[other], figures[name], strict=True)
            ratios.append(f"{other} {statistics.median(a / b for a, b in rounds):.2f}")
        speed = f"{total / seconds / 1e6:>8.0f}" if not name.startswith("one") else " " * 8
        print(f"{name:<34}{seconds:>9.2f}{speed}   {'  '.join(ratios)}", flush=True)
