"""The menus of Explorer: what is added, that it can be undone, and that nothing of others is touched."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagefs import shell_mount
from imagefs.shell_registration import EXTENSIONS, mount_command, register, settings, unregister
from tests.conftest import run_imagefs

ROOT = Path(__file__).parents[2]
COMMAND = mount_command(r"C:\Program Files\Python311\pythonw.exe")
VERB = r"Software\Classes\SystemFileAssociations\.mrimgx\shell\imagefs.mount"


class DictRegistry:
    """Keys and values as Windows keeps them: keys by their names in any case, no key without those above."""

    def __init__(self, keys: dict[str, dict[str, str | list[str]]]) -> None:
        self.keys = {r"software": {}, r"software\classes": {}, **keys}

    def has_key(self, key: str) -> bool:
        return key.lower() in self.keys

    def is_empty(self, key: str) -> bool:
        below = key.lower() + "\\"
        return not self.keys[key.lower()] and not any(name.startswith(below) for name in self.keys)

    def create_key(self, key: str) -> None:
        parts = key.lower().split("\\")
        for count in range(1, len(parts) + 1):
            self.keys.setdefault("\\".join(parts[:count]), {})

    def delete_key(self, key: str) -> None:
        if any(name.startswith(key.lower() + "\\") for name in self.keys):
            raise PermissionError(13, "Access is denied")
        del self.keys[key.lower()]

    def value(self, key: str, name: str) -> str | list[str] | None:
        return self.keys[key.lower()].get(name)

    def set_value(self, key: str, name: str, value: str | list[str]) -> None:
        self.keys[key.lower()][name] = value

    def delete_value(self, key: str, name: str) -> None:
        del self.keys[key.lower()][name]


OTHERS: dict[str, dict[str, str | list[str]]] = {
    r"software\classes\.mrimgx": {"": "Reflect.Image"},
    r"software\classes\.mrimgx\openwithprogids": {"Reflect.Image": ""},
    r"software\classes\systemfileassociations": {},
    r"software\classes\systemfileassociations\.mrbak": {},
    r"software\classes\systemfileassociations\.mrbak\shell": {},
    r"software\classes\systemfileassociations\.mrbak\shell\browse": {"": "Browse image"},
}


def test_what_a_right_click_runs() -> None:
    registry = DictRegistry({})
    register(registry, COMMAND)
    wanted = r'"C:\Program Files\Python311\pythonw.exe" -P -m imagefs.shell_mount "%1"'
    for extension in EXTENSIONS:
        verb = VERB.replace(".mrimgx", extension)
        assert registry.value(verb, "") == "Mount with imagefs"
        assert registry.value(rf"{verb}\command", "") == wanted
        assert registry.value(rf"Software\Classes\{extension}\OpenWithProgids", "imagefs.Image") == ""
    assert registry.value(r"Software\Classes\imagefs.Image\shell\open\command", "") == wanted


def test_the_default_program_stays() -> None:
    registry = DictRegistry(copy.deepcopy(OTHERS))
    register(registry, COMMAND)
    for key, values in OTHERS.items():
        assert registry.keys[key].items() >= values.items()
    for extension in EXTENSIONS:
        assert not any(
            setting.name == "" and setting.key.endswith(rf"Classes\{extension}") for setting in settings("")
        )


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("before", [{}, OTHERS])
def test_what_was_added_is_taken_out_and_nothing_else(
    before: dict[str, dict[str, str | list[str]]], times: int
) -> None:
    registry = DictRegistry(copy.deepcopy(before))
    wanted = copy.deepcopy(registry.keys)
    for number in range(times):
        register(registry, mount_command(f"C:\\{number}\\pythonw.exe"))
    assert unregister(registry)
    assert registry.keys == wanted
    assert not unregister(registry)
    assert registry.keys == wanted


def test_what_others_put_into_our_keys_stays() -> None:
    registry = DictRegistry({})
    register(registry, COMMAND)
    registry.set_value(rf"{VERB}\command", "DelegateExecute", "{something}")
    assert unregister(registry)
    left = {key: values for key, values in registry.keys.items() if values}
    assert left == {rf"{VERB}\command".lower(): {"DelegateExecute": "{something}"}}


@pytest.mark.parametrize("step", range(1, 40))
def test_what_was_cut_off_can_be_undone(step: int) -> None:
    class Failing(DictRegistry):
        left = step

        def set_value(self, key: str, name: str, value: str | list[str]) -> None:
            self.left -= 1
            if not self.left:
                raise OSError(5, "Access is denied")
            super().set_value(key, name, value)

    registry = Failing(copy.deepcopy(OTHERS))
    wanted = copy.deepcopy(registry.keys)
    try:
        register(registry, COMMAND)
    except OSError:
        registry.left = -1
    unregister(registry)
    assert registry.keys == wanted


def test_a_message_when_mounting_fails(tmp_path: Path) -> None:
    shown: list[str] = []
    opened: list[str] = []
    code = (
        "import os, sys; sys.stderr.write('imagefs: no b\u00fcckup'); assert not sys.stdin.read();"
        "sys.exit(3 if os.environ['PYTHONSAFEPATH'] else 0)"
    )
    image = str(tmp_path / "full.mrimgx")

    def run(code: str) -> int:
        return shell_mount.mount(
            [image], shown.append, opened.append, lambda _: [sys.executable, "-X", "utf8", "-c", code]
        )

    assert run(code) == 3
    assert shown == [f"{image}\n\nimagefs: no b\u00fcckup"]
    assert run("") == 0
    assert shell_mount.mount([], shown.append, opened.append) == 2
    assert (len(shown), opened) == (2, [])


def test_the_drive_is_opened() -> None:
    opened: list[str] = []
    code = "from pathlib import Path; from imagefs.cli import mount; mount._tell(Path('full.mrimgx'), 'R:')"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    assert shell_mount.mount(["full.mrimgx"], pytest.fail, opened.append, lambda _: command) == 0
    assert opened == ["R:\\"]


@pytest.mark.skipif(sys.platform != "win32", reason="for Windows")
def test_the_registry_itself() -> None:
    def asked(key: str) -> tuple[int, str]:
        done = subprocess.run(["reg", "query", rf"HKCU\{key}", "/s"], capture_output=True, check=False)
        return done.returncode, done.stdout.decode("utf-8", "replace")

    keys = (r"Software\Classes", r"Software\imagefs")
    before = [asked(key) for key in keys]
    if before[1][0] == 0:
        pytest.skip("imagefs is in the menu already")
    try:
        done = run_imagefs("shell-register")
        assert (done.code, done.errors) == (0, "")
        code, found = asked(rf"{VERB}\command")
        assert code == 0
        assert "REG_SZ" in found
        assert '-P -m imagefs.shell_mount "%1"' in found
        assert asked(keys[0]) != before[0]
    finally:
        done = run_imagefs("shell-register", "--remove")
    assert (done.code, done.text.strip()) == (0, "taken out of Explorer")
    assert [asked(key) for key in keys] == before


def test_another_system_has_no_explorer() -> None:
    if os.name == "nt":
        pytest.skip("it has, here")
    for options in ((), ("--remove",)):
        done = run_imagefs("shell-register", *options)
        assert (done.code, done.output) == (2, b"")
        assert "for Windows" in done.errors
