r"""imagefs in the menus of Windows' Explorer, for one user: "Mount with imagefs", and under "Open with".

Nothing that is there is changed: which program opens a file by a double click stays as it is. Sources:
Microsoft, "Verbs and File Associations" (SystemFileAssociations), "How to Include an Application in the Open
With Dialog Box" (OpenWithProgids), "Merged View of HKEY_CLASSES_ROOT", "winreg" of Python's library.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

if sys.platform == "win32":
    import ctypes
    import winreg

EXTENSIONS = (".mrimgx", ".mrbakx", ".mrimg", ".mrbak")
CAPTION = "Mount with imagefs"
_CLASSES = r"Software\Classes"
_CLASS = "imagefs.Image"
_VERB = "imagefs.mount"
_RECORD = r"Software\imagefs\Explorer"  # which keys were not there before
_CREATED = "created"


class Registry(Protocol):
    """The registry of the current user. Keys are paths below HKEY_CURRENT_USER; errors are OSErrors."""

    def has_key(self, key: str) -> bool:
        """Whether a key is there."""

    def is_empty(self, key: str) -> bool:
        """Whether a key has neither values nor keys below it."""

    def create_key(self, key: str) -> None:
        """Make a key and those above it, where they are not there."""

    def delete_key(self, key: str) -> None:
        """Delete a key that has none below it."""

    def value(self, key: str, name: str) -> str | list[str] | None:
        """Return a value, None where there is none; "" names the default one."""

    def set_value(self, key: str, name: str, value: str | list[str]) -> None:
        """Set a value of a key that is there: text, or several."""

    def delete_value(self, key: str, name: str) -> None:
        """Delete a value."""


class Setting(NamedTuple):
    """A value that is set."""

    key: str
    name: str
    value: str


def mount_command(python: str) -> str:
    """Return the command that mounts what Explorer names, by a Python that has no window.

    ``-P``: else Python would load modules from the folder that the image is in.
    """
    return subprocess.list2cmdline([python, "-P", "-m", "imagefs.shell_mount"]) + ' "%1"'


def settings(command: str) -> list[Setting]:
    """Return all that is set."""
    kind = rf"{_CLASSES}\{_CLASS}"
    found = [
        Setting(kind, "", "Disk-image backup"),
        Setting(rf"{kind}\Application", "ApplicationName", "imagefs"),
        Setting(rf"{kind}\shell\open", "", CAPTION),
        Setting(rf"{kind}\shell\open\command", "", command),
    ]
    for extension in EXTENSIONS:
        verb = rf"{_CLASSES}\SystemFileAssociations\{extension}\shell\{_VERB}"
        found += [
            Setting(verb, "", CAPTION),
            Setting(rf"{verb}\command", "", command),
            Setting(rf"{_CLASSES}\{extension}\OpenWithProgids", _CLASS, ""),
        ]
    return found


def register(registry: Registry, command: str) -> None:
    """Add imagefs to the menus; again with another command where it is there already."""
    wanted = settings(command)
    known = _created(registry)
    added = [key for key in _keys(wanted) if key not in known and not registry.has_key(key)]
    # The record comes first: what is cut off in the middle can be undone too.
    registry.create_key(_RECORD)
    registry.set_value(_RECORD, _CREATED, [*known, *added])
    for key, name, value in wanted:
        registry.create_key(key)
        registry.set_value(key, name, value)


def unregister(registry: Registry) -> bool:
    """Take out what ``register`` added, and nothing else; False where there was nothing of it."""
    created = _created(registry)
    wanted = settings("")
    found = bool(created)
    for key, name, _ in wanted:
        if registry.has_key(key) and registry.value(key, name) is not None:
            registry.delete_value(key, name)
            found = True
    record = list(_with_parents(_RECORD))
    _delete_empty(registry, [key for key in created if key not in record])
    if registry.has_key(_RECORD) and registry.value(_RECORD, _CREATED) is not None:
        registry.delete_value(_RECORD, _CREATED)
    _delete_empty(registry, record)
    return found


def _delete_empty(registry: Registry, keys: Sequence[str]) -> None:
    """Delete keys, the innermost first, but for those that others have put something into."""
    for key in sorted(keys, key=lambda key: key.count("\\"), reverse=True):
        if registry.has_key(key) and registry.is_empty(key):
            registry.delete_key(key)


def _created(registry: Registry) -> list[str]:
    if not registry.has_key(_RECORD):
        return []
    value = registry.value(_RECORD, _CREATED)
    return value if isinstance(value, list) else []


def _keys(wanted: Sequence[Setting]) -> Iterator[str]:
    yield from dict.fromkeys(key for setting in wanted for key in _with_parents(setting.key))


def _with_parents(key: str) -> Iterator[str]:
    """Yield the keys down to this one, without "Software", which is there."""
    parts = key.split("\\")
    for count in range(2, len(parts) + 1):
        yield "\\".join(parts[:count])


if sys.platform == "win32":
    _CHANGED = 0x08000000  # SHCNE_ASSOCCHANGED

    class UserRegistry:
        """The registry of the user who runs this; see Registry."""

        def has_key(self, key: str) -> bool:
            """Whether a key is there."""
            try:
                winreg.OpenKey(winreg.HKEY_CURRENT_USER, key).Close()
            except FileNotFoundError:
                return False
            return True

        def is_empty(self, key: str) -> bool:
            """Whether a key has neither values nor keys below it."""
            with winreg.OpenKey(winreg.HKEY_CURRENT_USER, key) as opened:
                keys, values, _ = winreg.QueryInfoKey(opened)
            return not keys and not values

        def create_key(self, key: str) -> None:
            """Make a key and those above it."""
            winreg.CreateKey(winreg.HKEY_CURRENT_USER, key).Close()

        def delete_key(self, key: str) -> None:
            """Delete a key."""
            winreg.DeleteKey(winreg.HKEY_CURRENT_USER, key)

        def value(self, key: str, name: str) -> str | list[str] | None:
            """Return a value."""
            with winreg.OpenKey(winreg.HKEY_CURRENT_USER, key) as opened:
                try:
                    found: str | list[str] = winreg.QueryValueEx(opened, name)[0]
                except FileNotFoundError:
                    return None
            return found

        def set_value(self, key: str, name: str, value: str | list[str]) -> None:
            """Set a value."""
            kind = winreg.REG_SZ if isinstance(value, str) else winreg.REG_MULTI_SZ
            with winreg.OpenKey(winreg.HKEY_CURRENT_USER, key, 0, winreg.KEY_SET_VALUE) as opened:
                winreg.SetValueEx(opened, name, 0, kind, value)

        def delete_value(self, key: str, name: str) -> None:
            """Delete a value."""
            with winreg.OpenKey(winreg.HKEY_CURRENT_USER, key, 0, winreg.KEY_SET_VALUE) as opened:
                winreg.DeleteValue(opened, name)

    def tell_explorer() -> None:
        """Have Explorer look at its menus again."""
        ctypes.windll.shell32.SHChangeNotify(_CHANGED, 0, None, None)
