"""Benchmarks of imaging against qemu-img, ntfsclone, and the bounds that the container sets.

The source is a GPT disk of 6 GiB whose NTFS volume holds about 2 GiB: programs and libraries of this machine,
text, and bytes that don't compress. The bounds are a bare loop over the same used blocks, 1 MiB at a time, on
as many threads as there are cores: MD5 alone, and MD5 with zstd level 1, of each 64 KiB.
"""

import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import zstandard

from fixtures.content import noise
from fixtures.partition_tables import MIB, BuiltDisk, Volume, gpt_disk
from fixtures.volumes import make_ntfs, mounted_ntfs
from formats.blockreader import FileReader, SliceReader
from imagefs.imaging import backup
from imagefs.imaging.options import BackupOptions
from imagefs.imaging.used_space import used_space
from imagefs.parallel import workers

BLOCK = 65536
GUID = "0B1F9A54-7C3D-4E8A-9D21-64F0A1C2E3BF"
PASSWORD = "benchmark"


def build(folder: Path, size: int, used: int) -> BuiltDisk:
    """Build the disk; ``used`` are the bytes of its files."""
    volume = make_ntfs(folder / "imaging.volume", size, "bench")
    with mounted_ntfs(volume) as root:
        real = _copy_real_files(root / "programs", used // 2)
        for number in range((used - real) // (8 * MIB)):
            target = root / "data" / f"part{number:04}.bin"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(noise(1, number * MIB, 4 * MIB) + _text(number, 4 * MIB))
    return gpt_disk(folder / "imaging.raw", [Volume(volume, size, "NTFS", "bench")], GUID)


def _copy_real_files(folder: Path, most: int) -> int:
    """Copy files of this machine until there are enough; return their bytes."""
    total = 0
    for path in real_files():
        length = path.stat().st_size
        if total + length > most:
            break
        target = folder / f"{total >> 26:02}" / f"{total:012}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        total += length
    return total


def real_files() -> Iterator[Path]:
    """Yield the files of this machine, in one fixed order."""
    for place in ("/usr/lib", "/usr/bin", "/usr/share"):
        for parent, names, files in os.walk(place):
            names.sort()
            for name in sorted(files):
                path = Path(parent, name)
                if path.is_file() and not path.is_symlink():
                    yield path


def _text(seed: int, length: int) -> bytes:
    lines = (
        f"{seed} {number} {number * number % 9973:x} the quick brown fox\n" for number in range(length // 30)
    )
    return "".join(lines).encode().ljust(length, b".")[:length]


def used_runs(disk: BuiltDisk) -> list[tuple[int, int]]:
    """Return the runs of used blocks of the partition, at most 1 MiB each: offset on the disk, length."""
    part = disk.partitions[0]
    runs = []
    with FileReader(disk.path) as reader:
        space = used_space(SliceReader(reader, part.offset, part.size))
        end = 0
        for start, stop in space.runs(0, part.size).tolist():
            low = max(end, start // BLOCK * BLOCK)
            end = max(end, min(-(-stop // BLOCK) * BLOCK, part.size))
            runs += [(part.offset + at, min(MIB, end - at)) for at in range(low, end, MIB)]
    return runs


def bare_loop(path: Path, runs: Sequence[tuple[int, int]], *, compress: bool) -> tuple[float, int]:
    """Hash, and compress, every block on all cores; return the seconds and the compressed bytes."""
    lock, waiting = threading.Lock(), iter(runs)
    totals = []

    def work() -> None:
        buffer = bytearray(MIB)
        view = memoryview(buffer)
        compressor = zstandard.ZstdCompressor(1)
        total = 0
        with path.open("rb", buffering=0) as file:
            while True:
                with lock:
                    run = next(waiting, None)
                if run is None:
                    break
                os.preadv(file.fileno(), [view[: run[1]]], run[0])
                for at in range(0, run[1], BLOCK):
                    piece = view[at : min(at + BLOCK, run[1])]
                    hashlib.md5(piece).digest()
                    if compress:
                        total += len(compressor.compress(piece))
        totals.append(total)

    start = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(workers())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, sum(totals)


def timed(command: str, out: Path) -> float:
    """Run a shell command that writes ``out``; return the seconds."""
    out.unlink(missing_ok=True)
    start = time.perf_counter()
    subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    out.unlink(missing_ok=True)
    return seconds


def command_line(source: Path, target: Path, *options: str) -> float:
    """Back up by the command line, its start included; return the seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "imagefs", "backup", str(source), str(target), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def library(source: Path, target: Path, password: str | None = None, **options: str) -> float:
    """Back up by the library; return the seconds."""
    start = time.perf_counter()
    backup(source, target, BackupOptions(**options), password=password)  # type: ignore[arg-type]
    return time.perf_counter() - start


def copy_range(source: Path, at: int, target: Path, to: int, length: int) -> None:
    """Copy bytes of a file into another."""
    with source.open("rb") as reading, target.open("r+b" if target.exists() else "w+b") as writing:
        reading.seek(at)
        writing.seek(to)
        for done in range(0, length, 16 * MIB):
            writing.write(reading.read(min(16 * MIB, length - done)))


def change(disk: BuiltDisk, share: float, used: int) -> None:
    """Overwrite a share of the used bytes, in place, through ntfs-3g."""
    part = disk.partitions[0]
    volume = disk.path.with_suffix(".part")
    copy_range(disk.path, part.offset, volume, 0, part.size)
    with mounted_ntfs(volume) as root:
        left = int(used * share)
        for number, path in enumerate(sorted((root / "data").iterdir())):
            if left <= 0:
                break
            with path.open("r+b") as file:
                file.write(noise(100 + number, 0, MIB))
            left -= MIB
    copy_range(volume, 0, disk.path, part.offset, part.size)
    volume.unlink()


def run(folder: Path, runs: int, *, small: bool) -> None:
    """Build, measure, print."""
    scale = 10 if small else 1
    size, used = 6 * 1024 * MIB // scale // MIB * MIB, 2 * 1024 * MIB // scale
    print("building …", flush=True)
    disk = build(folder, size, used)
    blocks = used_runs(disk)
    total = sum(length for _, length in blocks)
    print(f"{total / 1e6:.0f} MB of used blocks on a disk of {disk.size / 1e6:.0f} MB, {workers()} threads")
    part = disk.partitions[0]
    with disk.path.open("rb") as raw, (folder / "part.ntfs").open("wb") as copy:
        copy.truncate(part.size)
        for offset, length in blocks:
            raw.seek(offset)
            copy.seek(offset - part.offset)
            copy.write(raw.read(length))
    target = folder / "set"
    fulls: dict[str, Callable[[Path, Path], float]] = {
        "full, encrypted": lambda source, to: library(source, to, PASSWORD),
        "full, command": command_line,
        "full": library,
    }
    incs: dict[str, Callable[[Path, Path], float]] = {
        "inc, 1 % changed": lambda source, to: library(source, to, type="inc"),
        "inc, 1 % changed, command": lambda source, to: command_line(source, to, "--type", "inc"),
    }
    out = folder / "out"
    convert = f"qemu-img convert -O qcow2 -c -o compression_type=zstd -m 8 -W {disk.path} {out}"
    save = f"ntfsclone --save-image -o - {folder / 'part.ntfs'} | zstd -1 -T0 -q -o {out}"
    figures: dict[str, list[float]] = defaultdict(list)
    stored = compressed = 0
    for _ in range(runs):
        if shutil.which("qemu-img"):
            figures["qemu-img"].append(timed(convert, out))
        if shutil.which("ntfsclone") and shutil.which("zstd"):
            figures["ntfsclone"].append(timed(save, out))
        for name, how in fulls.items():
            if name == "full":  # beside what it is held against
                seconds, compressed = bare_loop(disk.path, blocks, compress=True)
                figures["MD5 and zstd"].append(seconds)
            shutil.rmtree(target, ignore_errors=True)
            figures[name].append(how(disk.path, target))
            stored = sum(path.stat().st_size for path in target.iterdir())
        figures["MD5"].append(bare_loop(disk.path, blocks, compress=False)[0])
        figures["inc, nothing changed"].append(library(disk.path, target, type="inc"))
    change(disk, 0.01, used)
    for _ in range(runs):
        figures["MD5 again"].append(bare_loop(disk.path, blocks, compress=False)[0])
        for name, how in incs.items():
            for path in sorted(target.iterdir())[1:]:
                path.unlink()
            figures[name].append(how(disk.path, target))
    show(figures, total)
    print(f"stored {stored} bytes, {stored / compressed - 1:+.2%} of one zstd level 1 frame for each block")
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


def show(figures: dict[str, list[float]], total: int) -> None:
    """Print the medians, and those of each round's ratios: a machine's speed changes between rounds."""
    median = {name: statistics.median(values) for name, values in figures.items()}
    print(f"\n{'':<28}{'seconds':>9}{'MB/s':>9}   {'ratio to':<14}{'':>6}")
    for name, against in (
        ("qemu-img", ()),
        ("ntfsclone", ()),
        ("MD5 and zstd", ()),
        ("MD5", ()),
        ("full, command", ("qemu-img", "ntfsclone", "MD5 and zstd")),
        ("full", ("qemu-img", "ntfsclone", "MD5 and zstd")),
        ("full, encrypted", ("MD5 and zstd", "full")),
        ("inc, nothing changed", ("MD5",)),
        ("MD5 again", ()),
        ("inc, 1 % changed", ("MD5 again",)),
        ("inc, 1 % changed, command", ("MD5 again",)),
    ):
        if name not in median:
            continue
        rounds = {
            other: zip(figures[other], figures[name], strict=True) for other in against if other in median
        }
        ratios = "  ".join(
            f"{other} {statistics.median(a / b for a, b in both):.2f}" for other, both in rounds.items()
        )
        print(f"{name:<28}{median[name]:>9.2f}{total / median[name] / 1e6:>9.0f}   {ratios}", flush=True)
