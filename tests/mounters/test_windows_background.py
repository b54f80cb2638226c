"""On Windows, wine's or Microsoft's: serving processes in the background, letters, events, ends.

The mount is a stub (see windows_stub): the driver is not needed.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mounters.background import READY_FD, Started, start_in_background
from mounters.errors import MountError, MountPointError
from tests.mounters.mounting import ROOT

if sys.platform != "win32":
    pytest.skip("what only Windows has", allow_module_level=True)

import ctypes

from mounters import windows_calls, windows_mounts
from mounters.windows_mounts import claim, event_names, free_letters, is_mounted, unmount

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def runs(pid: int) -> bool:
    """Tell whether a process runs."""
    kernel = ctypes.WinDLL("kernel32")
    handle = kernel.OpenProcess(0x00100000, False, pid)  # SYNCHRONIZE
    if not handle:
        return False
    try:
        return bool(kernel.WaitForSingleObject(handle, 0) == 258)  # WAIT_TIMEOUT
    finally:
        kernel.CloseHandle(handle)


def wait_ended(pid: int, timeout: float = 15.0) -> bool:
    deadline = time.monotonic() + timeout
    while runs(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextmanager
def stub(mountpoint: str, folder: Path, *flags: str) -> Iterator[Started]:
    """Serve the stub in the background, and end it whatever happens."""
    command = [sys.executable, "-m", "tests.mounters.windows_stub", mountpoint, str(folder), *flags]
    started = start_in_background(command, 60, environment=ENVIRONMENT)
    try:
        yield started
    finally:
        with suppress(MountError):
            unmount(started.mountpoint, force=True, timeout=2)
        assert wait_ended(started.pid)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", "from mounters.background import *; import sys, time, os\n" + code]


def test_a_letter_from_the_first_word_to_the_last(tmp_path: Path) -> None:
    letter = free_letters()[0]
    with stub("", tmp_path) as first:
        assert first.mountpoint == f"{letter}:"
        assert is_mounted(first.mountpoint)
        assert letter not in free_letters()
        with pytest.raises(MountPointError, match="is in use already"):
            claim(f"{letter.lower()}:\\")
        with stub("", tmp_path) as second:
            assert second.mountpoint != first.mountpoint
            unmount(f"{letter.lower()}:\\")
            assert not is_mounted(first.mountpoint)
            assert wait_ended(first.pid)
            assert is_mounted(second.mountpoint)
        assert not is_mounted(second.mountpoint)
    with pytest.raises(MountPointError, match="nothing is mounted here") as caught:
        unmount(f"{letter}:")
    assert caught.value.exit_code == 6


def test_a_refusal_is_passed_on(tmp_path: Path) -> None:
    taken = Path(tmp_path.anchor).drive
    with pytest.raises(MountError, match=f"{taken} is in use already") as caught:
        stub(taken, tmp_path).__enter__()
    assert caught.value.exit_code == 6
    with pytest.raises(MountPointError, match="is no mount of imagefs"):
        unmount(taken)


def test_a_stuck_mount_is_ended_by_force(tmp_path: Path) -> None:
    with stub("", tmp_path, "stuck") as started:
        try:
            with pytest.raises(MountError, match="--force ends its process"):
                unmount(started.mountpoint, timeout=1)
            assert runs(started.pid)
            with suppress(MountError):  # the letter of the stub stays, where WinFsp's would go
                unmount(started.mountpoint, force=True, timeout=1)
            assert wait_ended(started.pid)
        finally:
            from tests.mounters.windows_stub import define

            define(started.mountpoint, "")
    assert windows_mounts._windows().open_event(event_names(started.mountpoint)[0]) is None


def test_a_killed_process_leaves_its_name_free(tmp_path: Path) -> None:
    letter = free_letters()[0]
    code = (
        "from mounters.windows_mounts import Claim\n"
        f"held = Claim('{letter}:'); report_ready(ready_fd(), '{letter}:'); time.sleep(600)"
    )
    started = start_in_background(python(code), 30, environment=ENVIRONMENT)
    with pytest.raises(MountPointError, match="another imagefs serves it"):
        claim(f"{letter}:")
    windows_mounts._windows().end_process(started.pid)
    assert wait_ended(started.pid)
    with claim(f"{letter}:"):
        pass


def test_input_output_and_environment(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    code = (
        "fd = ready_fd(); print(sys.stdin.read(), os.environ.get('IMAGEFS_READY_FD'), flush=True)\n"
        "report_ready(fd); print('after', flush=True)"
    )
    started = start_in_background(python(code), 30, stdin=b"secret", log=log, environment=ENVIRONMENT)
    assert wait_ended(started.pid)
    assert log.read_text() == "before\nsecret None\nafter\n"


def test_output_to_nobody_is_dropped(tmp_path: Path) -> None:
    """What is printed after the start goes nowhere, and the temporary file is gone."""
    told = tmp_path / "told"
    code = (
        "import json; fd = ready_fd(); report_ready(fd); print('x' * 10000, flush=True)\n"
        f"open({str(told)!r}, 'w').write(json.dumps(os.fstat(1).st_size))"
    )
    environment = {**ENVIRONMENT, "TMP": str(tmp_path), "TEMP": str(tmp_path)}
    started = start_in_background(python(code), 30, environment=environment)
    assert wait_ended(started.pid)
    assert json.loads(told.read_text()) == 0


def test_failures(tmp_path: Path) -> None:
    with pytest.raises(MountError, match=r"^set incomplete$") as caught:
        start_in_background(
            python("report_failure(ready_fd(), 4, 'set incomplete'); sys.exit(4)"),
            30,
            environment=ENVIRONMENT,
        )
    assert caught.value.exit_code == 4
    with pytest.raises(MountError, match="status 3: the last words"):
        start_in_background(
            python("print('the last words', flush=True); sys.exit(3)"), 30, environment=ENVIRONMENT
        )
    with pytest.raises(MountError, match="cannot start"):
        start_in_background([str(tmp_path / "absent.exe")], 5)


def test_who_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    begun = time.monotonic()
    with pytest.raises(MountError, match="not ready after 10 seconds"):
        start_in_background(python(code), 10, environment=ENVIRONMENT)
    assert time.monotonic() - begun < 30
    assert wait_ended(int((tmp_path / "pid").read_text()))


def test_only_the_pipe_is_inherited(tmp_path: Path) -> None:
    """A file that happens to be inheritable stays with the starter: it could be deleted at once."""
    path = tmp_path / "own"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.set_inheritable(fd, True)
    code = "report_ready(ready_fd()); time.sleep(600)"
    started = start_in_background(python(code), 30, environment=ENVIRONMENT)
    try:
        os.close(fd)
        path.unlink()
        assert not path.exists()
        path.write_bytes(b"again")
    finally:
        windows_mounts._windows().end_process(started.pid)
        assert wait_ended(started.pid)


def test_a_launcher_between_us(tmp_path: Path) -> None:
    """A virtual environment's python.exe starts another, and keeps what it inherited open until its end."""
    inner = "from mounters.background import *; import time; report_ready(ready_fd(), 'Q:'); time.sleep(3)"
    code = (
        "import subprocess, sys\n"
        f"sys.exit(subprocess.run([sys.executable, '-c', {inner!r}], close_fds=False).returncode)"
    )
    begun = time.monotonic()
    started = start_in_background([sys.executable, "-c", code], 30, environment=ENVIRONMENT)
    assert started.mountpoint == "Q:"
    assert runs(started.pid)
    assert time.monotonic() - begun < 25
    assert wait_ended(started.pid, 30)
    assert READY_FD not in os.environ


