"""Fixtures of the store suite: every test runs on every store."""

import pytest

from store_harness import HARNESSES


@pytest.fixture(params=sorted(HARNESSES))
def harness(request):
    harness = HARNESSES[request.param]()
    yield harness
    harness.cleanup()


@pytest.fixture
def store(harness):
    store = harness.open()
    yield store
    store.close()
