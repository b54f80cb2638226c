"""Tests that Windows' Python runs itself: those that need no tools of this system's."""

import re

from tests.wine.environment import ROOT, windows_path
from tests.wine.windows import Windows

# Of some of them most are left out there, which want disks that sfdisk or mkntfs has made.
FILES = (
    "formats/test_blockreader.py",
    "formats/test_files.py",
    "formats/test_hashing.py",
    "formats/mrimgx",
    "mounters/test_translation.py",
    "imagefs/test_readahead.py",
    "imagefs/test_shell_registration.py",
    "imagefs/test_cp_on_windows.py",
    "imagefs/imaging/test_lock.py",
)
AT_LEAST = 200  # of their tests run


def test_what_runs_anywhere(wine: Windows) -> None:
    options = ["-q", "--tb=short", "-p", "no:cacheprovider"]
    paths = [windows_path(ROOT / "tests" / name) for name in FILES]
    with wine.started("-m", "pytest", *options, *paths, folder=ROOT) as process:
        output, errors = process.communicate(timeout=1200)
    told = (output + errors).decode(errors="replace")
    assert process.returncode == 0, told
    passed = re.search(r"(\d+) passed", told)
    assert passed is not None
    assert int(passed[1]) >= AT_LEAST, told
