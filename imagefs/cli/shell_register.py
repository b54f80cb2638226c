"""``imagefs shell-register``: mount by a right click in Windows' Explorer."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from imagefs import shell_registration
from imagefs.cli.common import output
from imagefs.errors import UsageError
from imagefs.shell_registration import CAPTION, EXTENSIONS


def shell_register(
    remove: Annotated[bool, typer.Option("--remove", help="Take out again what was added.")] = False,
) -> None:
    """Add "Mount with imagefs" to what a right click on an image shows in Windows' Explorer.

    For this user alone, also under "Open with". What a double click opens stays as it is. Once more after
    Python or imagefs has moved to another folder. An encrypted image is mounted by imagefs mount instead.

    Example: imagefs shell-register

    Exit codes: 0 · 2 on another system · 7.
    """
    if sys.platform != "win32":
        raise UsageError("there is no Explorer here: shell-register is for Windows")
    else:
        registry = shell_registration.UserRegistry()
        if remove:
            found = shell_registration.unregister(registry)
            output.print("taken out of Explorer" if found else "there was nothing to take out")
        else:
            shell_registration.register(registry, shell_registration.mount_command(_windowless()))
            output.print(
                f"a right click shows {CAPTION!r} on {', '.join(EXTENSIONS)}; --remove takes it out again"
            )
        shell_registration.tell_explorer()


def _windowless() -> str:
    """Return the Python that has no window of its own, else the one that runs."""
    python = Path(sys.executable)
    found = python.with_name("pythonw.exe")
    return str(found if found.exists() else python)
