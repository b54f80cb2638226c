"""Small disks of noise, their changes, and what a point of a set must give back."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fixtures.content import noise
from fixtures.disks import plain_disk
from fixtures.partition_tables import MIB, BuiltDisk
from tests.fixtures import plain_reader

PASSWORD = "correct horse"


@dataclass(frozen=True)
class NoiseDisk:
    """A disk file whose partitions hold noise, and none a file system."""

    built: BuiltDisk

    @property
    def path(self) -> Path:
        return self.built.path

    def place(self, part: int, offset: int) -> int:
        """Return where on the disk a byte of a partition is."""
        return self.built.partitions[part].offset + offset

    def overwrite(self, part: int, offset: int, length: int, seed: int) -> None:
        """Change bytes of a partition."""
        with self.path.open("r+b") as stream:
            stream.seek(self.place(part, offset))
            stream.write(noise(seed, offset, length))

    def contents(self) -> list[bytes]:
        """Return the bytes of the partitions."""
        data = self.path.read_bytes()
        return [data[part.offset : part.offset + part.size] for part in self.built.partitions]


def noise_disk(folder: Path, sizes: tuple[int, ...] = (3 * MIB + 4096, MIB), seed: int = 9) -> NoiseDisk:
    folder.mkdir(parents=True, exist_ok=True)
    return NoiseDisk(plain_disk(folder, "disk", sizes=sizes, seed=seed))


def restored(
    folder: Path, image_id: str, number: int, disk: NoiseDisk, password: str | None = None
) -> list[bytes]:
    """Return the partitions as the plain reader restores them from a set, which may have others beside it."""
    with tempfile.TemporaryDirectory() as alone:
        for path in folder.glob(f"{image_id}*.mrimgx"):
            (Path(alone) / path.name).symlink_to(path.absolute())
        data = plain_reader.restore(Path(alone), number, password=password)
    return [data[part.offset : part.offset + part.size] for part in disk.built.partitions]


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files beside which something is to happen that must not touch them."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def copied(folder: Path, to: Path) -> Path:
    """Copy a folder, in place of what was there."""
    if to.exists():
        shutil.rmtree(to)
    shutil.copytree(folder, to)
    return to


def unfinished_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.unfinished"))


def newest(folder: Path) -> tuple[str, int]:
    """Return the image id and the file number of the newest index of the set that was written to last."""
    path = max(folder.glob("*.mrimgx"), key=lambda each: (each.stat().st_mtime_ns, each.name))
    header = plain_reader.open_file(path).header
    return str(header["imageid"]), int(header["file_number"])
