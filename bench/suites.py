"""The layers that are measured, in suites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

PASSES = ("forward", "input", "weight")
VALUES = ("normal", "integers", "bfloat16")  # standard normal; -8 to 8; standard normal with 8 significant bits


class Layer(NamedTuple):
    """One convolution. Kernels are square, and so are images."""

    batch: int
    channels: int
    size: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    values: str = "normal"  # one of VALUES

    @property
    def output_size(self) -> int:
        return (self.size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, self.size, self.size

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.outputs, self.channels // self.groups, self.kernel, self.kernel

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.outputs, self.output_size, self.output_size

    @property
    def macs(self) -> int:
        """Multiplications of the forward pass, padding included; those of a gradient are as many, give or take it."""
        return self.batch * self.outputs * self.output_size**2 * self.terms("forward")

    def terms(self, which: str) -> int:
        """K, the (largest) number of terms of an output of this pass; a weight gradient's over all samples."""
        if which == "weight":
            return self.batch * self.output_size**2
        return (self.channels if which == "forward" else self.outputs) // self.groups * self.kernel**2


def same(
    batch: int,
    channels: int,
    size: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> Layer:
    """A layer whose padding keeps the size, but for the stride."""
    padding = dilation * (kernel - 1) // 2
    return Layer(batch, channels, size, outputs, kernel, stride, padding, dilation, groups)


class Suite(NamedTuple):
    about: str
    layers: Mapping[str, Layer]
    passes: tuple[str, ...] = ("forward",)


FORUM = {"forum": Layer(1, 16, 28, 8, 5), "forum b16": Layer(16, 16, 28, 8, 5)}

# The layers that the targets of speed are about, in their order there.
NOTES = {
    "forum": FORUM["forum"],
    "7x7/2": same(1, 3, 224, 64, 7, 2),
    "3x3 64": same(1, 64, 56, 64),
    "1x1 64-256": same(1, 64, 56, 256, 1),
    "3x3 128": same(1, 128, 28, 128),
    "3x3 256": same(1, 256, 14, 256),
    "3x3 512": same(1, 512, 7, 512),
    "1x1 256-128": same(1, 256, 56, 128, 1),
    "vgg 3x3 64": same(1, 64, 224, 64),
    "depthwise": same(1, 144, 56, 144, groups=144),
    "forum b16": FORUM["forum b16"],
    "3x3 64 b16": same(16, 64, 56, 64),
    "3x3 512 b16": same(16, 512, 7, 512),
}


def named(*layers: Layer) -> dict[str, Layer]:
    """The distinct layers, each with its name made of what it is: ``3x3/2 64-128 56``."""

    def name(layer: Layer) -> str:
        kernel = f"{layer.kernel}x{layer.kernel}" + (f"/{layer.stride}" if layer.stride > 1 else "")
        spread = f" d{layer.dilation}" if layer.dilation > 1 else ""
        depthwise = " depthwise" if layer.groups == layer.channels > 1 else ""
        channels = str(layer.channels) if depthwise else f"{layer.channels}-{layer.outputs}"
        return f"{kernel}{spread}{depthwise} {channels} {layer.size}"

    return {name(layer): layer for layer in layers}


def resnet50() -> Iterator[Layer]:
    """K. He, X. Zhang, S. Ren, J. Sun, CVPR 2016, with the stride in the 3x3 layers, as torchvision has it."""
    yield same(1, 3, 224, 64, 7, 2)
    channels, size = 64, 56
    for width, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]:
        yield same(1, channels, size, width, 1)
        yield same(1, width, size, width, 3, stride)
        yield same(1, channels, size, 4 * width, 1, stride)  # beside the block
        channels, size = 4 * width, size // stride
        yield same(1, width, size, channels, 1)
        yield same(1, channels, size, width, 1)
        yield same(1, width, size, width)


def vgg16() -> Iterator[Layer]:
    """K. Simonyan, A. Zisserman, ICLR 2015, configuration D."""
    channels, size = 3, 224
    for width in (64, 128, 256, 512, 512):
        yield same(1, channels, size, width)
        yield same(1, width, size, width)
        channels, size = width, size // 2


