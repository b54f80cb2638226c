"""The arrows between the rooms: imagefs → formats and imagefs → mounters, nothing else."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("formats", "mounters", "imagefs", "fixtures", "tests")
ALLOWED = {
    "formats": {"formats"},
    "mounters": {"mounters"},
    "imagefs": {"imagefs", "formats", "mounters"},
    "fixtures": {"fixtures"},
}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            rooms |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            rooms.add((node.module or "").partition(".")[0])
    return rooms & set(ROOMS)


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        assert imported_rooms(path) <= ALLOWED[room], path.relative_to(ROOT)


def test_the_check_sees_an_arrow_that_must_not_be(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def later():\n    from imagefs.tree import ImageTree\n")
    assert not imported_rooms(wrong) <= ALLOWED["formats"]
