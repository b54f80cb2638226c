"""A model of the calls of Windows that mount points need: names, events and processes as they are there."""

import errno
import threading
from dataclasses import dataclass, field

from mounters.windows_calls import Calls


@dataclass
class Event:
    """A kernel object with a name; it is there as long as somebody has it open."""

    owner: str
    set: threading.Event = field(default_factory=threading.Event)
    opened: int = 0


class ModelOfWindows(Calls):
    """One session of Windows. ``letters`` are in use, ``kept`` for network drives that are not connected."""

    def __init__(self, letters: str = "C", kept: str = "") -> None:
        self.letters = set(letters)
        self.kept = set(kept)
        self.sid = "S-1-5-21-1-2-3-1001"
        self.elevated = False
        self.descriptors: list[str] = []
        self.events: dict[str, Event] = {}
        self.numbers: dict[str, tuple[str, int]] = {}
        self.ended: list[int] = []
        self._handles: dict[int, str] = {}
        self._next = 4
        self._lock = threading.Lock()

    def logical_drives(self) -> int:
        return sum(1 << (ord(letter) - ord("A")) for letter in self.letters)

    def is_remembered(self, letter: str) -> bool:
        return letter in self.kept

    def is_elevated(self) -> bool:
        return self.elevated

    def user(self) -> str:
        return self.sid

    def _handle(self, name: str) -> int:
        self._next += 4
        self._handles[self._next] = name
        return self._next

    def _check_name(self, name: str) -> None:
        space, _, rest = name.partition("\\")
        assert space in ("Local", "Global")
        assert "\\" not in rest  # ERROR_PATH_NOT_FOUND
        assert len(name) <= 260

    def create_event(self, name: str, descriptor: str) -> int | None:
        self._check_name(name)
        self.descriptors.append(descriptor)
        with self._lock:
            if name in self.events:
                if self.events[name].owner != self.sid:
                    raise PermissionError(errno.EACCES, "Access is denied")
                return None
            self.events[name] = Event(self.sid, opened=1)
            return self._handle(name)

    def open_event(self, name: str) -> int | None:
        with self._lock:
            if name not in self.events:
                return None
            if self.events[name].owner != self.sid:
                raise PermissionError(errno.EACCES, "Access is denied")
            self.events[name].opened += 1
            return self._handle(name)

    def set_event(self, handle: int) -> None:
        self.events[self._handles[handle]].set.set()

    def wait_for(self, handle: int) -> None:
        assert self.events[self._handles[handle]].set.wait(30)

    def share_number(self, name: str, descriptor: str, number: int) -> int:
        self._check_name(name)
        self.numbers[name] = self.sid, number
        return self._handle(name)

    def shared_number(self, name: str) -> int:
        owner, number = self.numbers.get(name, (self.sid, 0))
        if owner != self.sid:
            raise PermissionError(errno.EACCES, "Access is denied")
        return number

    def close(self, handle: int) -> None:
        with self._lock:
            name = self._handles.pop(handle)
            if self.numbers.pop(name, None) is not None:
                return
            self.events[name].opened -= 1
            if not self.events[name].opened:
                del self.events[name]

    def end_process(self, number: int) -> None:
        self.ended.append(number)

    def winfsp_folder(self) -> str:
        return "C:\\Program Files (x86)\\WinFsp\\"

    @property
    def open_handles(self) -> int:
        return len(self._handles)
