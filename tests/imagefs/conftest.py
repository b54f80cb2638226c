"""Backup sets of every built disk, each made once, when a test first asks for it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.imagefs.built import RECIPES, BuiltSet, build_set


@pytest.fixture(scope="session")
def sets_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that all sets are written to."""
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="session")
def built_set(sets_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], BuiltSet]:
    """Return what gives the set of a recipe."""
    scratch = tmp_path_factory.mktemp("disks")
    made: dict[str, BuiltSet] = {}

    def get(name: str) -> BuiltSet:
        if name not in made:
            made[name] = build_set(sets_folder, scratch, name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def every_set(built_set: Callable[[str], BuiltSet]) -> list[BuiltSet]:
    """Return the sets of all recipes; all of them are in the folder then."""
    return [built_set(name) for name in RECIPES]
