"""What the figures depend on: processor, system, versions, settings. No names of machines or users."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("detconv", "torch", "numpy", "onnxruntime", "onnx")


def cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return " ".join((found[1] if found else platform.processor() or platform.machine()).split())


def describe() -> dict[str, Any]:
    """The machine, and how busy it is."""
    text = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
    memory = re.search(r"^MemTotal:\s*(\d+) kB", text, re.MULTILINE)
    return {
        "processor": cpu_model(),
        "architecture": platform.machine(),
        "processors_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        "load_before": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    if found["detconv"] == "not installed":  # run from the source tree
        import detconv

        found["detconv"] = detconv.__version__
    return found


def slug(text: str) -> str:
    """Letters, digits and hyphens, for the name of a file."""
    text = re.sub(r"\((r|tm|c)\)|\bcpu\b|\bprocessor\b|@.*", "", text, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "processor"


def extra_memory(call: Callable[[], int]) -> int | None:
    """Bytes that the process takes at most during a call, less those that the call returns as its result's; Linux only.

    The call is made by a new thread, with threads of its own below it: what earlier calls keep for their threads does
    not hide what this one needs. Free memory is given back first, which a tuned malloc would not do.
    """
    if not (Path("/proc/self/clear_refs").exists() and hasattr(ctypes.CDLL(None), "malloc_trim")):
        return None
    extra = []

    def measure() -> None:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak that the kernel keeps is set to what is resident now
        before = _status("VmRSS")
        size = call()
        extra.append(max(0, _status("VmHWM") - before - size))

    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
    return extra[0] if extra else None


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
