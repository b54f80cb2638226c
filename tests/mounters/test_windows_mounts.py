"""Mount points of Windows: their forms, which are fit, how their processes are asked to end; on a model."""

import ntpath
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mounters import controller, windows_mounts
from mounters.controller import MountOptions
from mounters.errors import MountError, MountPointError
from mounters.session import Session
from mounters.tree import Tree
from mounters.windows_mounts import (
    Claim,
    about,
    claim,
    drive_letter,
    event_names,
    real_path,
    root_of,
    unmount,
)
from tests.mounters.memory_tree import MemoryTree
from tests.mounters.windows_model import ModelOfWindows


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelOfWindows]:
    model = ModelOfWindows()
    monkeypatch.setattr(windows_mounts, "_windows", lambda: model)
    yield model
    assert model.open_handles == 0
    assert model.events == {}


@pytest.fixture
def windows_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    r"""Have paths as they are on Windows, with C:\work as the working directory."""
    monkeypatch.setattr(os.path, "abspath", lambda path: ntpath.normpath(ntpath.join("C:\\work", path)))
    monkeypatch.setattr(os.path, "realpath", ntpath.normpath)
    for name in ("split", "join", "dirname"):
        monkeypatch.setattr(os.path, name, getattr(ntpath, name))


@pytest.mark.parametrize("text", ["X:", "x:", "X:\\", "x:/", "\\\\.\\X:", "\\\\?\\x:\\", "//./x:/"])
def test_forms_of_a_letter(text: str) -> None:
    assert drive_letter(text) == "X"
    path = real_path(text)
    assert path == ("\\\\.\\X:" if text[0] in "\\/" else "X:")
    assert (root_of(path), about(path)) == ("X:\\", "X:")
    assert event_names(path) == event_names("X:") == ("Local\\imagefs-mount-X", "Global\\imagefs-mount-X")


@pytest.mark.parametrize(
    "text", ["", "X", "X:folder", "X:\\folder", "\\\\server\\X:", "XY:", ":", "1:", "X::"]
)
def test_what_is_no_letter(text: str) -> None:
    assert drive_letter(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "mnt",
        ".\\mnt\\",
        "C:/work/mnt",
        "c:\\WORK\\x\\..\\mnt",
        "\\\\?\\C:\\work\\mnt",
        "\\\\.\\C:\\work\\mnt",
    ],
)
@pytest.mark.usefixtures("windows_paths")
def test_forms_of_a_directory(text: str) -> None:
    path = real_path(text)
    assert path.lower() == "c:\\work\\mnt"
    assert root_of(path) == path
    assert about(path) == f"{path}:"
    assert event_names(path) == event_names("C:\\work\\mnt")
    assert event_names(path) != event_names("C:\\work\\mnt2")
    assert len(event_names(path)[1]) < 260
    assert event_names(path)[1].count("\\") == 1


def test_a_letter_is_claimed_once(windows: ModelOfWindows) -> None:
    with claim("x:\\") as held:
        assert held.mountpoint == "X:"
        (descriptor,) = windows.descriptors
        assert descriptor == "D:P(A;;GA;;;S-1-5-21-1-2-3-1001)(A;;GA;;;SY)(A;;GA;;;BA)"
        with pytest.raises(MountPointError, match=r"X: another imagefs serves it") as caught:
            claim("X:")
        assert caught.value.exit_code == 6
    with claim("X:"):
        pass


def test_a_claim_of_another_user(windows: ModelOfWindows) -> None:
    with claim("\\\\.\\X:"):
        windows.sid = "S-1-5-21-1-2-3-1002"
        with pytest.raises(MountPointError, match="another imagefs serves it"):
            claim("\\\\.\\X:")
        with pytest.raises(MountError, match="not yours to unmount") as caught:
            unmount("X:")
        assert caught.value.exit_code == 7
        windows.sid = "S-1-5-21-1-2-3-1001"


