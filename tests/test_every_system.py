"""What would go wrong on Windows without a word: calls that are there, and mean something else."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("formats", "mounters", "imagefs")

# Each with what is used in its place.
OTHERWISE = {
    "open": "formats.files.open_file: os.open is for text there, and keeps others from deleting",
    "ftruncate": "formats.files.truncate: os.ftruncate writes out the zeros that it adds",
    "truncate": "formats.files.truncate: os.truncate writes out the zeros that it adds",
    "kill": "imagefs.machine.processes: os.kill ends the process that it only was to ask",
    "link": "formats.files.move_new: not every file system has links",
    "fork": "subprocess",
}
# Names that are on POSIX systems alone are found by mypy's look at Windows.
ONE_SYSTEM = ("fcntl", "termios", "resource", "pwd", "grp", "msvcrt", "winreg")
HOME = {"formats/files.py", "formats/files_windows.py"}
LINKS = {"imagefs/copying.py", "imagefs/copies_posix.py"}  # of files with several names


def is_of_one_system(tree: ast.Module) -> bool:
    """Whether a module begins with an assertion of its system."""
    return any(isinstance(node, ast.Assert) and asks_for_system(node.test) for node in tree.body)


def asks_for_system(test: ast.expr) -> bool:
    """Whether a condition is one of the system, or of what it has."""
    text = ast.unparse(test)
    return "sys.platform" in text or "hasattr(os, " in text or text == "LINUX"


def everywhere(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs on every system."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If | ast.IfExp) and asks_for_system(child.test):
            continue
        yield from everywhere(child)


def faults(source: str) -> list[str]:
    tree = ast.parse(source)
    if is_of_one_system(tree):
        return []
    found = []
    for node in everywhere(tree):
        if isinstance(node, ast.Import):
            found += [f"{node.lineno}: import {a.name}" for a in node.names if a.name in ONE_SYSTEM]
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if ast.unparse(node.func.value) == "os" and node.func.attr in OTHERWISE:
            if node.args and ast.unparse(node.args[0]) == "os.devnull":
                continue
            found.append(f"{node.lineno}: os.{node.func.attr} → {OTHERWISE[node.func.attr]}")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_calls_mean_the_same_on_every_system(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        found = [] if name in HOME else faults(path.read_text())
        assert not [fault for fault in found if not (name in LINKS and "os.link" in fault)], name


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.open('x', os.O_RDWR)\n",
        "def f(pid):\n    os.kill(pid, 0)\n",
        "import fcntl\n",
        "if sys.argv:\n    os.ftruncate(1, 2)\n",
        "def f():\n    if True:\n        import resource\n",
        "import sys\nimport fcntl\nassert sys.argv\n",
    ],
)
def test_the_check_sees_a_call_that_must_not_be(source: str) -> None:
    assert faults(source)


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.open(os.devnull, os.O_RDWR)\n",
        "if sys.platform != 'win32':\n    import fcntl\n",
        "if sys.platform == 'win32':\n    pass\nelse:\n    os.kill(1, 0)\n",
        "import sys\nassert sys.platform != 'win32'\nimport fcntl\nos.link('a', 'b')\n",
    ],
)
def test_the_check_lets_be_what_is_of_one_system(source: str) -> None:
    assert not faults(source)
