"""winfspy's own Python code on this system: all of it is real but its extension and what Windows has."""

import ctypes.util
import importlib
import os
import sys
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from fixtures.winfspy_wheel import winfspy_folder
from tests.mounters.winfsp.fake_driver import Volume
from tests.mounters.winfsp.fake_library import FakeLibrary
from tests.mounters.winfsp.faults import Faults
from tests.mounters.winfsp.nt import NtError
from tests.mounters.winfsp.pe_types import read_types

# The adapter's modules that hold what winfspy is; imported again where it is there again.
ADAPTER = ("mounters.winfsp_binding", "mounters.winfsp_operations", "mounters.winfsp_mount")


@dataclass(frozen=True)
class Loaded:
    """The package and the library below it; one for each process, as callbacks can be given once."""

    library: FakeLibrary
    modules: dict[str, types.ModuleType]

    @contextmanager
    def imported(self) -> Iterator[FakeLibrary]:
        """Have ``import winfspy`` find it; afterwards nothing here can import it."""
        for name in ADAPTER:
            sys.modules.pop(name, None)
        sys.modules.update(self.modules)
        try:
            yield self.library
        finally:
            for name in [*self.modules, *ADAPTER]:
                sys.modules.pop(name, None)


_loaded: Loaded | None = None


def load_winfspy() -> Loaded:
    """Return winfspy over the stand-ins; MissingToolError where its wheel can't be had."""
    global _loaded  # noqa: PLW0603
    if _loaded is None:
        _loaded = _load(winfspy_folder())
    return _loaded


def _imported() -> AbstractContextManager[FakeLibrary]:
    if sys.platform == "win32":
        from tests.mounters.winfsp.stub_library import load_stub

        # The same to all tests but those of the stand-in itself.
        return nullcontext(cast("FakeLibrary", load_stub()))
    return load_winfspy().imported()


@contextmanager
def fresh_library() -> Iterator[FakeLibrary]:
    """Give the library with clean accounts; what was wrong, or is left behind at the end, is a failure."""
    with _imported() as library:
        library.begin()
        yield library
        left = library.end()
        library.faults.check()
        assert not left, "a file system was left behind"


def _load(folder: Path) -> Loaded:
    import logging

    faults = Faults()
    library = FakeLibrary(read_types(folder / "winfspy" / "plumbing" / "_bindings.pyd"), faults)
    bindings: Any = types.ModuleType("winfspy.plumbing._bindings")
    bindings.ffi, bindings.lib = library.ffi, library
    before = set(sys.modules)
    with (
        patch.dict(sys.modules, {"winreg": types.ModuleType("winreg"), bindings.__name__: bindings}),
        patch.dict(os.environ, {"WINFSP_LIBRARY_PATH": str(folder), "WINFSP_DEBUG_PATH": str(folder)}),
        patch.object(os, "add_dll_directory", lambda path: None, create=True),
        patch.object(ctypes.util, "find_library", lambda name: name),
        patch.object(sys, "path", [str(folder), *sys.path]),
    ):
        importlib.import_module("winfspy")
        modules = {
            name: sys.modules[name] for name in set(sys.modules) - before if name.startswith("winfspy")
        }
        modules[bindings.__name__] = bindings
    modules["winfspy.file_system"].os = OwnOs(library)  # type: ignore[attr-defined]
    logging.getLogger("winfspy").addHandler(faults)
    return Loaded(library, modules)


class OwnOs:
    """``os`` for winfspy's mount, which asks whether the mount point is there."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def stat(self, mountpoint: str) -> object:
        if self._library.failures_of_stat:
            raise self._library.failures_of_stat.pop(0)
        for volume in self._library.volumes:
            if volume.mountpoint == mountpoint:
                try:
                    return Volume(volume).stat("\\")
                except NtError as error:
                    raise OSError(str(error)) from error
        raise FileNotFoundError(mountpoint)
