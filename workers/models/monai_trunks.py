"""MONAI's classification networks up to their last maps, with the public weights' layout. Reads no file.

A strided convolution with symmetric padding looks at the first pixel of its block, so a ResNet's first cell
looks at pixel 0. An average over two cells moves half a cell on: three transitions of the DenseNet, at
strides 4, 8 and 16, make (4 + 8 + 16) / 2. The unpadded 3x3 pool of the SE-ResNeXt looks one cell further
at stride 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from monai.networks.nets import DenseNet121, ResNet, SEResNext101
from torch import Tensor, nn


class _ResNetTrunk(ResNet):
    """MONAI's ResNet up to its last maps; stem and shortcuts are torchvision's, not MONAI's defaults."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class _SEResNextTrunk(SEResNext101):
    """MONAI's SE-ResNeXt101-32x4d up to its last maps."""

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


def _resnet18(channels: int) -> nn.Module:
    return _ResNetTrunk(
        "basic",
        [2, 2, 2, 2],
        [64, 128, 256, 512],
        spatial_dims=2,
        n_input_channels=channels,
        conv1_t_size=7,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=False,
    )


def _densenet121(channels: int) -> nn.Module:
    return DenseNet121(2, channels, 1).features


def _seresnext101(channels: int) -> nn.Module:
    trunk = _SEResNextTrunk(spatial_dims=2, in_channels=channels, num_classes=1)
    trunk.last_linear = nn.Identity()  # type: ignore[assignment]
    return trunk


TRUNKS: Mapping[str, tuple[Callable[[int], nn.Module], int, float]] = {
    "resnet18": (_resnet18, 512, 0.0),
    "densenet121": (_densenet121, 1024, 14.0),
    "seresnext101": (_seresnext101, 2048, 2.0),
}
"""By name: how to make one for so many channels, the number of its last maps, its first cell's centre."""
