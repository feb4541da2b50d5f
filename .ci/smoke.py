"""The installed wheel beside NumPy alone: it imports, computes, and neither has nor needs torch."""

import importlib.util
import subprocess
import sys

import numpy as np

import detconv

assert importlib.util.find_spec("torch") is None, "this check wants an environment without torch"

ones = np.ones((1, 2, 4, 4), np.float32)
weight = np.arange(2 * 2 * 3 * 3, dtype=np.float32).reshape(2, 2, 3, 3)
expected = np.broadcast_to(weight.sum((1, 2, 3))[None, :, None, None], (1, 2, 2, 2))
for method in ("naive", "pairwise", "kahan", "fp64", "exact"):
    assert np.array_equal(detconv.conv2d(ones, weight, summation=method), expected), method

subprocess.run([sys.executable, "-m", "detconv", "info"], check=True)
print(f"detconv {detconv.__version__} works beside NumPy {np.__version__} alone")
