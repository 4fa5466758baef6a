"""What training has to know of each family: network, view, loss, pipeline. Runs no optimiser."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from node.domain.errors import PermanentError
from node.domain.findings import ModelIdentity
from workers.models import families
from workers.models.backbones import BackboneNet, BackboneSpec, SliceNetwork, windows_of
from workers.models.baseline import SmallCNN, categorical_loss
from workers.models.efficientnet import EfficientNetLite0
from workers.models.multitask import MULTITASK, MultiTaskPipeline
from workers.models.network import PICTURE_HEAD, MultiTaskNet, mask_evidence
from workers.models.picture import Operating, PicturePipeline
from workers.models.pretrained import KEY_MAPS, load_pretrained
from workers.models.rim import RIM, RimNet, RimPipeline, around, cells_of, laid_out, unroll, unrolled_masks
from workers.models.rim import view as rim_view
from workers.models.slicewise import SlicePipeline, UNetPipeline
from workers.models.unet import UNet, decision
from workers.preprocess import BRAIN, DEFAULT_VIEW, View
from workers.training.losses import Truth, cell_loss, class_loss, mask_loss, multitask_loss
from workers.training.recipes import Recipe

State = Mapping[str, Tensor]


class Learner(Protocol):
    """One network of a recipe. `neighbours` are the slices that make its channels, empty for windows.

    `origin` is the sha256 of the public weights it begins with, empty without.
    """

    origin: str

    @property
    def view(self) -> View: ...

    @property
    def neighbours(self) -> tuple[int, ...]: ...

    def network(self) -> nn.Module:
        """A fresh one."""
        ...

    def loss(self, network: nn.Module, pictures: Tensor, truth: Truth) -> Tensor: ...

    def logits(self, network: nn.Module, pictures: Tensor) -> Tensor:
        """Class logits (n, 6), for validation."""
        ...

    def pipeline(
        self, states: Sequence[State], operating: Operating, device: torch.device
    ) -> PicturePipeline:
        """A pipeline around trained weights."""
        ...


def identity(recipe: Recipe) -> ModelIdentity:
    """Of weights that are being judged and were not shipped yet."""
    return ModelIdentity(recipe.name, "0", "")


class MultiTaskLearner:
    """Slice classes, masks, their agreement, and the picture again."""

    neighbours = (-1, 0, 1)
    origin = ""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.view = View(DEFAULT_VIEW.windows, recipe.size)

    def network(self) -> MultiTaskNet:
        return MultiTaskNet(self.recipe.widths, self.recipe.dropout, self.recipe.reconstruct)

    def loss(self, network: nn.Module, pictures: Tensor, truth: Truth) -> Tensor:
        return multitask_loss(network(pictures), truth, pictures[:, 1:2], self.recipe.loss)

    def logits(self, network: nn.Module, pictures: Tensor) -> Tensor:
        output = network(pictures)
        logits: Tensor = (output.classes + mask_evidence(output.masks)) / 2
        return logits

    def pipeline(
        self, states: Sequence[State], operating: Operating, device: torch.device
    ) -> MultiTaskPipeline:
        networks = []
        for state in states:
            network = MultiTaskNet(self.recipe.widths, self.recipe.dropout)
            network.load_state_dict(without_picture_head(state))
            networks.append(network)
        return MultiTaskPipeline(identity(self.recipe), networks, operating, device, self.view)


class RimLearner:
    """The unrolled rim: classes of the whole and of each cell around the head, and masks."""

    neighbours = (-1, 0, 1)
    origin = ""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.view = rim_view(recipe.size)

    def network(self) -> RimNet:
        return RimNet(self.recipe.widths, self.recipe.dropout)

    def loss(self, network: nn.Module, pictures: Tensor, truth: Truth) -> Tensor:
        unrolled = unroll(pictures)
        output = network(laid_out(unrolled))
        total = class_loss(output.classes, truth.labels, truth.told)
        total = total + class_loss(around(output.cells), truth.labels, truth.told) / 2
        masks = unrolled_masks(truth.masks, unrolled)
        total = total + cell_loss(output.cells, cells_of(masks), truth.known)
        return total + mask_loss(output.masks, masks, truth.known, self.recipe.loss)

    def logits(self, network: nn.Module, pictures: Tensor) -> Tensor:
        output = network(unroll(pictures).bands)
        logits: Tensor = (output.classes + around(output.cells)) / 2
        return logits

    def pipeline(self, states: Sequence[State], operating: Operating, device: torch.device) -> RimPipeline:
        networks = []
        for state in states:
            network = RimNet(self.recipe.widths, self.recipe.dropout)
            network.load_state_dict(dict(state))
            networks.append(network)
        return RimPipeline(identity(self.recipe), networks, operating, device, self.view)


def without_picture_head(state: State) -> dict[str, Tensor]:
    """The weights that are used once training is over."""
    return {name: value for name, value in state.items() if not name.startswith(PICTURE_HEAD)}


class SliceLearner:
    """A slice classifier. `init` is a local file of public weights for its trunk."""

    def __init__(self, recipe: Recipe, spec: BackboneSpec, init: Path | None = None) -> None:
        self.recipe, self.init = recipe, init
        self.spec = replace(spec, size=recipe.size)
        self.view = View(windows_of([spec]), recipe.size)
        self.neighbours = (1, 0, -1) if spec.neighbours else ()
        self.origin = sha256_of(init) if init else ""

    def network(self) -> SliceNetwork:
        network = families.slice_network(self.spec)
        if self.init is not None and isinstance(network, BackboneNet):
            load_pretrained(network, self.init)
            if isinstance(network.trunk, EfficientNetLite0):
                network.trunk.keep(self.recipe.kept)
        return network

    def loss(self, network: nn.Module, pictures: Tensor, truth: Truth) -> Tensor:
        logits = network(pictures).classes
        if isinstance(network, SmallCNN) and network.exclusive:
            return categorical_loss(logits.float(), truth.labels)
        return class_loss(logits, truth.labels, truth.told)

    def logits(self, network: nn.Module, pictures: Tensor) -> Tensor:
        logits: Tensor = network(pictures).classes
        return logits

    def pipeline(self, states: Sequence[State], operating: Operating, device: torch.device) -> SlicePipeline:
        networks = [families.slice_network(self.spec) for _ in states]
        for network, state in zip(networks, states, strict=True):
            network.load_state_dict(dict(state))
        return SlicePipeline(identity(self.recipe), networks, operating, device)


class UNetLearner:
    """The small U-Net: its mask alone is taught, "any" follows from it."""

    neighbours = ()
    origin = ""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.view = View((BRAIN,), recipe.size)

    def network(self) -> UNet:
        return UNet()

    def loss(self, network: nn.Module, pictures: Tensor, truth: Truth) -> Tensor:
        masks = network(pictures).mask[:, None]
        return mask_loss(masks, truth.masks[:, :1], truth.known[:, :1], self.recipe.loss)

    def logits(self, network: nn.Module, pictures: Tensor) -> Tensor:
        return decision(network(pictures).mask)[:, None].expand(-1, 6)

    def pipeline(self, states: Sequence[State], operating: Operating, device: torch.device) -> UNetPipeline:
        networks = [UNet() for _ in states]
        for network, state in zip(networks, states, strict=True):
            network.load_state_dict(dict(state))
        return UNetPipeline(identity(self.recipe), networks, operating, device, self.recipe.size)


def takes_public_weights(recipe: Recipe) -> bool:
    """Whether a network of its own, not of its parts, can begin with them."""
    if recipe.parts or recipe.family in (MULTITASK, RIM, "unet"):
        return False
    return families.family(recipe.family).specs[0].network in KEY_MAPS


def sha256_of(path: Path) -> str:
    """Raises PermanentError MODEL_NOT_FOUND."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PermanentError("MODEL_NOT_FOUND", f"no weights at {path}: {error.strerror}") from error


def learner(recipe: Recipe, init: Path | None = None) -> Learner:
    """The learner of a recipe of one network. Raises KeyError for one that is put together from parts."""
    plain: dict[str, Callable[[Recipe], Learner]] = {
        MULTITASK: MultiTaskLearner,
        RIM: RimLearner,
        "unet": UNetLearner,
    }
    if recipe.parts:
        raise KeyError(f"recipe {recipe.name!r} is put together from {', '.join(recipe.parts)}")
    if recipe.family in plain:
        return plain[recipe.family](recipe)
    return SliceLearner(recipe, families.family(recipe.family).specs[0], init)
