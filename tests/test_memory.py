"""How much memory a call takes beyond its arguments and its output, and that it touches no other.

Everything here runs in an interpreter of its own: peaks are read from it, and a wrong read ends it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from bits import DTYPES, METHODS, PATIENCE
from test_invariance import LAYERS, SUMMATIONS

MiB = 1 << 20


def python(code: str, **environment: str) -> str:
    """What the code prints; it can import the test files."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        # Threads that wait for each other sleep: where other processes run too, they would only take their time.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_WAIT_POLICY": "passive", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert run.returncode == 0, (run.returncode, run.stdout[-300:], run.stderr)
    return run.stdout


# ---- How much ----

# Input, weight, options; with what takes memory there.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]] = {
    "large image": ((1, 3, 1200, 1000), (4, 3, 3, 3), {"padding": 1}),
    "large image, no padding": ((1, 3, 1200, 1000), (4, 3, 3, 3), {}),
    "wide rows": ((1, 16, 3, 40000), (2, 16, 3, 3), {"padding": 1}),
    "one channel, 1x1: norms": ((1, 1, 1500, 1500), (2, 1, 1, 1), {}),
    "1x1": ((1, 64, 200, 200), (32, 64, 1, 1), {}),
    "1x1 with stride": ((1, 64, 300, 300), (32, 64, 1, 1), {"stride": 2}),
    "many weights: panels": ((1, 512, 7, 7), (1024, 512, 3, 3), {"padding": 1}),
    "many channels, one output: the window of a tile": ((1, 4096, 33, 33), (1, 4096, 1, 1), {"stride": 2}),
    "depthwise": ((1, 256, 112, 112), (256, 1, 7, 7), {"groups": 256, "padding": 3}),
    "depthwise, large kernel": ((1, 512, 30, 30), (512, 1, 31, 31), {"groups": 512, "padding": 15}),
    "patches": ((1, 3, 1024, 1024), (64, 3, 16, 16), {"stride": 16}),
    "far apart": ((1, 8, 700, 700), (4, 8, 3, 3), {"dilation": 300, "padding": 300}),
    "as far apart as it gets": ((1, 8, 2, 2), (4, 8, 3, 3), {"dilation": 2**27, "padding": 2**27, "stride": 2**27}),
    "batch": ((256, 16, 28, 28), (8, 16, 3, 3), {"padding": 1}),
    "20,000 terms": ((1, 20000, 1, 1), (256, 20000, 1, 1), {}),
    "a million terms": ((1, 4096, 16, 16), (2, 4096, 16, 16), {}),
}
# Of these, the gradient by the weight: the outputs of every level of the tree of samples take memory.
JOINED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]] = {
    "3x3": ((16, 128, 28, 28), (128, 128, 3, 3), {"padding": 1}),
    "1x1, an odd number of samples": ((33, 256, 7, 7), (512, 256, 1, 1), {}),
    "many samples": ((255, 16, 14, 14), (32, 16, 3, 3), {"padding": 1}),
    "many panels": ((5, 16, 30, 30), (1024, 16, 3, 3), {}),
    "depthwise": ((17, 576, 14, 14), (576, 1, 3, 3), {"groups": 576, "padding": 1}),
}
MEASURED = ("naive", "naive order=kh,kw,c", "kahan", "fp64", "exact")

