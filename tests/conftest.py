import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

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


@pytest.fixture(scope="session")
def matplotlib_is_ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For tests that let another process draw, and look at what it writes to stderr.

    matplotlib writes there that it looks for fonts, where it does so for the first time, and that it cannot keep what
    it found, where the home is read-only.
    """
    if find_spec("matplotlib") is None:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
        subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=True, capture_output=True)
        yield
