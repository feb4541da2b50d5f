"""The environment of a process: what must be set before any library loads."""

from __future__ import annotations

import os
from pathlib import Path

from bench.results import Process

ROOT = Path(__file__).parent.parent

# Freed memory is kept, and large blocks come from it too, so no call pays for fresh pages. torch's outputs gain most by
# it: 8785 page faults for each call of VGG's 3x3 layer by default, none with these.
TUNED_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}

# What holds torch (oneDNN, its own kernels, MKL) to an instruction set. The highest needs nothing.
CAPS = {
    "avx512": {},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "baseline": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "neon": {},
}
MALLOCS = ("tuned", "default")

# Variables with these beginnings change times, whoever set them.
MATTER = (
    *("DETCONV_ISA", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "ATEN_"),
    *("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"),
)


def environment(process: Process) -> dict[str, str]:
    """All variables of a process."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(process.threads))
    malloc = TUNED_MALLOC if process.malloc == "tuned" else {}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {
        k: v for k, v in os.environ.items() if k not in {*TUNED_MALLOC, *(c for cap in CAPS.values() for c in cap)}
    }
    added = {"DETCONV_ISA": process.isa, **threads, **malloc, **CAPS[process.isa]}
    return inherited | added | {"PYTHONPATH": os.pathsep.join(paths)}


def settings(process: Process) -> dict[str, str]:
    """The variables that matter to times, inherited ones too: they are part of the result."""
    return {k: v for k, v in sorted(environment(process).items()) if k.startswith(MATTER)}
