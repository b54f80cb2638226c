"""The mount for Windows by Windows' Python: winfspy's own extension above a stand-in for WinFsp's library."""

from pathlib import Path

import pytest

from tests.wine.environment import HOME, ROOT, build_library, windows_path
from tests.wine.windows import Windows

TESTS = "tests/mounters/winfsp"


@pytest.fixture(scope="module")
def winfsp() -> Path:
    """Return a folder such as WinFsp is installed in."""
    source, folder = Path(__file__).with_name("winfsp_stub.c"), HOME / "winfsp"
    library = folder / "bin" / "winfsp-x64.dll"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        library.parent.mkdir(parents=True, exist_ok=True)
        build_library(source, library)
    return folder


@pytest.mark.parametrize("name", ["life", "opening", "reading", "listing", "rights"])
def test_the_tests_of_the_mount(wine: Windows, winfsp: Path, name: str) -> None:
    """The same tests as here over the other stand-in, of which none may be left out."""
    path = ROOT / TESTS / f"test_{name}.py"
    options = ["-q", "-rs", "--tb=short", "-p", "no:cacheprovider"]
    words = ["-m", "pytest", *options, windows_path(path)]
    folder = {"WINFSP_LIBRARY_PATH": windows_path(winfsp)}
    with wine.started(*words, folder=ROOT, environment=folder) as process:
        output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, (output + errors).decode(errors="replace")
    assert b" passed" in output
    assert b"SKIPPED" not in output
