"""Disks and images that the tests of restoring share, each made once."""

from collections.abc import Callable, Iterator

import pytest

from tests.imagefs.restore import commands
from tests.imagefs.restore.chains import Chain, Saved, make_chain, small_gpt, small_mbr
from tests.warm import Warm, warm_process


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Chain]:
    """Return what gives a chain by its name."""
    made: dict[str, Chain] = {}

    def get(name: str) -> Chain:
        if name not in made:
            made[name] = make_chain(name, tmp_path_factory.mktemp("chain"))
        return made[name]

    return get


@pytest.fixture(scope="session")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Return a small GPT disk of NTFS, ext4, FAT16 and noise, and its image."""
    return small_gpt(tmp_path_factory.mktemp("gpt"))


@pytest.fixture(scope="session")
def mbr(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Return a small MBR disk of FAT16 and, in an extended partition, ext4 and noise; and its image."""
    return small_mbr(tmp_path_factory.mktemp("mbr"))


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Start a process that has the command line loaded; ``run_quickly`` uses it too."""
    with warm_process(tmp_path_factory.mktemp("warm") / "log") as process:
        commands.started.append(process)
        yield process
        commands.started.clear()
