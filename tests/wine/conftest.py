"""Windows under wine, started once."""

from collections.abc import Iterator

import pytest

from tests.imagefs.conftest import built_set, every_set, sets_folder
from tests.wine import environment, windows
from tests.wine.windows import Windows

__all__ = ["built_set", "every_set", "sets_folder"]


@pytest.fixture(scope="session")
def wine() -> Iterator[Windows]:
    """Return what runs Windows' Python."""
    with windows.started(environment.set_up()) as started:
        yield started
