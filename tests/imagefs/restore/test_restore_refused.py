"""What the command line refuses, with the target's bytes as they were; and what it asks on a terminal."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.partition_tables import MIB, create_file
from fixtures.tools import find_tool, run
from imagefs.errors import RefusedError
from imagefs.machine import devices
from imagefs.restore.job import plan_restore
from tests.conftest import missing
from tests.imagefs.imaging.attached import attached, make_file_system, mounted_on, need_root, partition_node
from tests.imagefs.restore.chains import Saved
from tests.imagefs.restore.commands import run_quickly
from tests.imagefs.restore.held import check_same
from tests.imagefs.restore.places import digest, noisy, partitioned

pytestmark = pytest.mark.usefixtures("warm")


def refused(image: Path, target: Path, *arguments: str, says: str) -> None:
    """Check that a restore ends with 6 and one line, and changes nothing."""
    before = digest(target) if target.is_file() or target.is_block_device() else ""
    done = run_quickly("restore", image, target, *(arguments or ("--yes",)))
    assert done.code == 6, done.errors
    assert says in done.errors
    (line,) = [line for line in done.errors.splitlines() if line.startswith("imagefs: ")][-1:]
    assert str(target.resolve()) in line
    if before:
        assert digest(target) == before
    assert not target.with_name(f"{target.name}.unfinished").exists()


def test_mounted(gpt: Saved, tmp_path: Path) -> None:
    """Also where it is one of its partitions that is mounted, read-only."""
    disk = partitioned(create_file(tmp_path / "disk", gpt.disk.size), "gpt", "start=2048, size=32768")
    with attached(disk) as node:
        make_file_system("ext4", partition_node(node, 1))
        with mounted_on(tmp_path / "mnt", "-o", "ro,noload", partition_node(node, 1)):
            refused(gpt.image, node, says=f"mounted read-only on {tmp_path}/mnt")
            refused(gpt.image, partition_node(node, 1), "--partition", "p2", "--yes", says="mounted")


def test_too_small(gpt: Saved, tmp_path: Path) -> None:
    with attached(noisy(tmp_path / "disk", gpt.disk.size - 2 * MIB), partitions=False) as node:
        refused(gpt.image, node, says="too small for disk0")
        refused(gpt.image, node, "--delta", "--yes", says="too small for disk0")


def test_the_system_disk(gpt: Saved) -> None:
    """Planned only: this one is never written by a test."""
    source = run("findmnt", "--noheadings", "--output", "SOURCE", "/").decode().strip().partition("[")[0]
    if not source.startswith("/dev/") or devices.by_path(Path(source)) is None:
        pytest.skip(f"the system lies on {source}, which is no device that can be seen")
    found = devices.by_path(Path(source))
    assert found is not None
    for node in {Path(source), found.parent.node}:
        if node.exists():
            with pytest.raises(RefusedError) as caught:
                plan_restore(gpt.image, node)
            assert caught.value.exit_code == 6


def test_its_own_source(gpt: Saved, tmp_path: Path) -> None:
    image = Path(shutil.copy(gpt.image, tmp_path))
    refused(image, image, says="is the source itself")
    (tmp_path / "link").symlink_to(image.name)
    refused(image, tmp_path / "link", says="is the source itself")
    os.link(image, tmp_path / "hard")
    refused(image, tmp_path / "hard", says="is the source itself")


def test_the_device_that_the_image_lies_on(gpt: Saved, tmp_path: Path) -> None:
    with attached(create_file(tmp_path / "disk", 64 * MIB), partitions=False) as node:
        make_file_system("ext4", node)
        with mounted_on(tmp_path / "mnt", node) as folder:
            shutil.copy(gpt.image, folder)
            run("sync", "-f", folder)
            done = run_quickly("restore", folder / gpt.image.name, node, "--yes")
            assert done.code == 6
            assert "lies on it" in done.errors or "mounted" in done.errors
        run("e2fsck", "-fn", node)


def test_other_kinds_of_things(gpt: Saved, tmp_path: Path) -> None:
    refused(gpt.image, tmp_path, says="is a folder")
    refused(gpt.image, Path("/dev/null"), says="is a character device")
    refused(gpt.image, tmp_path / "none" / "disk.raw", says="its folder is not there")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Give a folder that any user can look into."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_no_permission(gpt: Saved, open_folder: Path) -> None:
    need_root()
    image = Path(shutil.copy(gpt.image, open_folder))
    image.chmod(0o644)
    target = noisy(open_folder / "disk", gpt.disk.size)
    before = digest(target)
    target.chmod(0o644)
    command = [find_tool("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups"]
    program = [sys.executable, "-m", "imagefs", "restore", str(image)]
    with attached(target, partitions=False) as node:
        for path, says in ((target, "can't be written"), (node, "root"), (open_folder / "new", "make files")):
            done = subprocess.run(
                [*command, *program, path, "--yes"], capture_output=True, check=False, text=True,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
            if "Permission denied" in done.stderr and "imagefs:" not in done.stderr:
                missing("another user can't run this interpreter")
            assert done.returncode == 6, done.stderr
            assert says in done.stderr
    assert digest(target) == before
    assert not (open_folder / "new").exists()


def test_without_a_terminal_nothing_is_overwritten(gpt: Saved, tmp_path: Path) -> None:
    """There is nobody to ask; what is lost is shown all the same."""
    target = partitioned(noisy(tmp_path / "disk", gpt.disk.size), "gpt", "start=2048, size=4096")
    refused(gpt.image, target, "--verify", says="--yes overwrites it")
    refused(gpt.image, target, "--delta", says="--yes overwrites it")
    before = digest(target)
    done = run_quickly("restore", gpt.image, target, "--dry-run")
    assert done.code == 0
    assert "1 partition(s)" in done.errors
    assert digest(target) == before


def _answer(image: Path, target: Path, answer: bytes) -> tuple[int, str]:
    """Restore on a terminal, and answer the question; return the exit code and what was shown."""
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "imagefs", "restore", str(image), str(target)]
    with subprocess.Popen(command, stdin=secondary, stdout=secondary, stderr=secondary) as process:
        os.close(secondary)
        try:
            shown, answered = b"", False
            while True:
                try:
                    part = os.read(primary, 65536)
                except OSError:  # the other side is closed
                    break
                if not part:
                    break
                shown += part
                if b"[y/N]" in shown and not answered:
                    answered = True
                    os.write(primary, answer)
            return process.wait(60), shown.decode()
        finally:
            os.close(primary)
            process.kill()


def test_the_question(gpt: Saved, tmp_path: Path) -> None:
    """It shows what will be lost; "n" leaves it, "y" overwrites it."""
    target = partitioned(create_file(tmp_path / "disk", gpt.disk.size), "gpt", "start=2048, size=32768")
    with attached(target) as node:
        run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "precious", partition_node(node, 1))
        run("blockdev", "--flushbufs", partition_node(node, 1))
    with attached(target, partitions=False) as node:
        before = digest(node)
        code, shown = _answer(gpt.image, node, b"n\n")
        assert code == 130, shown
        assert f"{node}: Loop device {target}, 42.0 MiB (44040192 bytes)" in shown
        assert "GPT, 1 partition(s)" in shown
        assert "16.0 MiB" in shown
        assert "precious" in shown
        assert f"{node} will be overwritten. Go on?" in shown
        assert digest(node) == before
        code, shown = _answer(gpt.image, node, b"y\n")
        assert code == 0, shown
        assert "blocks written" in shown
        check_same(node, gpt.disk)
