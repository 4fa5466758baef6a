"""Slice classifiers on known backbones, most of them MONAI's: windows in, six logits out. Reads no file.

Each variant is a frozen `BackboneSpec`. The logits follow CLASSES ("any" first) and each is a sigmoid of
its own, since a slice may hold several kinds of blood. Input is 0..1; the network normalises it itself.

ResNet18: He et al., CVPR 2016. DenseNet121: Huang et al., CVPR 2017. SE-ResNeXt101-32x4d: Hu et al.,
CVPR 2018. EfficientNet-Lite0: see `workers.models.efficientnet`. The two SE-ResNeXt inputs are those of the
winner of RSNA 2019 (Wang et al., NeuroImage: Clinical 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from node.domain.findings import CLASSES
from workers.models import efficientnet
from workers.preprocess import BONE, BRAIN, SUBDURAL, WIDE_BRAIN, Window, beside

MEAN, STD = 0.456, 0.224
"""What the input 0..1 is normalised by, the same for every channel."""
STRIDE = 32
"""Input pixels from one cell of the last feature maps to the next, in every backbone here."""
SMALLEST = 2 * STRIDE
"""Smallest side of a picture: a map needs two cells a side to be drawn."""


@dataclass(frozen=True)
class BackboneSpec:
    """One variant. `hidden` > 0 puts Linear-ReLU-Dropout before the last Linear.

    `neighbours`: the channels are slices s+1, s, s-1 in one window; otherwise one slice in every window.
    """

    name: str
    network: str
    windows: tuple[Window, ...] = (BRAIN, SUBDURAL, BONE)
    neighbours: bool = False
    hidden: int = 0
    dropout: float = 0.0
    size: int = 256

    @property
    def channels(self) -> int:
        return 3 if self.neighbours else len(self.windows)

    def inputs(self, pictures: Any) -> Any:
        """Network input (n, channels, y, x) from pictures (n, windows, y, x) of neighbouring slices.

        The first and the last slice stand in for the neighbour they lack. Arrays or tensors.
        """
        return beside(pictures[:, 0], (1, 0, -1)) if self.neighbours else pictures


SPECS: tuple[BackboneSpec, ...] = (
    BackboneSpec("resnet18-3window", "resnet18"),
    BackboneSpec("densenet121-3window", "densenet121"),
    BackboneSpec("densenet121-mlp", "densenet121", hidden=512, dropout=0.2),
    BackboneSpec("seresnext101-3window", "seresnext101"),
    BackboneSpec("seresnext101-3slice", "seresnext101", windows=(BRAIN,), neighbours=True),
    BackboneSpec(
        "efficientnet-3window", "efficientnet-lite0", windows=(BRAIN, SUBDURAL, WIDE_BRAIN), size=224
    ),
    BackboneSpec(
        "efficientnet-3slice", "efficientnet-lite0", windows=(WIDE_BRAIN,), neighbours=True, size=224
    ),
)


def spec(name: str) -> BackboneSpec:
    """The spec of that name. Raises KeyError with the names there are."""
    for known in SPECS:
        if known.name == name:
            return known
    raise KeyError(f"no slice classifier {name!r}: there are {', '.join(known.name for known in SPECS)}")


class SliceOutput(NamedTuple):
    """Class logits (n, 6) and last convolutional maps (n, k, y, x), rectified."""

    classes: Tensor
    features: Tensor


class SliceNetwork(nn.Module):
    """What every slice classifier offers: `features`, and `classify` from their mean alone.

    That the head sees a map by its mean only is what makes Grad-CAM++ a closed form
    (`workers.models.cam.grad_cam_pp_pooled`). `first_centre` is the input pixel on which the receptive
    field of the first cell is centred.
    """

    spec: BackboneSpec
    first_centre: float
    width: int
    head: nn.Module

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def score(self, pooled: Tensor) -> Tensor:
        """Class logits (…, 6) from mean features (…, width)."""
        return self.head(pooled)

    def classify(self, features: Tensor) -> Tensor:
        return self.score(features.mean((2, 3)))

    def forward(self, x: Tensor) -> SliceOutput:
        features = self.features(x)
        return SliceOutput(self.classify(features), features)


class BackboneNet(SliceNetwork):
    """A backbone without its own head, and ours. Sides of the input are multiples of STRIDE."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        self.trunk, self.width, self.first_centre, self.mean, self.std = _trunk(spec)
        self.head = _head(self.width, spec)

    def features(self, x: Tensor) -> Tensor:
        return functional.relu(self.trunk((x - self.mean) / self.std))


class Trunk(NamedTuple):
    """A backbone, the number of its last maps, the pixel on which its first cell looks, its normalisation."""

    network: nn.Module
    width: int
    first_centre: float
    mean: float = MEAN
    std: float = STD


def _trunk(spec: BackboneSpec) -> Trunk:
    """A fresh backbone. MONAI, which takes seconds to import, comes along only where it is needed."""
    if spec.network == "efficientnet-lite0":
        lite = efficientnet.EfficientNetLite0(spec.channels)
        return Trunk(lite, efficientnet.WIDTH, efficientnet.FIRST_CENTRE, efficientnet.MEAN, efficientnet.STD)
    from workers.models import monai_trunks

    if spec.network not in monai_trunks.TRUNKS:
        known = ", ".join((*monai_trunks.TRUNKS, "efficientnet-lite0"))
        raise KeyError(f"no backbone {spec.network!r}: there are {known}")
    fresh, width, first_centre = monai_trunks.TRUNKS[spec.network]
    return Trunk(fresh(spec.channels), width, first_centre)


def _head(width: int, spec: BackboneSpec) -> nn.Module:
    if not spec.hidden:
        return nn.Linear(width, len(CLASSES))
    return nn.Sequential(
        nn.Linear(width, spec.hidden),
        nn.ReLU(),
        nn.Dropout(spec.dropout),
        nn.Linear(spec.hidden, len(CLASSES)),
    )


def windows_of(specs: Sequence[BackboneSpec]) -> tuple[Window, ...]:
    """Every window that any of the specs looks through, once."""
    return tuple(dict.fromkeys(window for one in specs for window in one.windows))


def parameter_count(network: nn.Module) -> int:
    """Learnt numbers of a network; running statistics do not count."""
    return sum(parameter.numel() for parameter in network.parameters())
