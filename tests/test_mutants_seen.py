"""Small mistakes in the code that no other test would notice; each is named by the test that does."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import detconv
from bits import assert_same_bits, made
from detconv.verdict import files


class Writes:
    """Its pickle, when read, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_files_of_arrays_run_no_code(tmp_path: Path) -> None:
    """`allow_pickle=True` in the readers of NumPy's files, `weights_only=False` in that of torch's."""
    torch = pytest.importorskip("torch")
    ran = tmp_path / "ran"
    hostile: Any = np.array([Writes(ran)], dtype=object)
    np.save(tmp_path / "a.npy", hostile, allow_pickle=True)
    np.savez(tmp_path / "a.npz", one=hostile)
    torch.save({"one": Writes(ran)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"one": Writes(ran)}))
    for name in ("a.npy", "a.npz:one", "a.pt:one", "b.pt:one"):
        with pytest.raises(ValueError, match=r"cannot be read|no array"):
            files.read(str(tmp_path / name))
        assert not ran.exists(), name
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert ran.exists()  # who lets it run, runs it


def test_the_probable_bound_has_the_stated_confidence() -> None:
    """A confidence that `judge` takes and ignores."""
    image, weight = made((1, 256, 6, 6), np.float32, 1), made((8, 256, 3, 3), np.float32, 2)
    candidate = detconv.conv2d(image, weight, summation="naive")
    bounds = {c: detconv.judge(candidate, image, weight, confidence=c).probable_bound for c in (0.5, 0.99, 1 - 1e-9)}
    low, middle, high = (np.asarray(bounds[c], np.float64) for c in (0.5, 0.99, 1 - 1e-9))
    assert (low < middle).all()
    assert (middle < high).all()


@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)])
def test_gradients_where_one_operand_needs_one(needs: tuple[bool, bool]) -> None:
    """The factor that is saved is the other one's."""
    torch = pytest.importorskip("torch")
    image, weight = made((2, 3, 7, 6), np.float32, 1), made((4, 3, 3, 2), np.float32, 2)
    grad_output = made((2, 4, 5, 5), np.float32, 3)
    x, w = (torch.from_numpy(a).requires_grad_(need) for a, need in zip((image, weight), needs, strict=True))
    detconv.conv2d(x, w, summation="kahan").backward(torch.from_numpy(grad_output))
    expected = (
        detconv.conv2d_input(image.shape, weight, grad_output, summation="kahan"),
        detconv.conv2d_weight(image, weight.shape, grad_output, summation="kahan"),
    )
    for tensor, need, gradient in zip((x, w), needs, expected, strict=True):
        assert (tensor.grad is not None) == need
        if need:
            assert_same_bits(tensor.grad.numpy(), gradient)


@pytest.mark.parametrize("exponent", [-530, -300, 300, 490])
def test_a_verdict_does_not_depend_on_the_size_of_the_values(exponent: int) -> None:
    """The scale with which squares are summed left out; and sums of which a square is no number of float64."""
    image, weight = made((1, 32, 6, 6), np.float64, 1), made((4, 32, 3, 3), np.float64, 2)
    candidate = detconv.conv2d(image, weight, summation="naive")
    scaled = image * 2.0**exponent, weight * 2.0**exponent
    larger = detconv.conv2d(*scaled, summation="naive")
    verdict, same = detconv.judge(candidate, image, weight), detconv.judge(larger, *scaled)
    assert verdict.status == same.status == "rounding"
    assert same.power.decides
    assert same.power.zeros == verdict.power.zeros
    if exponent > -500:  # there all numbers are normal ones, and their errors are the same
        assert same.counts == verdict.counts
        assert same.together.error == verdict.together.error * 4.0**exponent
        assert same.power == verdict.power
    assert detconv.judge(np.zeros_like(larger), *scaled).status != "rounding"


class Index:
    """An integer of a user's own."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value


def test_integers_of_any_kind_are_arguments_of_tensors() -> None:
    """All that has __index__ passed on as it is, where torch.compile's open sizes must be."""
    torch = pytest.importorskip("torch")
    image, weight = made((1, 4, 9, 9), np.float32, 1), made((4, 2, 3, 3), np.float32, 2)
    x, w = (
        torch.from_numpy(image).requires_grad_(),
        torch.from_numpy(weight),
    )  # where none needs one, no operator is met
    expected = detconv.conv2d(image, weight, padding=(1, 2), groups=2)
    same = detconv.conv2d(image, weight, padding="same", dilation=2, groups=2)
    for kind in (Index, np.int64, np.uint8):
        output = detconv.conv2d(x, w, padding=(kind(1), kind(2)), groups=kind(2))
        assert_same_bits(output.detach().numpy(), expected)
        output = detconv.conv2d(x, w, stride=kind(1), padding="same", dilation=kind(2), groups=2)
        assert_same_bits(output.detach().numpy(), same)