def mobilenetv2() -> Iterator[Layer]:
    """M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen, CVPR 2018, table 2."""
    yield same(1, 3, 224, 32, 3, 2)
    channels, size = 32, 112
    blocks = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, outputs, repeats, first_stride in blocks:
        for stride in [first_stride] + [1] * (repeats - 1):
            hidden = expansion * channels
            if expansion > 1:
                yield same(1, channels, size, hidden, 1)
            yield same(1, hidden, size, hidden, 3, stride, groups=hidden)
            size //= stride
            yield same(1, hidden, size, outputs, 1)
            channels = outputs
    yield same(1, channels, size, 1280, 1)


def unet() -> Iterator[Layer]:
    """O. Ronneberger, P. Fischer, T. Brox, MICCAI 2015, padded, on 256 x 256 pixels of three channels."""
    widths = [64, 128, 256, 512, 1024]
    for depth, width in enumerate(widths):
        size = 256 >> depth
        yield same(1, widths[depth - 1] if depth else 3, size, width)
        yield same(1, width, size, width)
    for depth, width in reversed(list(enumerate(widths[:-1]))):
        yield same(1, 2 * width, 256 >> depth, width)
    yield same(1, 64, 256, 2, 1)


def dilated() -> Iterator[Layer]:
    """DeepLab (L.-C. Chen and others, 2017): dilated blocks, the pyramid after them; one with a channel to itself."""
    for dilation in (2, 4):
        yield same(1, 256, 28, 256, dilation=dilation)
        yield same(1, 512, 28, 512, dilation=dilation)
    for dilation in (6, 12, 18):
        yield same(1, 2048, 28, 256, dilation=dilation)
    yield same(1, 256, 28, 256, dilation=2, groups=256)


GRADIENTS = {"3x3 64 b16": NOTES["3x3 64 b16"], "3x3 128 b16": same(16, 128, 28, 128)}
TRAINING = GRADIENTS | {
    "7x7/2 b16": same(16, 3, 224, 64, 7, 2),
    "1x1 64-256 b16": same(16, 64, 56, 256, 1),
    "3x3/2 128 b16": same(16, 128, 56, 128, 3, 2),
    "3x3 256 b16": same(16, 256, 14, 256),
    "3x3 512 b16": NOTES["3x3 512 b16"],
    "depthwise b16": same(16, 144, 56, 144, groups=144),
}

# Values on which sums are often ties or exact: what a certificate of rounding might find hard.
HARD = {
    f"{name} {values}": NOTES[name]._replace(values=values)
    for name in ("forum", "3x3 128", "1x1 64-256")
    for values in VALUES
}

# One quantity grows, all else stays. The series is the name's first word.
SCALING = {
    **{f"channels {n}": same(1, n, 28, n) for n in (8, 16, 32, 64, 128, 256)},
    **{f"batch {n}": same(n, 64, 28, 64) for n in (1, 2, 4, 8, 16, 32)},
    **{f"image {n}": same(1, 3, n, 4) for n in (64, 128, 256, 512, 1024)},
}
HUGE = {f"image {n}": same(1, 3, n, 4) for n in (2048, 4096)}

SUITES = {
    "forum": Suite("the layer of the forum's question, alone and in a batch of 16", FORUM),
    "notes": Suite("13 forward layers of all kinds: what the targets are about", NOTES),
    "gradients": Suite("the gradients that the targets are about, batch 16", GRADIENTS, ("input", "weight")),
    "values": Suite("layers whose values are integers, or have few digits, beside normal ones", HARD),
    "resnet50": Suite("every distinct convolution of ResNet-50", named(*resnet50())),
    "vgg16": Suite("every distinct convolution of VGG-16", named(*vgg16())),
    "mobilenetv2": Suite("every distinct convolution of MobileNetV2", named(*mobilenetv2())),
    "unet": Suite("the convolutions of a U-Net", named(*unet())),
    "dilated": Suite("dilated convolutions, as in DeepLab", named(*dilated())),
    "training": Suite("all passes, batch 16", TRAINING, PASSES),
    "scaling": Suite("cost against channels, batch, threads and image size, with peak extra memory", SCALING),
    "huge": Suite("scaling's images, on to 4096 x 4096 pixels", HUGE),
    "tiny": Suite("what a call costs where there is nothing to compute", {}, ("call",)),
    "step": Suite("one training step of a ResNet-18 on 32 x 32 pixels, batch 32", {}, ("step",)),
}
