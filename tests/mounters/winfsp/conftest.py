"""winfspy over the stand-ins, for each test with clean accounts."""

from collections.abc import Iterator

import pytest

from tests.mounters.winfsp.fake_library import FakeLibrary
from tests.mounters.winfsp.loading import fresh_library


@pytest.fixture
def library() -> Iterator[FakeLibrary]:
    with fresh_library() as library:
        yield library
