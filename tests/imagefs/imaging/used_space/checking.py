"""Used space held against other people's tools."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fixtures.partition_tables import copy_sparse, create_file
from fixtures.tools import run
from formats.blockreader import BlockReader
from formats.errors import ReadError
from imagefs.imaging.used_space import UsedSpace, used_space

UNIT = 512  # bytes of an item of the maps compared


def used_map(space: UsedSpace, size: int, seed: int = 1) -> NDArray[np.bool_]:
    """Return for each unit whether it is used, asked for in windows that begin and end anywhere."""
    found = np.zeros(size, np.bool_)
    generator = np.random.default_rng(seed)
    at = 0
    while at < size:
        length = min(size - at, int(generator.integers(1, size // 8)))
        runs = space.runs(at, length)
        check_form(runs, at, at + length)
        for start, end in runs.tolist():
            found[start:end] = True
        at += length
    whole = np.zeros(size, np.bool_)
    for start, end in space.runs(0, size).tolist():
        whole[start:end] = True
    assert (whole == found).all()
    padded = np.zeros(-(-size // UNIT) * UNIT, np.bool_)
    padded[:size] = found
    rows = padded.reshape(-1, UNIT)
    assert (rows.any(axis=1) == rows[:, 0]).all()
    return rows[:, 0].copy()


def check_form(runs: NDArray[np.int64], start: int, end: int) -> None:
    """Check that runs are ascending, apart from one another, not empty, and inside the window."""
    assert runs.dtype == np.int64
    assert runs.ndim == 2
    assert runs.shape[1] == 2
    if len(runs):
        assert (runs[:, 0] < runs[:, 1]).all()
        assert (runs[1:, 0] > runs[:-1, 1]).all()
        assert runs[0, 0] >= start
        assert runs[-1, 1] <= end


def free_by_sleuthkit(volume: Path, kind: str, unit: int) -> NDArray[np.bool_]:
    """Return for each unit of the volume whether blkls calls it free; ``unit`` is what its numbers count."""
    listed = run("blkls", "-f", kind, "-l", volume).decode().splitlines()
    free = np.zeros(volume.stat().st_size // UNIT, np.bool_)
    numbers = np.array([int(line[:-2]) for line in listed if line.endswith("|f")], np.int64)
    assert len(numbers)
    for shift in range(unit // UNIT):
        free[numbers * (unit // UNIT) + shift] = True
    return free


def free_by_dumpe2fs(volume: Path, block_size: int, cluster_size: int) -> NDArray[np.bool_]:
    """Return for each unit of the volume whether it is in dumpe2fs's lists of free blocks.

    Of clusters it lists their first blocks.
    """
    free = np.zeros(volume.stat().st_size // UNIT, np.bool_)
    for line in run("dumpe2fs", volume).decode().splitlines():
        if line.startswith("  Free blocks: "):
            for part in line.removeprefix("  Free blocks: ").split(","):
                first, _, last = part.strip().partition("-")
                if first:
                    at = int(first) * block_size // UNIT
                    free[at : (int(last or first) * block_size + cluster_size) // UNIT] = True
    return free


def space_of(volume: Path, *, sector_size: int = 512, exclude: tuple[str, ...] = ()) -> UsedSpace:
    """Return the used space of a volume file."""
    return used_space(ClosedFile(volume), sector_size, exclude=exclude)


def is_whole(space: UsedSpace, size: int) -> bool:
    """Whether everything is used."""
    return bool(space.runs(0, size).tolist() == [[0, size]])


def keep_used(volume: Path, target: Path, space: UsedSpace, filler: bytes = b"\0") -> Path:
    """Write a copy that holds of a volume what is used; everything else is ``filler``."""
    size = volume.stat().st_size
    if filler != b"\0":
        target.write_bytes(filler * size)
    with volume.open("rb") as source, target.open("r+b" if filler != b"\0" else "wb") as copy:
        copy.truncate(size)
        for start, end in space.runs(0, size).tolist():
            os.pwrite(copy.fileno(), os.pread(source.fileno(), end - start, start), start)
    return target


def tree_hashes(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a directory, and targets of links."""
    return dict(_hashes(root))


def _hashes(root: Path) -> Iterator[tuple[str, str]]:
    for folder, _, names in os.walk(os.fsencode(root)):
        for name in names:
            path = Path(os.fsdecode(folder)) / os.fsdecode(name)
            if path.is_symlink():
                yield str(path.relative_to(root)), str(path.readlink())
            elif path.is_file():
                with path.open("rb") as stream:
                    yield str(path.relative_to(root)), hashlib.file_digest(stream, "sha256").hexdigest()


def copy_of(volume: Path, target: Path) -> Path:
    """Return a copy of a volume to be changed."""
    copy_sparse(volume, create_file(target, volume.stat().st_size))
    return target


def patch(volume: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes of a volume."""
    with volume.open("r+b") as stream:
        os.pwrite(stream.fileno(), data, offset)


def bytes_at(volume: Path, offset: int, length: int) -> bytes:
    """Read bytes of a volume."""
    with volume.open("rb") as stream:
        return os.pread(stream.fileno(), length, offset)


class ClosedFile(BlockReader):
    """A file that is open only while it is read, so that nobody needs to close it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.stat().st_size)
        self._path = path

    def _read(self, offset: int, length: int) -> bytes:
        return bytes_at(self._path, offset, length)


class FailingReader(BlockReader):
    """A volume whose device fails to read some bytes."""

    def __init__(self, lower: BlockReader, start: int, end: int) -> None:
        super().__init__(lower.size)
        self._lower = lower
        self._bad = start, end

    def _read(self, offset: int, length: int) -> bytes:
        start, end = self._bad
        if offset < end and start < offset + length:
            raise ReadError(f"Input/output error at {offset}+{length}")
        return self._lower.read_at(offset, length)
