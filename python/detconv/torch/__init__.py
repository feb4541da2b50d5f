"""detconv for torch. Importing it registers the operators ``torch.ops.detconv.*``, which a loaded program may need."""

try:
    import torch as torch
except ImportError as error:
    raise ImportError(
        "this part of detconv needs torch, which is not installed (pip install 'detconv[torch]')"
    ) from error

from detconv.torch import ops as ops
