"""The command line as Windows' Python runs it under wine, beside the same command here."""

import hashlib
import json
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.running import Ran, run_imagefs
from tests.wine.environment import ROOT, Wine, private, windows_path

_PATH = re.compile(rb"Z:((?:\\{1,2}[^\\\"\s:]+)+)")


class Windows:
    """Runs Windows' Python. One process stays, so that wine's own need not start each time."""

    def __init__(self, wine: Wine, folder: Path) -> None:
        self.wine = wine
        self._folder = folder
        self._server: subprocess.Popen[str] | None = None

    def run(
        self,
        *arguments: str | Path,
        stdin: bytes = b"",
        password: str | None = None,
        folder: Path | None = None,
        timeout: float = 120,
    ) -> Ran:
        """Run the command line in the process that stays; a Path is given by Windows' name of it."""
        files = [self._folder / name for name in ("in", "out", "err")]
        files[0].write_bytes(stdin)
        order = {
            "arguments": _words(arguments),
            "environment": {} if password is None else {"IMAGEFS_PASSWORD": password},
            "streams": _words(files),
            "folder": windows_path(folder or self._folder),
        }
        code = self._order(json.dumps(order), timeout)
        return Ran(code, files[1].read_bytes(), files[2].read_bytes().decode(errors="replace"))

    def run_afresh(
        self,
        *arguments: str | Path,
        stdin: bytes = b"",
        password: str | None = None,
        folder: Path | None = None,
        timeout: float = 120,
    ) -> Ran:
        """Run the command line as a user would."""
        with self.started("-m", "imagefs", *arguments, password=password, folder=folder) as process:
            output, errors = process.communicate(stdin, timeout)
        return Ran(process.returncode, output, errors.decode(errors="replace"))

    @contextmanager
    def started(
        self,
        *arguments: str | Path,
        password: str | None = None,
        folder: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """Start the interpreter, and end it."""
        given = dict(environment or {})
        if password is not None:
            given["IMAGEFS_PASSWORD"] = password
        with subprocess.Popen(
            self.wine.command(*_words(arguments)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**self.wine.variables(), **given},
            cwd=folder or ROOT,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def same(self, *arguments: str | Path, password: str | None = None) -> Ran:
        """Run a command there and here; return what it did there, having written and ended as it did here.

        Paths apart: those on Z: are compared as the paths that they are here.
        """
        there = self.run(*arguments, password=password)
        here = run_imagefs(*arguments, password=password)
        assert there.code == here.code, there.errors
        assert unix_paths(there.output) == here.output
        return there

    def start(self) -> None:
        """Start the process that stays."""
        log = self._folder / "log"
        self._server = subprocess.Popen(
            self.wine.command("-m", "tests.wine.commands", windows_path(log)),
            env=self.wine.variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # wine takes no file for one that it has not opened itself
            cwd=ROOT,
            text=True,
        )
        if self._answer(120) != "ready":
            raise RuntimeError(f"the command line can't be loaded by Windows' Python: {log.read_text()}")

    def end(self) -> None:
        """End it."""
        if self._server is not None:
            self._server.kill()
            self._server.communicate()

    def _order(self, order: str, timeout: float) -> int:
        assert self._server is not None
        assert self._server.stdin is not None
        self._server.stdin.write(order + "\n")
        self._server.stdin.flush()
        answer = self._answer(timeout)
        if not answer:  # it has died of this run; the next has a new one
            self.end()
            self.start()
            raise RuntimeError(f"the run ended its process: {order}")
        return int(answer)

    def _answer(self, timeout: float) -> str:
        assert self._server is not None
        assert self._server.stdout is not None
        watch = threading.Timer(timeout, self._server.kill)
        watch.start()
        try:
            return self._server.stdout.readline().strip()
        finally:
            watch.cancel()


@contextmanager
def started(wine: Wine) -> Iterator[Windows]:
    """Start Windows; end all of it."""
    with private(wine) as own, tempfile.TemporaryDirectory(prefix="imagefs-wine-") as folder:
        windows = Windows(own, Path(folder))
        try:
            windows.start()
            yield windows
        finally:
            windows.end()


def unix_paths(output: bytes) -> bytes:
    """Return a text with its paths on Z: as they are on the system that wine runs on."""
    return _PATH.sub(lambda found: found[1].replace(b"\\\\", b"\\").replace(b"\\", b"/"), output)


def tree_of(folder: Path) -> dict[str, tuple[str, int]]:
    """Return the SHA-256 and the time of every file below a folder; of a directory "" and its time."""
    found = {}
    for path in folder.rglob("*"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = digest, path.stat().st_mtime_ns
    return found


def _words(arguments: "tuple[str | Path, ...] | list[Path]") -> list[str]:
    return [windows_path(word) if isinstance(word, Path) else word for word in arguments]
