"""The installed wheel beside torch: one OpenMP runtime in the process, and forked children that finish.

Usage: one_openmp.py detconv-first | torch-first
"""

import faulthandler
import importlib
import os
import re
import sys
import traceback
from pathlib import Path

FIRST, SECOND = {"detconv-first": ("detconv", "torch"), "torch-first": ("torch", "detconv")}[sys.argv[1]]
importlib.import_module(FIRST)
importlib.import_module(SECOND)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

import detconv  # noqa: E402

faulthandler.dump_traceback_later(100, exit=True)  # a hang is what this script looks for

x = np.ones((2, 16, 32, 32), np.float32)
w = np.ones((32, 16, 3, 3), np.float32)


def compute() -> bytes:
    return bytes(detconv.conv2d(x, w, padding=1))


class Images(Dataset[bytes]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> bytes:
        return compute()


# Both libraries start their threads before anything is looked at or forked.
detconv.set_num_threads(2)
torch.set_num_threads(2)
expected = compute()
assert bytes(torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), padding=1).numpy()) == expected

runtimes = set(re.findall(r"\S*/lib(?:gomp|omp|iomp5)\b\S*", Path("/proc/self/maps").read_text()))
assert len(runtimes) == 1, f"{len(runtimes)} OpenMP runtimes: {sorted(runtimes)}"

# No torch in this child: outside a DataLoader, torch's own threads do not survive a fork.
child = os.fork()
if child == 0:
    try:
        os._exit(0 if compute() == expected else 1)
    except BaseException:
        traceback.print_exc()
        os._exit(2)
assert os.waitpid(child, 0)[1] == 0, "the forked child failed"

assert list(DataLoader(Images(), batch_size=None, num_workers=2, timeout=60)) == [expected] * 4
print(f"{FIRST}, then {SECOND}: one OpenMP runtime ({runtimes.pop()}); forked child and DataLoader workers finish")