@pytest.mark.parametrize("event", [0, 1, 2])  # CTRL_C_EVENT, CTRL_BREAK_EVENT, CTRL_CLOSE_EVENT
def test_events_of_the_console_end_a_command(event: int) -> None:
    """They all end a command with 130, here in a console of its own, so that we go on.

    Wine 8 makes no events but Ctrl-C: the others are given to our handler directly.
    """
    code = (
        "import ctypes, threading, time\n"
        "from imagefs import cli\n"
        "def wait():\n"
        "    make = ctypes.WinDLL('kernel32').GenerateConsoleCtrlEvent\n"
        f"    press = (lambda: cli.console._handler({event})) if {event} else (lambda: make(0, 0))\n"
        "    threading.Timer(1, press).start()\n"
        "    for _ in range(400): time.sleep(0.05)\n"
        "cli._add_commands = lambda arguments: [cli.app.command(name)(wait) for name in ('a', 'b')]\n"
        "import sys; sys.argv = ['imagefs', 'a']; cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        creationflags=subprocess.CREATE_NO_WINDOW,
        env=ENVIRONMENT,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, b"imagefs: interrupted\n")


@pytest.mark.parametrize(
    ("code", "is_kept"),
    [
        (0, True),
        (234, True),  # ERROR_MORE_DATA
        (1201, True),  # ERROR_CONNECTION_UNAVAIL: not connected, but persistent
        (2250, False),  # ERROR_NOT_CONNECTED: not redirected
        (1222, False),  # ERROR_NO_NETWORK
        (1203, False),  # ERROR_NO_NET_OR_BAD_PATH: nobody knows it, and some network is not there
    ],
)
def test_letters_of_network_drives(monkeypatch: pytest.MonkeyPatch, code: int, is_kept: bool) -> None:
    """The codes of WNetGetConnectionW: a network that is not there must not take every letter."""
    monkeypatch.setattr(windows_calls._mpr, "WNetGetConnectionW", lambda *_: code)
    assert windows_calls.calls().is_remembered("Q") is is_kept
    assert ("Q" in free_letters()) is not is_kept


def test_a_name_that_is_taken_is_known_whatever_comes_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeing memory may set the last error too."""
    free = windows_calls._kernel.LocalFree

    def forgetful(memory: object) -> object:
        freed = free(memory)
        ctypes.set_last_error(0)
        return freed

    monkeypatch.setattr(windows_calls._kernel, "LocalFree", forgetful)
    with claim("Q:"), pytest.raises(MountPointError, match="another imagefs"):
        claim("Q:")


def test_the_user_of_a_process() -> None:
    assert windows_calls.calls().user().startswith("S-1-5-21-")
