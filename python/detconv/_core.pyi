from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

# What a call may be given is checked by the engine itself, which names the argument at fault.
_Pair: TypeAlias = int | Sequence[int]
# Makes the array for a result, of a shape, strides in elements and "float32" or "float64".
_Empty: TypeAlias = Callable[[tuple[int, ...], tuple[int, ...], str], NDArray[Any]]

__version__: str

class _pybind11_type(type): ...

class Summation(metaclass=_pybind11_type):
    def __init__(self, method: str, order: str, products: str, bias: str, block: int, samples: str) -> None: ...
    @property
    def method(self) -> str: ...
    @property
    def order(self) -> str: ...
    @property
    def products(self) -> str: ...
    @property
    def bias(self) -> str: ...
    @property
    def block(self) -> int: ...
    @property
    def samples(self) -> str: ...
    @property
    def explicit_order(self) -> bool: ...

def methods() -> tuple[str, ...]: ...
def conv2d(
    input: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    stride: _Pair,
    padding: _Pair | str,
    dilation: _Pair,
    groups: int,
    summation: Summation,
    channels_last: bool = False,
    empty: _Empty | None = None,
    to_odd: bool = False,
) -> NDArray[Any]: ...
def conv2d_input(
    input_size: Sequence[int],
    weight: NDArray[Any],
    grad_output: NDArray[Any],
    stride: _Pair,
    padding: _Pair | str,
    dilation: _Pair,
    groups: int,
    summation: Summation,
    channels_last: bool = False,
    empty: _Empty | None = None,
    to_odd: bool = False,
) -> NDArray[Any]: ...
def conv2d_weight(
    input: NDArray[Any],
    weight_size: Sequence[int],
    grad_output: NDArray[Any],
    stride: _Pair,
    padding: _Pair | str,
    dilation: _Pair,
    groups: int,
    summation: Summation,
    channels_last: bool = False,
    empty: _Empty | None = None,
    to_odd: bool = False,
) -> NDArray[Any]: ...
def conv2d_bias(
    grad_output: NDArray[Any], summation: Summation, empty: _Empty | None = None, to_odd: bool = False
) -> NDArray[Any]: ...
def narrow(array: NDArray[Any], dtype: str) -> NDArray[Any]: ...
def conv_transpose2d(
    input: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    stride: _Pair,
    padding: _Pair,
    output_padding: _Pair,
    groups: int,
    dilation: _Pair,
    summation: Summation,
    channels_last: bool = False,
    empty: _Empty | None = None,
    to_odd: bool = False,
) -> NDArray[Any]: ...
def tensor_conv2d(plain: tuple[type, ...]) -> Callable[..., Any] | None: ...
def tensor_reader(type: type) -> Callable[[Any], NDArray[Any] | None] | None: ...
def assess(
    candidate: NDArray[Any],
    exact: NDArray[Any],
    magnitude: NDArray[Any],
    shift: NDArray[Any] | None,
    hard: NDArray[Any],
    likely: NDArray[Any],
    tiny: NDArray[Any],
    roots: NDArray[Any],
    exact_below: float,
    scale: float,
    accumulator: tuple[int, int, int],
    stored: tuple[int, int, int],
) -> tuple[NDArray[Any], list[int], float, int, tuple[int, float, float, float, float]]: ...
def walks(
    pass_: str,
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: _Pair,
    padding: _Pair | str,
    dilation: _Pair,
    groups: int,
    summation: Summation,
    is_float32: bool = True,
    channels_last: bool = False,
) -> list[str]: ...
def build_info() -> dict[str, object]: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def force_instruction_set(name: str | None) -> str | None: ...
