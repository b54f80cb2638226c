"""Ordinary users: what they mount, and what they see of others' mounts."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounters.mounting import ROOT, memory_mount, skip_or_fail

NOBODY = 65534

# In a mount namespace of its own, /dev/fuse is open to everyone, as it is on a usual system. The
# interpreter may lie in a directory that only root may enter: reading is allowed, nothing else.
AS_NOBODY = """
set -e
mount -t tmpfs tmpfs "$1"
mknod "$1/fuse" c 10 229
chmod 666 "$1/fuse"
mount --bind "$1/fuse" /dev/fuse
umount -l "$1"
shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups \
    --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search --bounding-set=-sys_ptrace "$@"
"""


def need_root_and(*tools: str) -> None:
    if os.geteuid() != 0:
        skip_or_fail("becoming another user takes root")
    for tool in tools:
        if shutil.which(tool) is None:
            skip_or_fail(f"{tool} is not installed")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a directory that other users can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_nobody(*command: str) -> subprocess.CompletedProcess[bytes]:
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return subprocess.run([*user, *command], capture_output=True, timeout=60, check=False)


def test_an_ordinary_user_mounts(mechanism: str, folder: Path, tmp_path: Path) -> None:
    need_root_and("unshare", "setpriv", "fusermount3")
    probe = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs "$1" && mknod "$1/fuse" c 10 229', "sh"]
    if subprocess.run([*probe, str(tmp_path)], capture_output=True, check=False).returncode:
        skip_or_fail("no mount namespace in which /dev/fuse can be opened to users")
    os.chown(folder, NOBODY, NOBODY)
    command = [sys.executable, "-m", "tests.mounters.as_user", str(folder), mechanism]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", AS_NOBODY, "sh", str(tmp_path), *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_a_mount_is_its_users_alone(mechanism: str, folder: Path) -> None:
    need_root_and("setpriv")
    with memory_mount(folder, mechanism) as mounted:
        refused = as_nobody("ls", str(mounted.path))
        assert refused.returncode != 0
        assert b"Permission denied" in refused.stderr


def test_others_may_enter_on_request_and_permissions_count(mechanism: str, folder: Path) -> None:
    need_root_and("setpriv")
    with memory_mount(folder, mechanism, "allow_other") as mounted:
        open_file, closed_file = mounted.path / "setuid.bin", mounted.path / "big.bin"
        assert b"big.bin" in as_nobody("ls", str(mounted.path)).stdout
        refused = as_nobody("cat", str(closed_file))
        assert refused.returncode != 0
        assert b"Permission denied" in refused.stderr
        assert as_nobody("test", "-x", str(open_file)).returncode == 0
        assert closed_file.read_bytes() == mounted.tree.bytes_of("big.bin")
