"""Chains of images that the tests of restoring share, each made once."""

from collections.abc import Callable

import pytest

from tests.imagefs.restore.chains import Chain, make_chain


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Chain]:
    """Return what gives a chain by its name."""
    made: dict[str, Chain] = {}

    def get(name: str) -> Chain:
        if name not in made:
            made[name] = make_chain(name, tmp_path_factory.mktemp("chain"))
        return made[name]

    return get
