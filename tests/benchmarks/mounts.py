"""Benchmarks of mounts against ntfs-3g on the raw volume.

One NTFS volume is built on a tmpfs and imaged twice, compressed (as Reflect's "medium") and not. Everything
is read through fresh mounts, ntfs-3g and imagefs in turn, three times each; the medians and their ratios are
printed. A ratio above 1 means that imagefs is faster. Nothing here fails when a figure is bad.
"""

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fixtures.content import noise
from fixtures.mrimgx_writer import SetWriter
from fixtures.partition_tables import MIB, BuiltDisk, Volume, gpt_disk
from fixtures.tools import fuse_mount
from fixtures.volumes import make_ntfs, mounted_ntfs

BIG = 1024 * MIB
READS = 20_000
HOT = 128 * MIB  # the part of the big file that warm random reads stay in


@dataclass(frozen=True)
class Scale:
    """How much is read."""

    big: int = BIG
    small_files: int = 60_000
    copied: int = 1500 * MIB
    wide: int = 100_000  # files of one directory


def build(folder: Path, scale: Scale) -> BuiltDisk:
    """Build the disk: one big file, many small files, one wide directory, and files of 1 MiB to copy."""
    size = scale.big + scale.copied + scale.small_files * 6144 + scale.wide * 2048 + 200 * MIB
    volume = make_ntfs(folder / "bench.volume", size // MIB * MIB, "bench")
    with mounted_ntfs(volume) as root:
        with (root / "big.bin").open("wb") as file:
            for offset in range(0, scale.big, MIB):
                # Incompressible but for an eighth of zeros, as a disk full of media has.
                file.write(noise(1, offset, MIB * 7 // 8) + bytes(MIB // 8))
        for number in range(scale.small_files):
            directory = root / "many" / f"{number // 100:03}"
            if number % 100 == 0:
                directory.mkdir(parents=True)
            (directory / f"file{number:06}.txt").write_bytes(noise(2, number * 800, 800))
        (root / "wide").mkdir()
        for number in range(scale.wide):
            (root / "wide" / f"file{number:06}.txt").write_bytes(b"%d" % number)
        for number in range(scale.copied // MIB):
            directory = root / "copied" / f"{number // 50:02}"
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"part{number:05}.bin").write_bytes(noise(3, number * MIB, MIB))
    os.link(volume, folder / "raw.ntfs")  # the disk takes the other name away
    return gpt_disk(
        folder / "bench.raw",
        [Volume(volume, volume.stat().st_size, "NTFS", "bench")],
        "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3BE",
    )


@contextmanager
def ntfs_3g(volume: Path) -> Iterator[Path]:
    """Mount the raw volume with ntfs-3g as people do: with the kernel's permission checks, read-only."""
    mountpoint = volume.with_name("ntfs-3g")
    with fuse_mount(mountpoint, "ntfs-3g", "-o", "ro,no_detach", volume, mountpoint) as root:
        yield root


@contextmanager
def imagefs(image: Path, mechanism: str) -> Iterator[Path]:
    """Mount the image's partition."""
    mountpoint = image.parent / "imagefs"
    mountpoint.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "imagefs"]
    options = ["--volume", "disk1/p1", "--mechanism", mechanism]
    subprocess.run([*command, "mount", image, mountpoint, *options], check=True, stdout=subprocess.DEVNULL)
    try:
        yield mountpoint
    finally:
        subprocess.run([*command, "umount", mountpoint], check=True)


def read_sequentially(root: Path) -> float:
    """Read the big file once; return bytes a second."""
    buffer = memoryview(bytearray(MIB))
    start, total = time.perf_counter(), 0
    with (root / "big.bin").open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total / (time.perf_counter() - start)


def find_files(root: Path) -> float:
    """Find all files; return files a second."""
    start = time.perf_counter()
    done = subprocess.run(["find", root / "many", "-type", "f"], check=True, capture_output=True)
    return done.stdout.count(b"\n") / (time.perf_counter() - start)


def find_attributes(root: Path) -> float:
    """Find all files by their size, which asks for every one's attributes; return files a second."""
    start = time.perf_counter()
    done = subprocess.run(
        ["find", root / "many", "-type", "f", "-size", "+0"], check=True, capture_output=True
    )
    return done.stdout.count(b"\n") / (time.perf_counter() - start)


def list_names(root: Path) -> float:
    """List a wide directory; return names a second."""
    start = time.perf_counter()
    count = len(os.listdir(root / "wide"))  # noqa: PTH208
    return count / (time.perf_counter() - start)


def list_attributes(root: Path) -> float:
    """List a wide directory as ``ls -l`` does; return names a second."""
    start = time.perf_counter()
    done = subprocess.run(["ls", "-l", "-n", "-U", root / "wide"], check=True, capture_output=True)
    return done.stdout.count(b"\n") / (time.perf_counter() - start)


def find_one(root: Path) -> float:
    """Stat one name of a wide directory right after mounting; return how often that fits into a second."""
    start = time.perf_counter()
    (root / "wide" / "file004711.txt").stat()
    return 1 / (time.perf_counter() - start)


def read_randomly(root: Path, span: int) -> float:
    """Read 4 KiB at random; return reads a second."""
    chance = random.Random(1)
    offsets = [chance.randrange(span // 4096) * 4096 for _ in range(READS)]
    with (root / "big.bin").open("rb", buffering=0) as file:
        start = time.perf_counter()
        for offset in offsets:
            os.pread(file.fileno(), 4096, offset)
        return READS / (time.perf_counter() - start)


def copy_tree(root: Path) -> float:
    """Copy many files with cp -r; return bytes a second."""
    target = Path(tempfile.mkdtemp(dir=root.parent))
    try:
        start = time.perf_counter()
        subprocess.run(["cp", "-r", root / "copied", target], check=True)
        return size_of(target) / (time.perf_counter() - start)
    finally:
        shutil.rmtree(target)


def copy_out(image: Path) -> float:
    """Copy the same files with imagefs cp; return bytes a second."""
    target = Path(tempfile.mkdtemp(dir=image.parent))
    try:
        start = time.perf_counter()
        command = [sys.executable, "-m", "imagefs", "cp", str(image), "disk1/p1/copied", str(target)]
        subprocess.run(command, check=True)
        return size_of(target) / (time.perf_counter() - start)
    finally:
        shutil.rmtree(target)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def compare(volume: Path, images: dict[str, tuple[Path, str]], scale: Scale, runs: int) -> None:
    """Run everything in turn and print the table."""
    reads: dict[str, tuple[Callable[[Path], float], str, float]] = {
        "sequential read, 1 file": (read_sequentially, "MB/s", 1e6),
        "find -type f": (find_files, "files/s", 1),
        "find -size, attributes of all": (find_attributes, "files/s", 1),
        "list a wide directory, names": (list_names, "names/s", 1),
        "list a wide directory, ls -l": (list_attributes, "names/s", 1),
        "first stat in it": (find_one, "/s", 1),
        "random 4 KiB, whole file, cold": (lambda root: read_randomly(root, scale.big), "reads/s", 1),
        "random 4 KiB, 128 MiB of it": (lambda root: read_randomly(root, min(HOT, scale.big)), "reads/s", 1),
    }
    print(f"\n{'':<34}{'image':<14}{'ntfs-3g':>12}{'imagefs':>12}{'':<9}{'ratio':>7}")
    for name, (measure, unit, scale_by) in reads.items():
        theirs: list[float] = []
        ours: dict[str, list[float]] = {kind: [] for kind in images}
        for _ in range(runs):
            with ntfs_3g(volume) as root:
                theirs.append(measure(root))
            for kind, (image, mechanism) in images.items():
                with imagefs(image, mechanism) as root:
                    ours[kind].append(measure(root))
        show(name, unit, scale_by, theirs, ours)
    theirs, ours = [], {kind: [] for kind, (_, mechanism) in images.items() if mechanism == "devfuse"}
    for _ in range(runs):
        with ntfs_3g(volume) as root:
            theirs.append(copy_tree(root))
        for kind, figures in ours.items():
            figures.append(copy_out(images[kind][0]))
    show("copying many files", "MB/s", 1e6, theirs, ours)


def show(name: str, unit: str, scale_by: float, theirs: list[float], ours: dict[str, list[float]]) -> None:
    """Print the medians of one measurement."""
    base = statistics.median(theirs)
    for kind, figures in ours.items():
        figure = statistics.median(figures)
        print(
            f"{name:<34}{kind:<14}{base / scale_by:>12.0f}{figure / scale_by:>12.0f} {unit:<8}"
            f"{figure / base:>7.2f}",
            flush=True,
        )


def run(folder: Path, runs: int, *, small: bool) -> None:
    """Build what is not in the folder yet, measure, print."""
    scale = Scale(BIG // 10 // MIB * MIB, 6000, 150 * MIB) if small else Scale()
    files = {"medium": folder / "zstd.mrimgx", "none": folder / "plain.mrimgx"}
    if not all(path.exists() for path in files.values()):
        print("building …", flush=True)
        disk = build(folder, scale)
        for number, (level, path) in enumerate(files.items()):
            writer = SetWriter(folder, image_id=f"{number:016X}", compression=level)
            writer.full([disk]).path.rename(path)
        disk.path.unlink()
    images = {
        "zstd": (files["medium"], "devfuse"),
        "uncompressed": (files["none"], "devfuse"),
        "zstd, mfusepy": (files["medium"], "mfusepy"),
    }
    compare(folder / "raw.ntfs", images, scale, runs)