@pytest.mark.parametrize(("letters", "kept"), [("CX", ""), ("C", "X")])
def test_a_letter_that_is_taken(windows: ModelOfWindows, letters: str, kept: str) -> None:
    windows.letters, windows.kept = {*letters, "Z"}, set(kept)
    for form in ("X:", "\\\\.\\X:"):
        with pytest.raises(MountPointError, match="X: is in use already; choose another, Y: is free"):
            claim(form)


def test_the_next_letter_that_is_free(windows: ModelOfWindows) -> None:
    windows.letters, windows.kept = set("ABCZX"), {"Y"}
    with claim("") as first, claim("") as second:  # the first is not mounted yet
        assert (first.mountpoint, second.mountpoint) == ("W:", "V:")
    windows.letters = set("CDEFGHIJKLMNOPQRSTUVWXYZ")
    with pytest.raises(MountPointError, match="no drive letter is free"):
        claim("")
    with pytest.raises(MountPointError, match="X: is in use already; mount on a directory"):
        claim("X:")


@pytest.mark.usefixtures("windows_paths", "windows")
def test_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"C:\\work", "C:\\work\\there"}
    monkeypatch.setattr(os.path, "isdir", there.__contains__)
    monkeypatch.setattr(os.path, "lexists", there.__contains__)
    with claim("new") as held:
        assert held.mountpoint == "C:\\work\\new"
        with pytest.raises(MountPointError, match="another imagefs"):
            claim("C:/work/NEW/")
    refused = {
        "there": "exists already; on Windows the directory is made by the mount",
        "nowhere\\new": "no such directory; create it first: mkdir",
        "\\\\server\\share\\new": "is on a network",
        "n" * 250: "is too long",
    }
    for text, message in refused.items():
        with pytest.raises(MountPointError, match=message) as caught:
            claim(text)
        assert caught.value.exit_code == 6


def test_network_names(windows: ModelOfWindows) -> None:
    for network in ("\\\\imagefs\\backup", "//imagefs/backup"):
        with claim("X:", network) as held:
            assert held.mountpoint == "X:"
    with pytest.raises(MountPointError, match="needs a letter"):
        claim("C:\\mnt", "\\\\imagefs\\backup")
    for network in ("imagefs\\backup", "\\\\imagefs", "\\\\imagefs\\a*b", "\\\\imagefs\\a\\b"):
        with pytest.raises(MountPointError, match="no name of a network drive") as caught:
            claim("X:", network)
        assert caught.value.exit_code == 2


class Server:
    """A process that serves a mount, as a thread."""

    def __init__(self, windows: ModelOfWindows, mountpoint: str, *, stuck: bool = False) -> None:
        self.asked = threading.Event()
        self.windows = windows
        self.stuck = stuck
        self.claim = claim(mountpoint)
        self.letter = drive_letter(self.claim.mountpoint)
        windows.letters.add(self.letter)
        self.claim.watch(self.end)

    def end(self) -> None:
        self.asked.set()
        if not self.stuck:
            threading.Timer(0.1, self.gone).start()

    def gone(self) -> None:
        self.windows.letters.discard(self.letter)
        self.claim.release()


@pytest.mark.parametrize("made", ["X:", "\\\\.\\X:"])
@pytest.mark.parametrize("named", ["x:", "X:\\", "\\\\.\\X:"])
def test_unmount_asks_and_waits(windows: ModelOfWindows, made: str, named: str) -> None:
    server = Server(windows, made)
    unmount(named)
    assert server.asked.is_set()
    assert "X" not in windows.letters
    with pytest.raises(MountPointError, match="X: nothing is mounted here") as caught:
        unmount(named)
    assert caught.value.exit_code == 6


def test_a_letter_of_somebody_else_is_left_alone(windows: ModelOfWindows) -> None:
    with pytest.raises(MountPointError, match="C: is no mount of imagefs") as caught:
        unmount("C:\\")
    assert caught.value.exit_code == 6
    assert windows.ended == []


