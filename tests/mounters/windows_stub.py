"""A session that stands for a mount of WinFsp: a letter that Windows' own DefineDosDevice gives to a folder.

Wine counts such a letter among the drives, but opens nothing there: the root is asked for in the folder.
As a program it serves one: python -m tests.mounters.windows_stub MOUNTPOINT FOLDER [stuck].
"""

import sys
import threading
from collections.abc import Callable

from mounters import controller
from mounters.errors import MountError
from mounters.session import MountOptions, Session
from mounters.tree import Tree
from tests.mounters.memory_tree import MemoryTree


def open_session(tree: Tree, mountpoint: str, options: MountOptions) -> Session:
    _, folder, *flags = sys.argv[1:]
    setattr(controller, "root_of", lambda path: folder)  # noqa: B010
    return StubSession(mountpoint, folder, is_stuck="stuck" in flags)


class StubSession(Session):
    """A mount that is there until it is stopped; a stuck one stays."""

    def __init__(self, mountpoint: str, folder: str, *, is_stuck: bool) -> None:
        self._mountpoint, self._folder, self._is_stuck = mountpoint, folder, is_stuck
        self._stopping = threading.Event()

    def run(self, mounted: Callable[[], None]) -> None:
        define(self._mountpoint, self._folder)
        mounted()
        self._stopping.wait()
        define(self._mountpoint, "")

    def stop(self) -> None:
        if not self._is_stuck:
            self._stopping.set()


def define(letter: str, target: str) -> None:
    """Give a letter to a folder, or take it away."""
    if sys.platform == "win32":
        import ctypes

        remove = 2  # DDD_REMOVE_DEFINITION
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        done = kernel.DefineDosDeviceW(0 if target else remove, letter, target or None)
        if not done:
            raise ctypes.WinError(ctypes.get_last_error())


def use_stub() -> None:
    """Have the stub as the mechanism "stub", whatever is installed."""
    controller.MECHANISMS["stub"] = controller.Mechanism("tests.mounters.windows_stub", ("win32",), "")
    controller._system_problem = lambda options: ""


def main() -> int:
    use_stub()
    fd = controller.ready_fd()
    assert fd is not None
    try:
        controller.serve(
            MemoryTree(),
            sys.argv[1],
            MountOptions(mechanism="stub"),
            ready=lambda where: controller.report_ready(fd, where),
        )
    except MountError as error:
        controller.report_failure(fd, error.exit_code, str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
