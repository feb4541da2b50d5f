"""The key of a revealed order: what the order holds for, and what else may change it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np

from detconv.revealing.box import Box
from detconv.revealing.passes import Geometry

# What caps or chooses the instruction set or the number of threads of a library, where it is set.
ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "NPY_DISABLE_CPU_FEATURES",
    "OMP_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "XLA_FLAGS",
)


def key_of(box: Box, geometry: Geometry, library: str | None) -> dict[str, Any]:
    """Library and version, processor, threads, layout and the convolution itself; everything is JSON."""
    library = library or _library_of(box.fn, box.arrays)
    key: dict[str, Any] = {
        "function": box.name,
        "library": library,
        "version": _version(library),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "layout": box.layout,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        **geometry.arguments(),
    }
    if library == "torch":
        torch: Any = import_module("torch")
        onednn = torch.backends.mkldnn
        key["torch"] = {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "onednn": bool(onednn.is_available() and onednn.enabled),
            "threads": torch.get_num_threads(),
        }
    if library in ("numpy", "scipy"):
        key["blas"] = _blas()
    return key


def _library_of(fn: Callable[..., Any], arrays: str) -> str:
    module = (getattr(fn, "__module__", None) or type(fn).__module__).split(".")[0]
    return module if module not in ("__main__", "builtins") and module in sys.modules else arrays


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(library), "__version__", "unknown"))


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _blas() -> str:
    config: Any = np.show_config(mode="dicts")
    found = (config or {}).get("Build Dependencies", {}).get("blas", {})
    return f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()
