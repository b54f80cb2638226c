"""Disks made and read by other tools: sfdisk, sgdisk, parted, partx and mmls."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fixtures.volumes import detach
from formats.blockreader import FileReader
from formats.partition_table import Kind, PartitionTable, Piece, read_table

MIB = 1 << 20


def require_tool(name: str) -> None:
    """Skip the test when a tool is missing; fail instead in continuous integration."""
    if shutil.which(name) is None:
        message = f"{name} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


def run(*command: str | Path, stdin: str = "") -> str:
    require_tool(str(command[0]))
    done = subprocess.run(
        [str(part) for part in command],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def device(path: Path, sector_size: int) -> Iterator[Path]:
    """Yield what a tool opens to see ``path`` with its sector size: the file, or a loop device."""
    if sector_size == 512:
        yield path
        return
    if sys.platform == "win32" or os.geteuid() != 0:
        pytest.skip(f"sectors of {sector_size} bytes need a loop device, and that needs root")
    loop = run("losetup", "--show", "-f", "-b", str(sector_size), path).strip()
    try:
        yield Path(loop)
    finally:
        detach(Path(loop))


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def sgdisk(path: Path, sector_size: int, arguments: str) -> str:
    with device(path, sector_size) as place:
        return run("sgdisk", *shlex.split(arguments), place)


def sfdisk(path: Path, sector_size: int, script: str, *options: str) -> str:
    with device(path, sector_size) as place:
        return run("sfdisk", "--no-reread", "--no-tell-kernel", *options, place, stdin=script)


def sfdisk_json(path: Path, sector_size: int) -> dict[str, Any]:
    """Return sfdisk's view of a disk, its device names reduced to partition numbers."""
    with device(path, sector_size) as place:
        table: dict[str, Any] = json.loads(run("sfdisk", "--json", place))["partitiontable"]
    del table["device"]
    for partition in table.get("partitions", []):
        number = re.search(r"(\d+)$", partition.pop("node"))
        assert number
        partition["number"] = int(number[1])
    return table


class Run(NamedTuple):
    """A partition as every tool shows it, in sectors."""

    start: int
    sectors: int


def mmls(path: Path, sector_size: int) -> list[Run]:
    """Return what sleuthkit shows as allocated partitions, in ascending order of start."""
    output = run("mmls", "-b", str(sector_size), "-a", path)
    rows = re.findall(r"^\d+:\s+\S+\s+(\d+)\s+\d+\s+(\d+)", output, re.MULTILINE)
    return sorted(Run(int(start), int(length)) for start, length in rows)