MEASURE = """
    import ctypes, json
    import numpy as np
    import detconv
    from test_memory import JOINED, MEASURED, SHAPES

    def status(name):
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

    def extra(call):
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")  # the peak starts again from what is resident now
        before = status("VmRSS:")
        output = call()
        return status("VmHWM:") - before - output.nbytes

    def measured():
        yield "nothing", 1, 1, extra(lambda: np.ones(10 << 20, np.uint8))
        yield "64 MiB", 1, 1, extra(lambda: np.ones(64 << 20, np.uint8)[:0])
        for threads in (1, 3):
            detconv.set_num_threads(threads)
            first = np.ones((1, 64, 64, 64), np.DTYPE)
            detconv.conv2d(first, np.ones((64, 64, 3, 3), np.DTYPE))  # starts the threads
            for name, (input, weight, options) in SHAPES.items():
                x, w = np.ones(input, np.DTYPE), np.ones(weight, np.DTYPE)
                layouts = [x]
                if name == "large image":
                    layouts += [np.moveaxis(np.ones((*input[2:], 3), np.DTYPE), 2, 0)[None], x[:, ::-1, ::-2, ::-2]]
                for y in layouts:
                    for summation in MEASURED:
                        call = lambda: detconv.conv2d(y, w, summation=summation, **options)
                        yield f"{name}, {summation}, {y.strides}", threads, w[0].size, extra(call)
            for name, (input, weight, options) in JOINED.items():
                x, w = np.ones(input, np.DTYPE), np.ones(weight, np.DTYPE)
                y = detconv.conv2d(x, w, **options)
                for channels_last in (False, True):
                    if channels_last:
                        x, y = (np.moveaxis(np.moveaxis(a, 1, 3).copy(), 3, 1) for a in (x, y))
                    for summation in MEASURED:
                        if "order" in summation:
                            continue
                        call = lambda: detconv.conv2d_weight(x, weight, y, summation=summation, **options)
                        yield f"gradient, {name}, {summation}, {y.strides}", threads, y[0, 0].size, extra(call)

    print(json.dumps(list(measured())))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's measure of the peak")
@pytest.mark.parametrize("dtype", DTYPES)
def test_extra_memory(dtype: type) -> None:
    """At most 4 MiB for every thread, as long as an output has no more than 4096 terms; for each term beyond, 1 KiB for
    every thread and 32 bytes for all of them.

    A thread keeps 2 MiB of packed weights, or one panel (at most 32 outputs, of 8 bytes a term) where that is more;
    0.5 MiB of copied input, or the window of one tile (at most 256 columns, of 4 bytes a term, or 64 of 8); and for
    `exact` the norms of the columns of that input, at most 2 MiB. The 32 bytes are the sequence of the terms. Where
    samples are joined, packed panels and the totals of all levels of the tree take 2.5 MiB together.
    """
    found = json.loads(
        python(
            MEASURE.replace("DTYPE", dtype.__name__),
            # What is freed goes back at once, so that the next call has to take it anew.
            MALLOC_MMAP_THRESHOLD_="65536",
            MALLOC_TRIM_THRESHOLD_="0",
            OPENBLAS_NUM_THREADS="1",
        )
    )
    (_, _, _, nothing), (_, _, _, temporary), *calls = found
    assert nothing < MiB / 4
    assert abs(temporary - 64 * MiB) < MiB / 4
    assert len(calls) == 2 * len(MEASURED) * (len(SHAPES) + 2) + 2 * (len(MEASURED) - 1) * 2 * len(JOINED)
    for name, threads, terms, extra in calls:
        beyond = max(0, terms - 4096)
        most = threads * (4 * MiB + 1024 * beyond) + 32 * beyond
        assert extra <= most, f"{name} on {threads} threads: {extra / MiB:.2f} MiB, at most {most / MiB:.2f}"


# ---- Which ----

GUARD = """
    import ctypes, mmap
    from dataclasses import replace
    import numpy as np
    import detconv
    from bits import DTYPES, METHODS, Layer
    from detconv.testing import instruction_set
    from test_invariance import INSTRUCTION_SETS, LAYERS, channels_last, conv2d

    libc, PAGE, NO_ACCESS, kept = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE, 0, []

    def guarded(array, at_the_end):
        \"\"\"A copy in the same layout whose first or last byte lies beside a page that must not be touched.\"\"\"
        pages = -(-array.nbytes // PAGE)
        memory = mmap.mmap(-1, (pages + 2) * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for page in (0, pages + 1):
            assert libc.mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, NO_ACCESS) == 0
        offset = PAGE + (pages * PAGE - array.nbytes if at_the_end else 0)
        copy = np.frombuffer(memory, array.dtype, array.size, offset)
        copy = np.lib.stride_tricks.as_strided(copy, array.shape, array.strides)
        copy[...] = array
        kept.append(memory)
        return copy

    detconv.set_num_threads(1)
    for way, of in LAYERS.items():
        for dtype in DTYPES:
            layer = of(dtype)
            layer = replace(layer, input=layer.input[0])
            for at_the_end, lay in ((False, np.asarray), (True, np.asarray), (True, channels_last)):
                arrays = [guarded(lay(array), at_the_end) for array in layer.arrays]
                for isa in INSTRUCTION_SETS:
                    for method in METHODS:
                        print(way, dtype.__name__, at_the_end, lay.__name__, isa, method, flush=True)
                        with instruction_set(isa):
                            conv2d(Layer(*arrays, layer.options), method)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="protects pages by POSIX's mprotect")
def test_nothing_beside_the_arrays_is_read() -> None:
    calls = python(GUARD).splitlines()
    assert len(calls) % (len(LAYERS) * len(DTYPES) * 3 * len(METHODS)) == 0
    assert calls


HASHES = """
    from bits import DTYPES, sha256
    from test_invariance import LAYERS, SUMMATIONS, conv2d

    for way, of in LAYERS.items():
        for dtype in DTYPES:
            layer = of(dtype)
            for summation in SUMMATIONS:
                print(way, dtype.__name__, summation, sha256(conv2d(layer, summation)))
"""


def test_what_lay_in_the_memory_before_plays_no_part() -> None:
    """The C library fills every piece of memory it hands out with one byte; elements are then huge, or tiny."""
    first, second = (python(HASHES, MALLOC_PERTURB_=byte) for byte in ("1", "85"))
    assert len(first.splitlines()) == len(LAYERS) * len(DTYPES) * len(SUMMATIONS)
    assert first == second
