"""``torch.nn.Conv2d`` and ``torch.nn.ConvTranspose2d`` with a summation: the same arguments, the same state_dict.

A layer here is a torch layer (``isinstance`` holds) that differs in two methods. Initial weights come from torch.
"""

from __future__ import annotations

import warnings
from typing import Any

from detconv.quoting import quoted

try:
    import torch
except ImportError as error:
    raise ImportError("detconv.nn needs torch, which is not installed (pip install 'detconv[torch]')") from error

from torch import Tensor
from torch.nn import functional

import detconv.functional
from detconv.summation import Summation
from detconv.torch.ops import text_of

__all__ = ["Conv2d", "ConvTranspose2d", "SummationMismatch"]


class SummationMismatch(UserWarning):
    """Weights that were saved with one summation are loaded into a layer with another one."""


class _Summed(torch.nn.modules.conv._ConvNd):
    """A convolution with a summation.

    The summation travels with the weights, in the metadata that ``state_dict()`` has beside its entries and that
    ``torch.save`` keeps. So entries, their names and their hash are those of torch's layer.
    """

    _summation: str
    _made_of: tuple[type, type, str]

    def __init_subclass__(cls, **options: Any) -> None:
        # A class that ``convert`` makes of a user's class is no new class of the user's, who may keep a list of them.
        if "_made_of" not in vars(cls):
            super().__init_subclass__(**options)

    @property
    def summation(self) -> str:
        """The text of the summation; set it to a ``Summation`` or a text to compute by another one from now on."""
        return self._summation

    @summation.setter
    def summation(self, summation: Summation | str) -> None:
        self._summation = text_of(summation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, summation={self.summation!r}"  # type: ignore[no-untyped-call]

    def __prepare_scriptable__(self) -> Any:
        """What ``torch.jit.script`` asks a module for, whatever model it stands in, before it compiles anything."""
        raise TypeError(
            f"torch.jit.script cannot compile {type(self).__qualname__}: TorchScript knows no layers of detconv; "
            "torch.jit.trace, torch.export and torch.compile do"
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None:
            metadata.setdefault(prefix[:-1], {})["summation"] = self.summation

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *arguments: Any) -> None:
        saved = local_metadata.get("summation")
        if saved is not None and saved != self.summation:
            layer = prefix[:-1] or "the layer"
            warnings.warn(
                f"the weights of {layer} were saved with summation {saved!r} and are loaded into a layer with "
                f"summation {self.summation!r}: its outputs will have other bits",
                SummationMismatch,
                stacklevel=2,
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)


class Conv2d(_Summed, torch.nn.Conv2d):
    """``torch.nn.Conv2d`` computed by ``detconv.conv2d``, gradients included.

    Args:
        *arguments, **options: those of ``torch.nn.Conv2d``, with every ``padding`` and ``padding_mode``.
        summation: a ``Summation`` or its text.

    Raises:
        ValueError, TypeError: as ``torch.nn.Conv2d``; a summation that is none.
    """

    def __init__(self, *arguments: Any, summation: Summation | str = "pairwise", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.summation = summation

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        geometry: Any = [self.stride, self.padding, self.dilation, self.groups]
        if self.padding_mode != "zeros":
            input = functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            geometry[1] = 0
        return detconv.functional.conv2d(input, weight, bias, *geometry, summation=self.summation)


class ConvTranspose2d(_Summed, torch.nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` computed by ``detconv.conv_transpose2d``, gradients included.

    Args:
        *arguments, **options: those of ``torch.nn.ConvTranspose2d``.
        summation: a ``Summation`` or its text.

    Raises:
        ValueError, TypeError: as ``torch.nn.ConvTranspose2d``; a summation that is none.
    """

    def __init__(self, *arguments: Any, summation: Summation | str = "pairwise", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.summation = summation

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.padding_mode != "zeros":  # possible where a layer was changed after it was made
            raise ValueError(f"padding_mode must be 'zeros' for ConvTranspose2d; got {quoted(self.padding_mode)}")
        stride, padding, kernel, dilation = _lists(self.stride, self.padding, self.kernel_size, self.dilation)
        output_padding = self._output_padding(input, output_size, stride, padding, kernel, 2, dilation)
        geometry: Any = [stride, padding, output_padding, self.groups, dilation]
        return detconv.functional.conv_transpose2d(input, self.weight, self.bias, *geometry, summation=self.summation)


def _lists(*pairs: Any) -> Any:
    return map(list, pairs)
