"""A mounted image under twenty readers: for a while, when it is taken away, when its process is killed.

IMAGEFS_TEST_SECONDS lets the readers go on for longer than a few seconds.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import mounted, run_imagefs
from tests.imagefs.built import BuiltSet, expected_directories, with_files
from tests.imagefs.mounted import serving_processes, wait_until_none_serves
from tests.mounters.test_users import AS_NOBODY, NOBODY, need_root_and

SECONDS = float(os.environ.get("IMAGEFS_TEST_SECONDS", "10"))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def image(built_set: Callable[[str], BuiltSet]) -> Path:
    """Return an incremental of FAT32, NTFS and ext4."""
    return built_set("multi").incremental.path


@pytest.fixture
def manifest(built_set: Callable[[str], BuiltSet], tmp_path: Path) -> Path:
    """Return what the image holds, for the readers."""
    written = built_set("multi").incremental
    files, folders = {}, {}
    for part in with_files(written):
        root = f"disk1/p{part.number}"
        files.update({f"{root}/{name}": digest for name, digest in part.files.items()})
        for folder in expected_directories(part):
            inside = {name.removeprefix(f"{folder}/").partition("/")[0] for name in
                      [*part.files, *part.links] if name.startswith(f"{folder}/")}  # fmt: skip
            folders[f"{root}/{folder}"] = sorted(inside)
    (disk,) = written.disks
    path = tmp_path / "manifest"
    path.write_text(json.dumps({"files": files, "folders": folders, "raw": {"disk1.raw": str(disk.path)}}))
    return path


@contextmanager
def reading(root: Path, manifest: Path, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """Have twenty readers read; they are ended whatever happens."""
    command = [sys.executable, "-m", "tests.imagefs.read_on", str(root), str(manifest), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"reading\n"
            yield process
        finally:
            process.kill()


def ended_well(process: subprocess.Popen[bytes], timeout: float) -> int:
    """Wait for the readers and return how many rounds they made."""
    code = process.wait(timeout)
    assert process.stdout is not None
    said = process.stdout.read().decode()
    assert code == 0, said
    return int(said.splitlines()[0])


@pytest.mark.parametrize("mechanism", ["devfuse", "mfusepy"])
def test_twenty_readers(image: Path, manifest: Path, tmp_path: Path, mechanism: str) -> None:
    seconds = SECONDS if mechanism == "devfuse" else SECONDS / 2
    with mounted(image, tmp_path / "mnt", "--mechanism", mechanism) as root:
        with reading(root, manifest, seconds) as readers:
            rounds = ended_well(readers, seconds + 60)
        assert rounds > 100
        (server,) = serving_processes(root)
        status = Path(f"/proc/{server}/status").read_text()
        peak = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
        assert peak < 700 << 10  # KiB: caches are bounded, however long it is read
        assert len(os.listdir(f"/proc/{server}/fd")) < 50  # noqa: PTH208
        assert run_imagefs("umount", root).code == 0  # nothing is held open
    wait_until_none_serves(root)


@pytest.mark.parametrize("mechanism", ["devfuse", "mfusepy"])
def test_forced_unmount_under_readers(image: Path, manifest: Path, tmp_path: Path, mechanism: str) -> None:
    with mounted(image, tmp_path / "mnt", "--mechanism", mechanism) as root:
        with reading(root, manifest, 0) as readers:
            time.sleep(1)
            assert readers.poll() is None
            assert run_imagefs("umount", root).code == 7  # in use
            done = run_imagefs("umount", "--force", root)
            assert (done.code, done.errors) == (0, "")
            ended_well(readers, 30)
        assert not os.path.ismount(root)
        wait_until_none_serves(root)


def test_a_killed_server_under_readers(image: Path, manifest: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mnt") as root:
        (server,) = serving_processes(root)
        with reading(root, manifest, 0) as readers:
            time.sleep(0.5)
            os.kill(server, signal.SIGKILL)
            ended_well(readers, 30)
        wait_until_none_serves(root)
        refused = run_imagefs("mount", image, root)
        assert refused.code == 6
        assert f"imagefs umount {root}" in refused.errors
        done = run_imagefs("umount", root)
        assert (done.code, done.errors) == (0, "")
        assert not os.path.ismount(root)
        assert run_imagefs("mount", image, root).code == 0  # and all is well again
        assert (root / "disk1/p3/big.bin").stat().st_size > 0


def test_foreground_ends_with_its_signal(image: Path, tmp_path: Path) -> None:
    root = tmp_path / "mnt"
    root.mkdir()
    command = [sys.executable, "-m", "imagefs", "mount", "--foreground", str(image), str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert b"is mounted at" in process.stdout.readline()
            assert (root / "disk1").is_dir()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert process.stderr.read() == b""
        finally:
            process.kill()
    assert not os.path.ismount(root)


USER = """
set -e
"$1" -m imagefs mount "$2" "$3"
sha256sum < "$3/disk1/p3/big.bin"
"$1" -m imagefs umount "$3"
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Return a directory of the ordinary user's in a place that users can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "mnt"
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        yield folder


def test_an_ordinary_user(built_set: Callable[[str], BuiltSet], open_folder: Path, tmp_path: Path) -> None:
    need_root_and("unshare", "setpriv", "fusermount3")
    probe = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs "$1" && mknod "$1/fuse" c 10 229', "sh"]
    if subprocess.run([*probe, str(tmp_path)], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace in which /dev/fuse can be opened to users")
    written = built_set("multi").full
    command = ["sh", "-c", USER, "sh", sys.executable, str(written.path), str(open_folder)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", AS_NOBODY, "sh", str(tmp_path), *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    (disk,) = written.disks
    assert disk.partition(3).files["big.bin"].encode() in done.stdout
