"""winfspy over the stand-ins, for each test with clean accounts; what was wrong fails the test."""

from collections.abc import Iterator

import pytest

from tests.mounters.winfsp.fake_library import FakeLibrary
from tests.mounters.winfsp.loading import load_winfspy


@pytest.fixture
def library() -> Iterator[FakeLibrary]:
    with load_winfspy().imported() as library:
        library.faults.take()
        yield library
        left = list(library.volumes)
        for volume in left:
            library.do_FspFileSystemStopDispatcher(volume.pointer)
            library.do_FspFileSystemDelete(volume.pointer)
        library.driver_is_there = True
        library.letters_in_use = {"C:"}
        library.faults.check()
        assert not left, "a file system was left behind"
