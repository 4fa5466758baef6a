"""EfficientNet-Lite0, a trunk that is fast on a CPU: one picture in, its last maps out. Reads no file.

EfficientNet (Tan & Le, ICML 2019) without squeeze-and-excitation and with ReLU6 throughout (Liu,
TensorFlow blog, March 2020). No kept library that does without torchvision has it. It pads as
TensorFlow's "SAME" does, one pixel more after than before, since its public weights were trained so.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

MEAN, STD = 127 / 255, 128 / 255
"""What the input 0..1 is normalised by, as its public weights want it."""
WIDTH = 1280
"""Number of the last maps."""
FIRST_CENTRE = 31.0
"""Input pixel on which the first cell is centred: padded after, a stride of two looks at the second pixel."""
_STEM = 32
_EPS, _MOMENTUM = 1e-3, 0.01


class Stack(NamedTuple):
    """`repeat` inverted bottlenecks; the first of them has the stride."""

    repeat: int
    kernel: int
    stride: int
    expand: int
    channels: int


STACKS = (
    Stack(1, 3, 1, 1, 16),
    Stack(2, 3, 2, 6, 24),
    Stack(2, 5, 2, 6, 40),
    Stack(3, 3, 2, 6, 80),
    Stack(3, 5, 1, 6, 112),
    Stack(4, 5, 2, 6, 192),
    Stack(1, 3, 1, 6, 320),
)
"""Table 1 of the paper; Lite0 has the widths and depths of B0."""


class _Conv(nn.Conv2d):
    """A convolution without bias, padded for an even side so that side / stride cells come out."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        before = (kernel - stride) // 2
        self.margin = (before, kernel - stride - before) * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, self.margin) if any(self.margin) else x)


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    norm = nn.BatchNorm2d(outputs, eps=_EPS, momentum=_MOMENTUM)
    return nn.Sequential(_Conv(inputs, outputs, kernel, stride, groups), norm)


class Bottleneck(nn.Module):
    """Wide, depthwise, narrow, and added to its input of the same shape (Sandler et al., CVPR 2018)."""

    def __init__(self, inputs: int, stack: Stack, stride: int) -> None:
        super().__init__()
        wide = inputs * stack.expand
        self.expand = _conv(inputs, wide) if stack.expand > 1 else None
        self.depthwise = _conv(wide, wide, stack.kernel, stride, groups=wide)
        self.project = _conv(wide, stack.channels)
        self.added = stride == 1 and inputs == stack.channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else functional.relu6(self.expand(x))
        y = self.project(functional.relu6(self.depthwise(y)))
        return x + y if self.added else y


class EfficientNetLite0(nn.Module):
    """Input (n, channels, y, x) normalised, sides divisible by 32; last maps (n, WIDTH, y/32, x/32), 0..6."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = _conv(channels, _STEM, 3, 2)
        blocks: list[nn.Module] = []
        inputs = _STEM
        for stack in STACKS:
            for index in range(stack.repeat):
                blocks.append(Bottleneck(inputs, stack, stack.stride if index == 0 else 1))
                inputs = stack.channels
        self.blocks = nn.Sequential(*blocks)
        self.top = _conv(inputs, WIDTH)
        self.kept = 0

    def keep(self, blocks: int) -> None:
        """Leave the stem, this many blocks and every running statistic as they are when training goes on."""
        self.kept = blocks
        for part in (self.stem, *list(self.blocks)[:blocks]):
            part.requires_grad_(False)
        if blocks > len(self.blocks):
            self.top.requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        return super().train(mode and not self.kept)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.stem(x))
        return functional.relu6(self.top(self.blocks(x)))