def test_a_mount_that_does_not_end(windows: ModelOfWindows) -> None:
    server = Server(windows, "X:", stuck=True)
    with pytest.raises(MountError, match=r"still mounted 0 seconds.*--force ends its process") as caught:
        unmount("X:", timeout=0.2)
    assert caught.value.exit_code == 7
    assert server.asked.is_set()
    assert windows.ended == []
    real = windows.end_process

    def end(number: int) -> None:
        real(number)
        server.gone()

    windows.end_process = end  # type: ignore[method-assign]
    unmount("X:", force=True, timeout=0.2)
    assert windows.ended == [os.getpid()]


def test_a_mount_that_comes_after_is_not_waited_for(windows: ModelOfWindows) -> None:
    """Somebody mounts at the same place at once: the old mount is gone all the same."""
    server = Server(windows, "X:", stuck=True)
    name = "Local\\imagefs-mount-X-process"
    threading.Timer(0.1, lambda: windows.numbers.update({name: (windows.sid, 77)})).start()
    unmount("X:", timeout=10)
    assert windows.ended == []
    server.gone()


def test_who_serves_no_more_is_not_asked(windows: ModelOfWindows) -> None:
    asked: list[int] = []
    held = Claim("X:")
    held.watch(lambda: asked.append(1))
    held.release()
    held.release()
    assert asked == []
    assert windows.events == {}


class Quick(Session):
    """A session that mounts at a letter of the model."""

    def __init__(self, windows: ModelOfWindows) -> None:
        self._windows = windows
        self._stopping = threading.Event()

    def run(self, mounted: Callable[[], None]) -> None:
        self._windows.letters.add("X")
        mounted()
        self._stopping.wait(10)
        self._windows.letters.discard("X")

    def stop(self) -> None:
        self._stopping.set()


@pytest.fixture
def mounting(windows: ModelOfWindows, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Have the controller mount as on Windows; return the mechanism's module."""
    module = SimpleNamespace(open_session=lambda *_: Quick(windows))
    monkeypatch.setattr(controller, "_choose", lambda _: "winfsp")
    monkeypatch.setattr(controller, "importlib", SimpleNamespace(import_module=lambda _: module))
    monkeypatch.setattr(controller, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(controller, "is_mounted", windows_mounts.is_mounted)
    monkeypatch.setattr(controller, "root_of", lambda _: os.curdir)
    monkeypatch.setattr(controller, "set_read_ahead", lambda *_: True)
    return module


def test_a_session_that_is_refused_gives_its_place_back(
    mounting: SimpleNamespace, windows: ModelOfWindows
) -> None:
    def refuse(tree: Tree, mountpoint: str, options: MountOptions) -> Session:
        raise MountError("refused", 2)

    mounting.open_session = refuse
    with pytest.raises(MountError, match="refused"):
        controller.Mount(MemoryTree(), "X:", MountOptions())
    assert windows.events == {}


@pytest.mark.usefixtures("mounting")
def test_unmounting_does_not_wait_for_who_has_mounted(windows: ModelOfWindows) -> None:
    """A program that mounts for itself may be busy with something else when its mount is ended."""
    mounted = controller.Mount(MemoryTree(), "X:", MountOptions())
    mounted.wait_ready(5)
    unmount("X:", timeout=3)
    assert windows.letters == {"C"}
    assert mounted.wait(1)
    mounted.unmount()


def test_who_sees_a_letter(windows: ModelOfWindows) -> None:
    assert not windows_mounts.is_hidden("X:")
    windows.elevated = True
    assert windows_mounts.is_hidden("X:")
    assert not windows_mounts.is_hidden("\\\\.\\X:")
    assert not windows_mounts.is_hidden("C:\\mnt")


def test_winfsp_that_is_missing(windows: ModelOfWindows) -> None:
    assert windows_mounts.winfsp_problem() == ""
    windows.winfsp_folder = lambda: ""  # type: ignore[method-assign]
    assert "https://winfsp.dev" in windows_mounts.winfsp_problem()


def test_on_another_system_the_calls_are_not_there(tmp_path: Path) -> None:
    if os.name != "nt":
        with pytest.raises(NotImplementedError):
            windows_mounts.is_mounted("X:")
