"""Threads that the system does not give, and interpreters in which the engine does not work, never end the process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from bits import PATIENCE

LAYER = """
    import numpy as np
    import detconv

    image, weight = np.ones((4, 64, 60, 60), np.float32), np.ones((64, 64, 3, 3), np.float32)
    def computes():
        return bool((detconv.conv2d(image, weight) == 576).all())
"""


def python(code: str, **environment: str) -> str:
    """What an interpreter of its own prints, which ends well and says nothing on stderr."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    return run.stdout


@pytest.mark.parametrize("wanted", ["100000", "2147483647"])
def test_omp_num_threads_is_capped(wanted: str) -> None:
    code = (
        LAYER
        + """
    print(detconv.get_num_threads() <= 4096, detconv.build_info()["num_threads"] <= 4096, computes())
    """
    )
    assert python(code, OMP_NUM_THREADS=wanted).split() == ["True"] * 3


REFUSED = (
    LAYER
    + """
    import resource, threading

    def virtual():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()

    class Refusing:
        \"\"\"The system has memory for the stacks of three threads more.\"\"\"
        def __enter__(self):
            resource.setrlimit(resource.RLIMIT_AS, (virtual() + 3 * STACK + STACK // 2, HARD))
        def __exit__(self, *_):
            resource.setrlimit(resource.RLIMIT_AS, (HARD, HARD))

    HARD, STACK = resource.getrlimit(resource.RLIMIT_AS)[1], 256 << 20
    detconv.set_num_threads(1)
    print(computes())
    threading.stack_size(STACK)
    detconv.set_num_threads(64)
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit of the address space")
def test_refused_threads() -> None:
    """A call that gets fewer threads than it wants computes on those; and on all once they can be had again."""
    code = (
        REFUSED
        + """
    with Refusing():
        print(computes(), computes())
    detconv.set_num_threads(16)
    print(computes())
    other = threading.Thread(target=lambda: print(computes()))
    threading.stack_size(0)
    other.start()
    other.join()
    """
    )
    # The stacks of OpenMP's threads are as large as those of others by default.
    found = subprocess.run(
        ["bash", "-c", f'ulimit -s {256 << 10} && exec "$0" -c "$1"', sys.executable, textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.split() == ["True"] * 5


SUBINTERPRETER = """
    import sys
    FIRST
    try:
        import _xxsubinterpreters as interpreters
        one = interpreters.create(isolated=False)
    except ImportError:
        import _interpreters as interpreters
        one = interpreters.create("legacy")
    code = '''if True:
        import sys, warnings
        warnings.simplefilter("ignore")  # NumPy's, about itself
        sys.path[:] = PATHS
        try:
            import detconv
        except ImportError as error:
            print("subinterpreter" in str(error), flush=True)
    '''.replace("PATHS", repr(sys.path))
    interpreters.run_string(one, code)
    import detconv
    print(detconv.conv2d.__name__)
"""


@pytest.mark.parametrize("first", ["pass", "import detconv"])
def test_a_subinterpreter_that_shares_the_gil_cannot_import(first: str) -> None:
    pytest.importorskip("_xxsubinterpreters" if sys.version_info < (3, 13) else "_interpreters")
    assert python(SUBINTERPRETER.replace("FIRST", first)).split() == ["True", "conv2d"]
