"""The mount for Windows by Windows' Python: winfspy's own extension above a stand-in for WinFsp's library."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.imagefs.built import BuiltSet
from tests.wine.environment import HOME, ROOT, build_library, windows_path
from tests.wine.windows import Windows

TESTS = "tests/mounters/winfsp"
OF_MODULES = ("names", "folding", "views", "nodes", "security", "statuses", "readers")


@pytest.fixture(scope="module")
def winfsp() -> dict[str, str]:
    """Return the environment in which a folder is such as WinFsp is installed in."""
    source, folder = Path(__file__).with_name("winfsp_stub.c"), HOME / "winfsp"
    library = folder / "bin" / "winfsp-x64.dll"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        library.parent.mkdir(parents=True, exist_ok=True)
        build_library(source, library)
    return {"WINFSP_LIBRARY_PATH": windows_path(folder)}


@pytest.mark.parametrize(
    "names", [("life",), ("opening",), ("reading",), ("listing",), ("rights",), OF_MODULES]
)
def test_the_tests_of_the_mount(wine: Windows, winfsp: dict[str, str], names: tuple[str, ...]) -> None:
    """The same tests as here, those of the mount over the other stand-in; none of these is left out."""
    paths = [windows_path(ROOT / TESTS / f"test_{name}.py") for name in names]
    words = ["-m", "pytest", "-q", "-rs", "--tb=short", "-p", "no:cacheprovider", *paths]
    with wine.started(*words, folder=ROOT, environment=winfsp) as process:
        output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, (output + errors).decode(errors="replace")
    assert b" passed" in output
    assert names == OF_MODULES or b"SKIPPED" not in output  # one of these is for other systems alone


@pytest.mark.parametrize("name", ["ntfs", "ext4", "fat32"])
def test_every_file_of_an_image(
    wine: Windows, winfsp: dict[str, str], built_set: Callable[[str], BuiltSet], name: str
) -> None:
    """As it is shown here, where it is held against what was written."""
    image = built_set(name).incremental.path
    words = ["-m", "tests.wine.walk_mount"]
    here = subprocess.run([sys.executable, *words, str(image)], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    with wine.started(*words, image, folder=ROOT, environment=winfsp) as process:
        output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode(errors="replace")
    assert output.splitlines() == here.stdout.splitlines()
    assert len(output.splitlines()) > 20
