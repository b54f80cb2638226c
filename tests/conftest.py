"""What all tests share: the real samples, missing tools, the command line."""

import hashlib
import lzma
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures.tools import MissingToolError
from tests.running import Ran, run_afresh, run_imagefs

__all__ = ["Ran", "run_afresh", "run_imagefs"]

SHARED = Path(__file__).parents[2] / "shared" / "data"
IN_CI = os.environ.get("CI", "") not in ("", "false", "0")

FULL = "2394E9AA621DDC3A-00-00.mrimgx"
FULL_SHA256 = "b4ab02259da635afff8bef364c72c56670e96dc1912248be0fd29ac406621689"
DELTA = "DD5A77E6B68A6C34-Full-01-01.mrimg"

if sys.platform == "win32":  # what drives Linux itself: its signals, terminals, devices, processes
    collect_ignore = [
        "imagefs/disks/test_linux_disks.py",
        "imagefs/filesystems/ntfs/test_fuzz_volume.py",
        "imagefs/imaging/test_interruptions.py",
        "imagefs/imaging/test_names.py",
        "imagefs/imaging/test_power_loss.py",
        "imagefs/imaging/test_snapshots.py",
        "imagefs/imaging/test_source_faults.py",
        "imagefs/machine/test_devices.py",
        "imagefs/machine/test_rawreader.py",
        "imagefs/restore/test_described.py",
        "imagefs/restore/test_guard.py",
        "imagefs/restore/test_guard_stacks.py",
        "imagefs/restore/test_restore_devices.py",
        "imagefs/restore/test_restore_refused.py",
        "imagefs/restore/test_target.py",
        "imagefs/serving/test_boot.py",
        "imagefs/serving/test_overlay.py",
        "imagefs/serving/test_private_port.py",
        "imagefs/test_commands.py",
        "mounters/test_devfuse.py",
        "mounters/test_lifecycle.py",
        "mounters/test_nbd_address.py",
    ]


def missing(reason: str) -> None:
    """Skip a test that can't run here; in CI, where everything is installed, fail it."""
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    try:
        return (yield)
    except MissingToolError as error:
        missing(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    try:
        return (yield)
    except MissingToolError as error:
        missing(str(error))


def unpacked(name: str, folder: Path) -> Path:
    """Return a real sample, unpacked; skips where the samples are not beside the repository."""
    packed = SHARED / f"{name}.xz"
    if not packed.exists():
        pytest.skip(f"the sample {packed.name} is not there")
    path = folder / name
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    return path


@pytest.fixture(scope="session")
def full_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a real full image of a 120 GB GPT disk with one NTFS partition (Macrium's demo, MIT licence)."""
    path = unpacked(FULL, tmp_path_factory.mktemp("sample"))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == FULL_SHA256
    return path


@pytest.fixture(scope="session")
def delta_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a real delta incremental of uncompressed blocks, whose base is missing."""
    return unpacked(DELTA, tmp_path_factory.mktemp("delta"))


@contextmanager
def mounted(source: Path, mountpoint: Path, *options: str, password: str | None = None) -> Iterator[Path]:
    """Mount with the command line, and unmount by the mount point whatever happens."""
    need_fuse()
    mountpoint.mkdir(exist_ok=True)
    done = run_imagefs("mount", source, mountpoint, *options, password=password)
    assert done.code == 0, done.errors
    try:
        yield mountpoint
    finally:
        run_imagefs("umount", "--force", mountpoint)
        assert not os.path.ismount(mountpoint)


def need_fuse() -> None:
    """Skip, or fail in CI, where nothing can be mounted."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing("/dev/fuse is not there, or not open to this user")
