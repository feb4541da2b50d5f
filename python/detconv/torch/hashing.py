"""One line that names the weights of a model, to the last bit."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

import torch

from detconv.torch.tensors import elements


def weights_sha256(model: torch.nn.Module | Mapping[str, Any]) -> str:
    """The SHA-256 of a model's parameters and persistent buffers: equal if and only if all their bits are.

    What is hashed, for every entry of the state_dict in its order: a line of JSON with its name, its element type
    (such as ``"float32"``) and its shape, then its elements in C order, little-endian. Strides, devices and
    ``requires_grad`` play no part; entries that share memory count as often as they appear.

    Args:
        model: a module, or what its ``state_dict()`` returned.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: neither a module nor a mapping, or an entry that is no dense tensor (extra state, quantized or sparse
            tensors).
        ValueError: an entry on the meta device, which has no elements.
    """
    if not isinstance(model, (torch.nn.Module, Mapping)):
        raise TypeError(f"model must be a torch.nn.Module or a state_dict; got {type(model).__name__}")
    entries = model.state_dict() if isinstance(model, torch.nn.Module) else model
    digest = hashlib.sha256()
    for name, value in entries.items():
        _check(name, value)
        header = [name, str(value.dtype).removeprefix("torch."), list(value.shape)]
        digest.update(json.dumps(header).encode() + b"\n")
        digest.update(_little_endian(value))
    return digest.hexdigest()


def _check(name: object, value: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"model must have entries named by str; got the name {name!r}")
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"model[{name!r}] must be a tensor; got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        raise TypeError(f"model[{name!r}] must be a dense tensor; got {value.layout}, {value.dtype}")
    if value.is_meta:
        raise ValueError(f"model[{name!r}] must have elements; got a tensor on the meta device")


def _little_endian(tensor: torch.Tensor) -> memoryview:
    size = tensor.element_size()
    values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if sys.byteorder == "big":
        part = size // 2 if tensor.is_complex() else size
        values = values.view(torch.uint8).reshape(-1, part).flip(1).contiguous()
    return elements("model", values.view(torch.uint8)).data
