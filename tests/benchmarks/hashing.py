"""Benchmarks of hashing all files of a volume: imagefs hash against what hashes files on an ntfs-3g mount.

The volume is that of the mounts' benchmark. sha256sum and hashdeep run with as many processes or threads as
there are cores. Bytes are those of the files.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fixtures.mrimgx_writer import SetWriter
from tests.benchmarks import mounts

Work = Callable[[Path, str, Sequence[str]], None]


def imagefs_hash(image: Path, folder: str, algorithms: Sequence[str]) -> None:
    """Hash a folder of the image's volume."""
    command = [
        sys.executable,
        "-m",
        "imagefs",
        "hash",
        str(image),
        f"disk1/p1/{folder}",
        "--format",
        "hashdeep",
    ]
    for algorithm in algorithms:
        command += ["--algorithm", algorithm]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def coreutils(root: Path, folder: str, algorithms: Sequence[str]) -> None:
    """Hash a folder of a mount with the tool of each algorithm."""
    files = subprocess.run(["find", root / folder, "-type", "f", "-print0"], check=True, capture_output=True)
    for algorithm in algorithms:
        command = ["xargs", "-0", "-P", str(os.cpu_count() or 2), "-n", "64", f"{algorithm}sum"]
        subprocess.run(command, input=files.stdout, check=True, stdout=subprocess.DEVNULL)


def hashdeep(root: Path, folder: str, algorithms: Sequence[str]) -> None:
    """Hash a folder of a mount with hashdeep."""
    command = [
        "hashdeep",
        "-r",
        "-c",
        ",".join(algorithms),
        "-j",
        str(os.cpu_count() or 2),
        str(root / folder),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def compare(raw: Path, images: dict[str, Path], sizes: dict[str, int], runs: int) -> None:
    """Hash each folder with each tool in turn, and print the table."""
    print(f"\n{'':<34}{'':<14}{'MB/s':>12}{'of sha256sum':>14}")
    chosen: dict[str, Sequence[str]] = {"sha256": ["sha256"], "md5, sha256": ["md5", "sha256"]}
    for folder, size in sizes.items():
        for name, algorithms in chosen.items():
            seconds: dict[str, list[float]] = {}
            for _ in range(runs):
                for tool, work in (("coreutils", coreutils), ("hashdeep", hashdeep)):
                    with mounts.ntfs_3g(raw) as root:
                        seconds.setdefault(tool, []).append(timed(work, root, folder, algorithms))
                for kind, image in images.items():
                    taken = timed(imagefs_hash, image, folder, algorithms)
                    seconds.setdefault(f"imagefs, {kind}", []).append(taken)
            base = statistics.median(seconds["coreutils"])
            for tool, taken_all in seconds.items():
                taken = statistics.median(taken_all)
                print(
                    f"{folder + ', ' + name:<34}{tool:<18}{size / taken / 1e6:>8.0f}{base / taken:>14.2f}",
                    flush=True,
                )


def timed(work: Work, where: Path, folder: str, algorithms: Sequence[str]) -> float:
    """Return the seconds that hashing takes."""
    start = time.perf_counter()
    work(where, folder, algorithms)
    return time.perf_counter() - start


def run(folder: Path, runs: int, *, small: bool) -> None:
    """Build what is not in the folder yet, measure, print."""
    scale = mounts.Scale()
    if small:
        scale = mounts.Scale(mounts.BIG // 10, 6000, scale.copied // 10)
    images = {"zstd": folder / "zstd.mrimgx", "plain": folder / "plain.mrimgx"}
    if not all(path.exists() for path in images.values()):
        print("building …", flush=True)
        disk = mounts.build(folder, scale)
        for number, (level, path) in enumerate(zip(("medium", "none"), images.values(), strict=True)):
            writer = SetWriter(folder, image_id=f"{number:016X}", compression=level)
            writer.full([disk]).path.rename(path)
        disk.path.unlink()
    sizes = {"big.bin": scale.big, "copied": scale.copied, "many": scale.small_files * 800}
    compare(folder / "raw.ntfs", images, sizes, runs)
