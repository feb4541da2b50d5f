"""Deterministic conv2d whose summation is written down: the same bits on every machine.

>>> import detconv, numpy as np
>>> x, w = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
>>> detconv.conv2d(x, w, padding=1, summation="exact").shape
(1, 4, 8, 8)

What there is, each with a docstring of its own:

    conv2d, conv2d_input, conv2d_weight, conv2d_bias, conv_transpose2d      the sums
    Summation, reference                                                    how they are added; the specification
    judge, judge_input_gradient, judge_weight_gradient,                     rounding or mistake?
        judge_bias_gradient, Verdict, ConvolutionMistake,
        diagnose, Diagnosis, testing
    reveal, identify, Reveal                                                in which order does somebody else add?
    build_info, show_config, get_num_threads, set_num_threads               how it was built, and its threads

and, with torch, which is imported where one of these is first used:

    nn, convert, override                                                   layers and whole models
    compare_models, weights_sha256                                          two models; one line that names the weights
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
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
    from detconv.verdict.judge import judge_bias_gradient as judge_bias_gradient
    from detconv.verdict.judge import judge_input_gradient as judge_input_gradient
    from detconv.verdict.judge import judge_weight_gradient as judge_weight_gradient

    __all__ = [
        "ConvolutionMistake",
        "Diagnosis",
        "Reveal",
        "Summation",
        "Verdict",
        "__version__",
        "build_info",
        "compare_models",
        "conv2d",
        "conv2d_bias",
        "conv2d_input",
        "conv2d_weight",
        "conv_transpose2d",
        "convert",
        "diagnose",
        "get_num_threads",
        "identify",
        "judge",
        "judge_bias_gradient",
        "judge_input_gradient",
        "judge_weight_gradient",
        "nn",
        "override",
        "reference",
        "reveal",
        "set_num_threads",
        "show_config",
        "testing",
        "weights_sha256",
    ]

__version__ = _core.__version__


# What is there at once.
_NOW = (
    "Summation",
    "__version__",
    "build_info",
    "conv2d",
    "conv2d_bias",
    "conv2d_input",
    "conv2d_weight",
    "conv_transpose2d",
    "get_num_threads",
    "set_num_threads",
    "show_config",
    "testing",
)
# What only some need, and where it is: these modules take their time,
_LATER = {
    "ConvolutionMistake": "detconv.verdict.judge",
    "Diagnosis": "detconv.verdict.diagnose",
    "Reveal": "detconv.revealing",
    "Verdict": "detconv.verdict.judge",
    "diagnose": "detconv.verdict.diagnose",
    "identify": "detconv.revealing",
    "judge": "detconv.verdict.judge",
    "judge_bias_gradient": "detconv.verdict.judge",
    "judge_input_gradient": "detconv.verdict.judge",
    "judge_weight_gradient": "detconv.verdict.judge",
    "reference": "detconv",
    "reveal": "detconv.revealing",
}
# and these import torch.
_OF_TORCH = {
    "compare_models": "detconv.torch.compare",
    "convert": "detconv.torch.convert",
    "nn": "detconv",
    "override": "detconv.torch.override",
    "weights_sha256": "detconv.torch.hashing",
}


def __getattr__(name: str) -> Any:
    if name == "__all__":  # what `from detconv import *` gives: torch's names only where torch is imported already
        return sorted({*_NOW, *_LATER, *(_OF_TORCH if sys.modules.get("torch") else ())})
    home = _LATER.get(name) or _OF_TORCH.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if home == __name__:
        return import_module(f"{__name__}.{name}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    """Every name that can be had: torch's where torch is installed. So ``help(detconv)`` works without it."""
    return sorted({*globals(), *_NOW, *_LATER, *(_OF_TORCH if find_spec("torch") else ())})