def partx(path: Path, sector_size: int) -> dict[int, Run]:
    """Return util-linux libblkid's view; it counts in units of 512 bytes whatever the sector size."""
    output = run("partx", "-S", str(sector_size), "-g", "-r", "-o", "NR,START,SECTORS", path)
    rows = [[int(field) for field in line.split()] for line in output.splitlines()]
    unit = sector_size // 512
    return {number: Run(start // unit, sectors // unit) for number, start, sectors in rows}


def verify(path: Path, sector_size: int) -> None:
    """Let sgdisk and sfdisk look for faults in a GPT."""
    assert "No problems found" in sgdisk(path, sector_size, "-v")
    with device(path, sector_size) as place:
        assert "No errors detected" in run("sfdisk", "--verify", place)


def write(path: Path, pieces: Sequence[Piece]) -> None:
    with path.open("r+b") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)


def table_of(path: Path, sector_size: int) -> PartitionTable:
    with FileReader(path) as reader:
        table = read_table(reader, sector_size, disk_size=reader.size)
    assert table is not None
    return table


def check_against_tools(path: Path, sector_size: int) -> PartitionTable:
    """Hold read_table against sfdisk, partx and mmls; returns what it read."""
    table = table_of(path, sector_size)
    expected = sfdisk_json(path, sector_size)
    assert table.problems == ()
    assert table.sector_size == expected["sectorsize"] == sector_size
    assert table.scheme == {"gpt": "gpt", "dos": "mbr"}[expected["label"]]
    assert table.disk_id == expected["id"].upper().removeprefix("0X")
    rows: list[dict[str, Any]] = []
    for entry in table.partitions:
        assert entry.offset % sector_size == entry.size % sector_size == 0
        rows.append({"number": entry.number, "start": entry.offset // sector_size})
        rows[-1] |= {"size": entry.size // sector_size, "type": entry.type}
        if table.scheme == "gpt":
            rows[-1] |= {"uuid": entry.id} | ({"name": entry.name} if entry.name else {})
        else:
            rows[-1]["type"] = f"{int(entry.type, 16):x}"
            rows[-1] |= {"bootable": True} if entry.bootable else {}
    without_attributes = [
        {key: value for key, value in row.items() if key != "attrs"} for row in expected.get("partitions", [])
    ]
    assert rows == without_attributes
    if table.partitions:
        runs = {e.number: Run(e.offset // sector_size, e.size // sector_size) for e in table.partitions}
        shown = partx(path, sector_size)
        for entry in table.partitions:
            if entry.kind is Kind.EXTENDED:  # partx shows a stub of it, mmls shows it as metadata
                del runs[entry.number], shown[entry.number]
        assert shown == runs
        assert mmls(path, sector_size) == sorted(runs.values())
    return table


GPT_SFDISK = """label: gpt
label-id: 2D37A83C-3F86-4734-849E-FD9A833D874A
{header}
size=3MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name="EFI system partition", attrs="RequiredPartition"
5: size=5MiB, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, name="Daten äöü 漢字 🦊", attrs="LegacyBIOSBootable"
6: type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name="thirty-six characters fill the field"
"""


def gpt_by_sfdisk(path: Path, sector_size: int, header: str = "") -> None:
    sfdisk(path, sector_size, GPT_SFDISK.format(header=header))


def gpt_by_sgdisk(path: Path, sector_size: int) -> None:
    first = "-a 1 -n 1:0:+1M -t 1:0c01 -c 1:'Microsoft reserved partition' -A 1:set:63"
    rest = "-n 4:0:+7M -t 4:0700 -c 4:'Basic data partition' -n 128:0:0 -A 128:set:2 -A 128:set:0"
    sgdisk(path, sector_size, f"{first} {rest}")


def gpt_of_8(path: Path, sector_size: int) -> None:
    gpt_by_sfdisk(path, sector_size, "table-length: 8")


def gpt_of_256(path: Path, sector_size: int) -> None:
    sgdisk(path, sector_size, "-S 256 -n 200:0:+1M -n 3:0:0")


def mbr_by_sfdisk(path: Path, sector_size: int) -> None:
    logical = "\n".join(f"size={size}MiB, type={kind}" for size, kind in ((2, 83), (3, 7), (1, 82), (4, "b")))
    sfdisk(
        path,
        sector_size,
        "label: dos\nlabel-id: 0x0a1b2cd3\n1: size=3MiB, type=7, bootable\n2: size=1MiB, type=27\n"
        f"4: start=40MiB, type=c\n3: start=5MiB, size=20MiB, type=f\n{logical}\n",
    )


def mbr_by_parted(path: Path, sector_size: int) -> None:
    steps = "mklabel msdos mkpart primary 1MiB 4MiB mkpart extended 4MiB 60MiB"
    steps += " mkpart logical 5MiB 9MiB mkpart logical 30MiB 60MiB mkpart logical 10MiB 20MiB"
    if sector_size != 512:
        pytest.skip("parted wants udev to make a table on a loop device")
    run("parted", "-s", "-a", "none", path, *steps.split())


def mbr_without_logical(path: Path, sector_size: int) -> None:
    sfdisk(path, sector_size, "label: dos\nsize=3MiB, type=7\nsize=9MiB, type=5\n")


def mbr_empty(path: Path, sector_size: int) -> None:
    sfdisk(path, sector_size, "label: dos\nlabel-id: 0xf0000001\n")


Maker = Callable[[Path, int], None]
GPT_MAKERS: list[Maker] = [gpt_by_sfdisk, gpt_by_sgdisk, gpt_of_8, gpt_of_256]
MBR_MAKERS: list[Maker] = [mbr_by_sfdisk, mbr_by_parted, mbr_without_logical, mbr_empty]
SECTOR_SIZES = (512, 4096)


def made(maker: Maker, sector_size: int, folder: Path, factory: pytest.TempPathFactory) -> Path:
    """Return a fresh copy of a 64 MiB disk; each is made once, because sgdisk waits a second per write."""
    kept = factory.getbasetemp() / f"{maker.__name__}-{sector_size}.img"
    if not kept.exists():
        maker(sparse(folder / "new.img", 64 * MIB), sector_size)
        (folder / "new.img").rename(kept)
    run("cp", "--sparse=always", kept, folder / "disk.img")
    return folder / "disk.img"
