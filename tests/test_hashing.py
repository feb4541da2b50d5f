"""weights_sha256: equal for equal weights however they lie, different for any bit."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import detconv

torch = pytest.importorskip("torch")


def digest(**entries: Any) -> str:
    return detconv.weights_sha256(OrderedDict(entries))


def test_the_format_is_written_down() -> None:
    values = np.array([[1.5, -0.0, 3]], "<f4")
    by_hand = hashlib.sha256(b'["w", "float32", [1, 3]]\n' + values.tobytes())
    by_hand.update(b'["n", "int64", []]\n' + (7).to_bytes(8, "little"))
    assert digest(w=torch.from_numpy(values), n=torch.tensor(7)) == by_hand.hexdigest()


def test_a_module_is_its_state_dict() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    assert detconv.weights_sha256(model) == detconv.weights_sha256(model.state_dict())
    before = detconv.weights_sha256(model)
    model[1].num_batches_tracked += 1  # a buffer
    assert detconv.weights_sha256(model) != before
    detconv.convert(model)
    model[1].num_batches_tracked -= 1
    assert detconv.weights_sha256(model) == before


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.bool, torch.int8, torch.float8_e5m2]
)
def test_every_element_type(dtype: Any) -> None:
    zero, one = torch.zeros(2, 3).to(dtype), torch.ones(2, 3).to(dtype)
    assert digest(w=zero) == digest(w=zero.clone())
    assert digest(w=zero) != digest(w=one)


def test_every_bit_counts() -> None:
    w = torch.tensor([[1.0, 0.0], [2.0, float("nan")]])
    others = [
        torch.tensor([[1.0, -0.0], [2.0, float("nan")]]),
        torch.tensor([[float(np.nextafter(np.float32(1), np.float32(2))), 0.0], [2.0, float("nan")]]),
        w.reshape(4),
        w.reshape(1, 4),
        w.view(torch.int32),
        w.T,
        w.double(),
    ]
    hashes = {digest(w=x) for x in [w, *others]} | {digest(v=w), digest(w=w, v=w), digest(v=w, w=w), digest()}
    assert len(hashes) == len(others) + 5


def test_layout_and_gradients_do_not_count() -> None:
    w = torch.arange(24.0).reshape(1, 2, 3, 4)
    same = [
        w.contiguous(memory_format=torch.channels_last),
        w.repeat_interleave(2, -1)[..., ::2],
        torch.complex(w, -w).conj().imag,
        w.clone().requires_grad_(),
        torch.nn.Parameter(w),
    ]
    assert {digest(w=x) for x in same} == {digest(w=w)}


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (3, TypeError),
        (None, TypeError),
        (torch.zeros(2).to_sparse(), TypeError),
        (torch.zeros(2, device="meta"), ValueError),
    ],
)
def test_what_has_no_elements_is_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^model\['w'\] must"):
        digest(w=value)


def test_bad_input() -> None:
    for wrong in (3, [torch.zeros(1)], torch.zeros(1)):
        with pytest.raises(TypeError, match=r"^model must be"):
            detconv.weights_sha256(wrong)
    with pytest.raises(TypeError, match="named by str"):
        detconv.weights_sha256({3: torch.zeros(1)})
