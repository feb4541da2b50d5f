"""Deterministic conv2d whose summation is written down: the same bits on every machine.

>>> import detconv, numpy as np
>>> x, w = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
>>> detconv.conv2d(x, w, padding=1, summation="exact").shape
(1, 4, 8, 8)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    from detconv import _core
except ImportError as error:
    if "libgomp" not in str(error):
        raise
    raise ImportError(
        "detconv needs the OpenMP runtime libgomp.so.1, and none was found. Install it "
        "(Debian and Ubuntu: apt install libgomp1; Fedora: dnf install libgomp), or import torch first: it brings one."
    ) from error

from detconv import testing
from detconv.config import build_info, get_num_threads, set_num_threads, show_config
from detconv.functional import conv2d, conv2d_bias, conv2d_input, conv2d_weight, conv_transpose2d
from detconv.summation import Summation

if TYPE_CHECKING:
    from detconv import nn as nn
    from detconv import reference as reference
    from detconv.revealing import Reveal as Reveal
    from detconv.revealing import identify as identify
    from detconv.revealing import reveal as reveal
    from detconv.torch.compare import compare_models as compare_models
    from detconv.torch.convert import convert as convert
    from detconv.torch.hashing import weights_sha256 as weights_sha256
    from detconv.torch.override import override as override
    from detconv.verdict.diagnose import Diagnosis as Diagnosis
    from detconv.verdict.diagnose import diagnose as diagnose
    from detconv.verdict.judge import ConvolutionMistake as ConvolutionMistake
    from detconv.verdict.judge import Verdict as Verdict
    from detconv.verdict.judge import judge as judge
    from detconv.verdict.judge import judge_input_gradient as judge_input_gradient
    from detconv.verdict.judge import judge_weight_gradient as judge_weight_gradient

__all__ = [
    "Summation",
    "__version__",
    "build_info",
    "conv2d",
    "conv2d_bias",
    "conv2d_input",
    "conv2d_weight",
    "conv_transpose2d",
    "get_num_threads",
    "reference",
    "set_num_threads",
    "show_config",
    "testing",
]

__version__ = _core.__version__


# What only some need, and where it is: the modules below import torch, or take their time.
_LATER = {
    "ConvolutionMistake": "detconv.verdict.judge",
    "Diagnosis": "detconv.verdict.diagnose",
    "Reveal": "detconv.revealing",
    "Verdict": "detconv.verdict.judge",
    "compare_models": "detconv.torch.compare",
    "convert": "detconv.torch.convert",
    "diagnose": "detconv.verdict.diagnose",
    "identify": "detconv.revealing",
    "judge": "detconv.verdict.judge",
    "judge_input_gradient": "detconv.verdict.judge",
    "judge_weight_gradient": "detconv.verdict.judge",
    "nn": "detconv",
    "override": "detconv.torch.override",
    "reference": "detconv",
    "reveal": "detconv.revealing",
    "weights_sha256": "detconv.torch.hashing",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _LATER[name] == __name__:
        return import_module(f"{__name__}.{name}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LATER})
