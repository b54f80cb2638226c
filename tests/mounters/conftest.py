from collections.abc import Iterator

import pytest

from tests.mounters.mounting import MECHANISMS, Mounted, memory_mount, need


@pytest.fixture(scope="session", params=MECHANISMS)
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """Mount the memory tree once by each mechanism, for all tests that leave it as it is."""
    need(request.param)
    with memory_mount(tmp_path_factory.mktemp(request.param), request.param) as mounted:
        yield mounted


@pytest.fixture(params=MECHANISMS)
def mechanism(request: pytest.FixtureRequest) -> str:
    need(request.param)
    return str(request.param)
