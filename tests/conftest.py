import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Threads that wait give up the processor: on a busy machine the suite takes a third of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import detconv

# A slow example is no failure on a shared machine; CI draws the same examples every time.
settings.register_profile("detconv", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("detconv")


@pytest.fixture(autouse=True)
def _restore_thread_count() -> Iterator[None]:
    before = detconv.get_num_threads()
    yield
    detconv.set_num_threads(before)
