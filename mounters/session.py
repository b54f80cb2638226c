"""What a mechanism of mounting offers to the controller."""

import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """How a tree is mounted. It is always read-only."""

    mechanism: str = "auto"  # or a name of controller.MECHANISMS
    allow_other: bool = False  # other users may enter; permission bits are then enforced
    source: str = "imagefs"  # shown as the device by mount and df
    read_ahead: int = 4 << 20  # bytes, where the system lets us set it; read as 1 MiB requests at once
    # What Windows shows of a volume:
    label: str = ""
    serial: int = 0  # 32 bits; 0: made of the source's name
    created: int = 0  # nanoseconds since 1970-01-01 UTC; 0: not known
    network: str = ""  # \\server\share: the name as a network drive; "": a disk
    original_security: bool = False  # NTFS's own descriptors instead of one that lets in the mounting user


class Session(ABC):
    """One mount by one mechanism, served by this process."""

    @abstractmethod
    def run(self, mounted: Callable[[], None]) -> None:
        """Mount, call ``mounted`` once the kernel knows the mount, and answer until it ends.

        May be called from any thread, once. Raises MountError when the mount is refused.
        """

    @abstractmethod
    def stop(self) -> None:
        """Make ``run`` unmount and return, from another thread; requests in flight end first."""


@dataclass(slots=True)
class Captured:
    """What was written to the standard error file descriptor."""

    text: str = field(default="")


@contextmanager
def captured_stderr() -> Iterator[Captured]:
    """Collect what C code writes to file descriptor 2: libfuse's only account of why a mount failed."""
    captured = Captured()
    try:
        saved = os.dup(2)
    except OSError:  # a background process without one
        yield captured
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield captured
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            with suppress(OSError):
                file.seek(0)
                captured.text = file.read(4096).decode(errors="replace").strip()


def mount_label(text: str) -> str:
    """Return a text as libfuse's options take it: printable ASCII without commas and backslashes."""
    return re.sub(r"[^ -~]|[,\\]", "_", text) or "imagefs"
