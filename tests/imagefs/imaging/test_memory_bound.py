"""Imaging a large disk takes little memory: what is kept of its blocks is on disk."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.huge import huge_disk

ROOT = Path(__file__).parents[3]
MOST_MEMORY = 300 << 20  # bytes; the interpreter and its packages take 60 MiB of it
CODE = """
import json, re, sys
from pathlib import Path
from imagefs.imaging import backup
report = backup(sys.argv[1], sys.argv[2])
# The resource usage would begin with that of the process that started this one.
used = int(re.findall(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[0]) * 1024
print(json.dumps([report.role, report.bytes_stored, used]))
"""


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """A partition of 512 GiB has an index of 252 MB, and ten times that as objects."""
    disk = huge_disk(tmp_path, size=512 << 30)
    try:
        for role in ("full", "inc"):
            done = subprocess.run(
                [sys.executable, "-c", CODE, disk.path, tmp_path / "set"],
                check=True, capture_output=True, cwd=ROOT,
            )  # fmt: skip
            found, stored, used = json.loads(done.stdout)
            assert found == role
            assert role == "inc" or stored > 240_000_000
            assert used < MOST_MEMORY // 2
    finally:
        disk.path.unlink()
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
