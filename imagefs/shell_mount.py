"""What Explorer's menu runs: mounts one image, and shows in a window what goes wrong.

It is run by ``pythonw``, which has no console. Who mounts an encrypted image is asked for nothing here.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

_TITLE = "imagefs"
_ICON_ERROR = 0x10  # MB_ICONERROR
_NO_WINDOW = 0x08000000  # CREATE_NO_WINDOW


def mount_command(image: str) -> list[str]:
    """Return the command that mounts an image at the next free letter."""
    return [sys.executable, "-P", "-m", "imagefs", "mount", "--", image]


def mount(
    arguments: Sequence[str],
    show: Callable[[str], None],
    command: Callable[[str], Sequence[str]] = mount_command,
) -> int:
    """Mount the image that is named; ``show`` gets the message where that fails. Return the exit code."""
    if len(arguments) != 1:
        show("one image is to be named")
        return 2
    # What serves the mount loads nothing from the folder of the image, and does not keep it in use.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8"}
    with tempfile.TemporaryFile() as said:  # no pipe: what goes on in the background may keep it open
        done = subprocess.run(
            command(arguments[0]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            check=False,
            cwd=Path.home(),
            env=environment,
            creationflags=_NO_WINDOW if sys.platform == "win32" else 0,
        )
        said.seek(0)
        text = said.read().decode("utf-8", "replace").strip()
    if done.returncode:
        show(f"{arguments[0]}\n\n{text or f'it ended with code {done.returncode}'}")
    return done.returncode


def show_error(text: str) -> None:
    """Show a message in a window, where there are such."""
    if sys.platform == "win32":
        import ctypes  # noqa: PLC0415

        ctypes.windll.user32.MessageBoxW(None, text, _TITLE, _ICON_ERROR)
    else:
        sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(mount(sys.argv[1:], show_error))
