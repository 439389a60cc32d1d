"""What every test gets: no Ray unless it says so, and property tests that are the same in every run."""

import sys
from collections.abc import Iterator
from typing import NoReturn

import pytest
from hypothesis import settings

# Derandomized, so that a red test is red again; no deadline, so that a busy machine does not make one red.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def no_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that starts Ray without the marker `serve`. Ray takes seconds to import, so it is not done here."""
    if "serve" in request.keywords:
        yield
        return

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        pytest.fail("unit tests must not start Ray; mark the test `serve`")

    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "init", refuse)
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():  # imported only during the test, so not caught above
        ray.shutdown()
        refuse()
