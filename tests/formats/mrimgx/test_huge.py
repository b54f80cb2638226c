"""Opening costs headers only: a base of 64 Mi blocks and 100 deltas on it."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import formats
from fixtures.huge import BLOCK, HugeSet, delta_block, huge_set
from tests.conftest import mounted

# Lists the root of a tree and says what that cost: seconds, and peak memory in KiB.
LIST_ROOT = """
import json, sys, time
started = time.perf_counter()
import imagefs
with imagefs.open(sys.argv[1]) as source:
    tree = source.tree()
    names = [entry.name for entry in tree.entries(tree.root)]
    seconds = time.perf_counter() - started
# Not ru_maxrss: that begins with what the starting process had.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([names, seconds, int(peak)]))
"""


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HugeSet]:
    yield huge_set(tmp_path_factory.mktemp("huge"))


def list_root(path: Path) -> tuple[list[str], float, int]:
    done = subprocess.run([sys.executable, "-c", LIST_ROOT, path], capture_output=True, check=True)
    names, seconds, peak = json.loads(done.stdout)
    return names, seconds, peak


@pytest.mark.parametrize("what", ["newest point", "folder"])
def test_listing_the_root_stays_small(huge: HugeSet, what: str) -> None:
    names, seconds, peak = list_root(huge.paths[-1] if what == "newest point" else huge.paths[0].parent)
    assert names
    assert peak < 300_000
    print(f"{what}: {seconds:.2f} s, {peak // 1024} MiB")


def test_mounting_the_newest_point(huge: HugeSet, tmp_path: Path) -> None:
    started = time.perf_counter()
    with mounted(huge.paths[-1], tmp_path / "mnt") as root:
        assert sorted(path.name for path in root.iterdir()) == ["disk1", "disk1.raw"]
        print(f"mounted after {time.perf_counter() - started:.2f} s")
        assert (root / "disk1.raw").stat().st_size == huge.disk.size
        names = {path.name for path in (root / "disk1/p1").iterdir()}
        assert {name.partition("/")[0] for name in huge.disk.partitions[0].files} <= names
        (serving,) = serving_processes(root)
        resident = int(Path(f"/proc/{serving}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert resident < 300 * 1000 * 1000


def serving_processes(root: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(root) in arguments and b"--foreground" in arguments:
                found.append(int(entry.name))
    return found


def test_blocks_come_from_the_newest_delta_that_has_them(huge: HugeSet) -> None:
    chance = random.Random(5)
    for number in (57,):  # it has holes: the base's index of 2 GB is hashed then
        with formats.open_container(huge.paths[number]) as container:
            assert container.point is not None
            assert container.point.problem is None
            reader = container.point.disks[0].partitions[0].reader()
            for _ in range(200):
                delta = chance.randrange(1, 101)
                block = int(chance.choice(huge.changed[delta]))
                newest = huge.newest(block, number)
                offset = chance.randrange(BLOCK - 100)
                data = reader.read_at(block * BLOCK + offset, 100)
                wanted = delta_block(newest)[offset : offset + 100] if newest else bytes(100)
                assert data == wanted
