"""What Explorer's menu runs: mounts one image and opens its drive, or shows what went wrong.

It is run by ``pythonw``, which has no console: nothing can be asked, so an encrypted image is refused.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

_TITLE = "imagefs"
_ICON_ERROR = 0x10  # MB_ICONERROR
_NO_WINDOW = 0x08000000  # CREATE_NO_WINDOW
MOUNTED = re.compile(r"imagefs umount ([A-Z]:)")  # in what ``imagefs mount`` says


def mount_command(image: str) -> list[str]:
    """Return the command that mounts an image at the next free letter."""
    return [sys.executable, "-P", "-m", "imagefs", "mount", "--", image]


def mount(
    arguments: Sequence[str],
    show_error: Callable[[str], None],
    show_drive: Callable[[str], None],
    command: Callable[[str], Sequence[str]] = mount_command,
) -> int:
    """Mount the image that is named, and show its drive, else the message why not. Return the exit code."""
    if len(arguments) != 1:
        show_error("one image is to be named")
        return 2
    # What serves the mount loads nothing from the folder of the image, and does not keep it in use.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8"}
    # No pipes: what goes on in the background may keep them open.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        done = subprocess.run(
            command(arguments[0]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            check=False,
            cwd=Path.home(),
            env=environment,
            creationflags=_NO_WINDOW if sys.platform == "win32" else 0,
        )
        output.seek(0)
        mounted = MOUNTED.search(output.read().decode("utf-8", "replace"))
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip()
    if done.returncode:
        show_error(f"{arguments[0]}\n\n{said or f'it ended with code {done.returncode}'}")
    elif mounted is not None:
        show_drive(f"{mounted[1]}\\")
    return done.returncode


if sys.platform == "win32":
    import ctypes

    def _show_error(text: str) -> None:
        ctypes.windll.user32.MessageBoxW(None, text, _TITLE, _ICON_ERROR)

    if __name__ == "__main__":
        sys.exit(mount(sys.argv[1:], _show_error, os.startfile))
