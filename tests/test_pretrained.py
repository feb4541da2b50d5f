"""A model that someone else trained: MTCNN's first network, whose weights lie in the wheel of facenet-pytorch."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import detconv
from bits import made

torch = pytest.importorskip("torch")


def weights() -> dict[str, Any]:
    folder = os.environ.get("DETCONV_PRETRAINED")
    if folder is None:
        pytest.skip("DETCONV_PRETRAINED names no folder with the wheel of facenet-pytorch; `make test` sets it")
    (wheel,) = Path(folder).glob("facenet_pytorch-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read("facenet_pytorch/data/pnet.pt")
    found: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    return found


def network() -> Any:
    """P-Net of Zhang et al., "Joint face detection and alignment using multitask cascaded CNNs", 2016, without the last
    softmax, which is torch's: face scores and boxes for every position."""
    nn = torch.nn

    class PNet(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
            self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
            self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
            self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
            self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

        def forward(self, x: Any) -> tuple[Any, Any]:
            x = self.pool1(self.prelu1(self.conv1(x)))
            x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
            return self.conv4_1(x), self.conv4_2(x)

    model = PNet().eval()
    model.load_state_dict(weights())
    return model


@pytest.fixture
def threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_restored")
@pytest.mark.parametrize("summation", ["pairwise", "naive order=kh,kw,c", "exact"])
def test_one_hash_over_threads_alone_and_in_a_batch(summation: str) -> None:
    model, report = detconv.convert(network(), summation)
    assert sum(isinstance(module, detconv.nn.Conv2d) for module in model.modules()) == 5, report
    images = torch.from_numpy(made((4, 3, 61, 47), np.float32, 1))
    hashes = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        detconv.set_num_threads(threads)
        with torch.no_grad():
            together = model(images)
            alone = [torch.cat(parts) for parts in zip(*(model(image[None]) for image in images), strict=True)]
        for outputs in (together, alone):
            assert all(output.isfinite().all() for output in outputs)
            hashes.add(hashlib.sha256(b"".join(output.numpy().tobytes() for output in outputs)).hexdigest())
    assert len(hashes) == 1
