"""The stand-in for winfsp-x64.dll on Windows, and under wine: a library of C (tests/wine/winfsp_stub.c).

winfspy's own extension runs above it. Here are its volumes, as ``fake_library`` has them on other systems.
"""

import ctypes
import logging
import os
import sys
from pathlib import Path
from typing import Any

from fixtures.tools import MissingToolError
from tests.mounters.winfsp.faults import Faults
from tests.mounters.winfsp.nt import NtError, Status

assert sys.platform == "win32"

NAME = "winfsp-x64.dll"
_MOST_VOLUMES = 64
_NOT_RUNNING, _CANCELLED = 1, 2
_WITHOUT_STATUS = ("Close", "Cleanup")


class StubVolume:
    """A file system as the library knows it."""

    def __init__(self, library: "StubLibrary", place: int) -> None:
        self.library = library
        self.faults = library.faults
        self.ffi = library.ffi
        self.pointer = self.ffi.cast("FSP_FILE_SYSTEM *", place)
        self._place = place
        dll = library.dll
        self.device: str = dll.test_device(place)
        self.parameters = self.ffi.cast("FSP_FSCTL_VOLUME_PARAMS *", dll.test_parameters(place))
        self.mountpoint: str = dll.test_mountpoint(place)

    @property
    def running(self) -> bool:
        return bool(self.library.dll.test_is_running(self._place))

    def call(self, operation: str, *arguments: Any) -> int:
        """Call an operation of the adapter from a native thread, and return its status."""
        if not self.running:
            raise NtError(Status.VOLUME_DISMOUNTED, operation)
        function = getattr(self.pointer.Interface, operation)
        if not function:
            raise NtError(Status.INVALID_DEVICE_REQUEST, operation)
        values = [self._place, *map(self._number, arguments)]
        given = (ctypes.c_uint64 * len(values))(*values)
        result = ctypes.c_uint64()
        how = self.library.dll.test_call(
            self._place, self._number(function), given, len(values), ctypes.byref(result)
        )
        if how:
            raise NtError(Status.CANCELLED if how == _CANCELLED else Status.VOLUME_DISMOUNTED, operation)
        return 0 if operation in _WITHOUT_STATUS else result.value & 0xFFFFFFFF

    def _number(self, value: Any) -> int:
        return value if isinstance(value, int) else int(self.ffi.cast("uintptr_t", value))


class StubLibrary:
    """What tests see of the library; the same as of ``FakeLibrary``."""

    def __init__(self, dll: Any, ffi: Any, faults: Faults) -> None:
        self.dll = dll
        self.ffi = ffi
        self.faults = faults
        self.failures_of_stat: list[OSError] = []
        dll.test_device.restype = dll.test_mountpoint.restype = ctypes.c_wchar_p
        dll.test_parameters.restype = ctypes.c_void_p
        for name in ("device", "mountpoint", "parameters", "is_running"):
            getattr(dll, f"test_{name}").argtypes = [ctypes.c_void_p]
        dll.test_call.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int, ctypes.c_void_p]

    @property
    def volumes(self) -> list[StubVolume]:
        found = (ctypes.c_void_p * _MOST_VOLUMES)()
        count = self.dll.test_volumes(found, _MOST_VOLUMES)
        return [StubVolume(self, place) for place in found[:count] if place]

    @property
    def letters_in_use(self) -> set[str]:
        bits = self.dll.test_get_letters_in_use()
        return {f"{chr(65 + number)}:" for number in range(26) if bits >> number & 1}

    @letters_in_use.setter
    def letters_in_use(self, letters: set[str]) -> None:
        self.dll.test_letters_in_use(sum(1 << ord(letter[0]) - 65 for letter in letters))

    @property
    def driver_is_there(self) -> bool:
        return not self.dll.test_is_driver_missing()

    @driver_is_there.setter
    def driver_is_there(self, there: bool) -> None:
        self.dll.test_driver_is_missing(int(not there))

    def begin(self) -> None:
        """Be as a machine on which nothing has happened yet."""
        self._take_faults()
        self.faults.take()
        self.driver_is_there = True
        self.letters_in_use = {"C:"}
        self.failures_of_stat.clear()

    def end(self) -> int:
        """Take away what is still mounted, and return how much it was."""
        left = self.volumes
        for volume in left:
            self.dll.FspFileSystemStopDispatcher(ctypes.c_void_p(volume._place))
            self.dll.FspFileSystemDelete(ctypes.c_void_p(volume._place))
        for fault in self._take_faults():
            self.faults.add(fault)
        return len(left)

    def _take_faults(self) -> list[str]:
        text = ctypes.create_string_buffer(8192)
        self.dll.test_take_faults(text, len(text))
        return text.value.decode().splitlines()


_library: StubLibrary | None = None


def load_stub() -> StubLibrary:
    """Import winfspy above the library below WINFSP_LIBRARY_PATH; MissingToolError where that is not ours."""
    global _library  # noqa: PLW0603
    if _library is None:
        place = Path(os.environ.get("WINFSP_LIBRARY_PATH", "")) / "bin" / NAME
        if not place.is_file():
            raise MissingToolError(f"the stand-in for {NAME}", "make test-wine, which builds it")
        dll = ctypes.CDLL(str(place))
        if not hasattr(dll, "test_call"):
            raise MissingToolError(f"the stand-in for {NAME}", "make test-wine: this is WinFsp itself")
        import winfspy.file_system
        from winfspy.plumbing.bindings import ffi

        from tests.mounters.winfsp.loading import OwnOs

        faults = Faults()
        logging.getLogger("winfspy").addHandler(faults)
        _library = StubLibrary(dll, ffi, faults)
        winfspy.file_system.os = OwnOs(_library)
    return _library
