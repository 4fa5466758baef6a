"""Every system of the literature this project carries, in one visible table, and how each becomes a pipeline.

A weights file holds the networks of a system one after another, "0.", "1.", … before their keys; the
sidecar beside it says which family they are. Refuses weights that do not fit the networks, and weights
trained with another preprocessing than the family's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from node.domain.errors import PermanentError
from node.domain.findings import ModelIdentity
from workers import preprocess
from workers.models import baseline, multitask, rim
from workers.models.backbones import SMALLEST, BackboneNet, BackboneSpec, SliceNetwork, spec
from workers.models.baseline import SmallCNN
from workers.models.contract import Pipeline
from workers.models.engine import Engine
from workers.models.ensemble import EnsemblePipeline
from workers.models.gated import GatedPipeline
from workers.models.loading import filled, require_preprocessing
from workers.models.picture import Operating, PicturePipeline, ReadingPipeline
from workers.models.sequence import SequenceModel
from workers.models.slicewise import SequencePipeline, SlicePipeline, UNetPipeline
from workers.models.unet import SIZE as UNET_SIZE
from workers.models.unet import UNet
from workers.models.whole_ct import WHOLE_CT
from workers.preprocess import BRAIN, View

Facts = Mapping[str, Any]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One system. `specs` are its slice classifiers, empty for one that has none.

    `networks(size)` are fresh networks in the order of the weights file, `assemble` makes them a
    pipeline; `members` of them (None: any number, all alike and averaged) are due. `parameters` counts
    one of each.
    """

    name: str
    summary: str
    reference: str
    parameters: int
    size: int
    specs: tuple[BackboneSpec, ...]
    members: int | None
    networks: Callable[[int], list[nn.Module]]
    assemble: Callable[[ModelIdentity, Sequence[Any], Operating, torch.device, int], PicturePipeline]

    def preprocessing(self, size: int | None = None) -> dict[str, Any]:
        """What weights and preprocessing must agree on; a model may be trained at another size."""
        return {
            "size": size or self.size,
            "windows": [_windows(one) for one in self.specs] or [[[BRAIN.level, BRAIN.width]]],
            "neighbours": [one.neighbours for one in self.specs] or [False],
            "margin": preprocess.MARGIN,
            "step_mm": preprocess.STEP_MM,
        }

    def build(self, states: Sequence[State], facts: Facts, device: torch.device) -> PicturePipeline:
        """The pipeline of these weights, network by network, and the facts of their sidecar."""
        size = self._size(facts)
        if self.members is not None and len(states) != self.members:
            raise _invalid(facts, f"{self.members} networks are due, the weights hold {len(states)}")
        networks: list[nn.Module] = []
        while len(networks) < len(states):
            networks += self.networks(size)
        for network, state in zip(networks, states, strict=True):
            filled(network, state, facts["name"])
        identity = ModelIdentity(facts["name"], facts["version"], facts["sha256"])
        return self.assemble(identity, networks, Operating.from_facts(facts), device, size)

    def _size(self, facts: Facts) -> int:
        size = int(facts["preprocessing"]["size"])
        require_preprocessing(facts, self.preprocessing(max(size, SMALLEST)))
        return size


def _windows(one: BackboneSpec) -> list[list[float]]:
    return [[window.level, window.width] for window in one.windows]


def _slice_networks(specs: tuple[BackboneSpec, ...], size: int) -> list[nn.Module]:
    return [slice_network(replace(one, size=size)) for one in specs]


def slice_network(one: BackboneSpec) -> SliceNetwork:
    """A fresh slice classifier of that spec."""
    small = one.name in (baseline.SIGMOID.name, baseline.SOFTMAX.name)
    return SmallCNN(one) if small else BackboneNet(one)


def _slices(
    identity: ModelIdentity, networks: Sequence[Any], how: Operating, device: torch.device, size: int
) -> PicturePipeline:
    return SlicePipeline(identity, networks, how, device)


def _classifier(one: BackboneSpec, parameters: int, summary: str, reference: str) -> Family:
    specs = (one,)
    networks = partial(_slice_networks, specs)
    return Family(one.name, summary, reference, parameters, one.size, specs, None, networks, _slices)


PAIR = (spec("seresnext101-3window"), spec("seresnext101-3slice"))


def _pair_networks(size: int) -> list[nn.Module]:
    return [*_slice_networks(PAIR, size), SequenceModel(len(PAIR))]


def _pair(
    identity: ModelIdentity, networks: Sequence[Any], how: Operating, device: torch.device, size: int
) -> PicturePipeline:
    *cnns, sequence = networks
    return SequencePipeline(identity, cnns, sequence, how, device)


def _unets(size: int) -> list[nn.Module]:
    return [UNet()]


def _unet(
    identity: ModelIdentity, networks: Sequence[Any], how: Operating, device: torch.device, size: int
) -> PicturePipeline:
    return UNetPipeline(identity, networks, how, device, size)


FAMILIES: tuple[Family, ...] = (
    _classifier(
        baseline.SIGMOID, 19_206, "Two convolutions, six sigmoids: the floor.", "Lussier (sigmoid variant)"
    ),
    _classifier(
        baseline.SOFTMAX,
        19_206,
        "A warning, not for use: softmax and categorical loss on a multi-label task.",
        "Lussier (as published)",
    ),
    _classifier(
        spec("resnet18-3window"),
        11_179_590,
        "ResNet18 on brain, subdural and bone windows.",
        "NYU; He et al., CVPR 2016",
    ),
    _classifier(
        spec("densenet121-3window"),
        6_960_006,
        "DenseNet121 on brain, subdural and bone windows.",
        "NYU; Huang et al., CVPR 2017",
    ),
    _classifier(
        spec("densenet121-mlp"),
        7_481_734,
        "DenseNet121 with a hidden layer of 512 before its logits.",
        "Ochoa; Huang et al., CVPR 2017",
    ),
    _classifier(
        spec("seresnext101-3window"),
        46_918_710,
        "SE-ResNeXt101-32x4d on three windows of one slice.",
        "RSNA 2019 winner: Wang et al., NeuroImage: Clinical 2021",
    ),
    _classifier(
        spec("seresnext101-3slice"),
        46_918_710,
        "SE-ResNeXt101-32x4d on three neighbouring slices in the brain window.",
        "RSNA 2019 winner: Wang et al., NeuroImage: Clinical 2021",
    ),
    _classifier(
        spec("efficientnet-3window"),
        3_378_694,
        "EfficientNet-Lite0 on three windows of soft tissue, light enough for a CPU.",
        "Tan & Le, ICML 2019; Lite: Liu, TensorFlow blog 2020",
    ),
    _classifier(
        spec("efficientnet-3slice"),
        3_378_694,
        "The same on three neighbouring slices in the wide brain window.",
        "Tan & Le, ICML 2019; Lite: Liu, TensorFlow blog 2020",
    ),
    Family(
        "seresnext101-pair-sequence",
        "Both SE-ResNeXt101 and the sequence model over the whole CT, explained through all of it.",
        "RSNA 2019 winner: Wang et al., NeuroImage: Clinical 2021; Grad-CAM++ after Lamarr",
        2 * 46_918_710 + 3_398_418,
        PAIR[0].size,
        PAIR,
        3,
        _pair_networks,
        _pair,
    ),
    Family(
        "unet",
        "Small U-Net of which the mean mask probability decides; knows no subtypes.",
        "Bristol; Ronneberger et al., MICCAI 2015",
        1_962_337,
        UNET_SIZE,
        (),
        None,
        _unets,
        _unet,
    ),
)


def family(name: str) -> Family:
    """The family of that name. Raises PermanentError MODEL_NOT_FOUND with the names there are."""
    for known in FAMILIES:
        if known.name == name:
            return known
    names = ", ".join(known.name for known in FAMILIES)
    raise PermanentError(
        "MODEL_NOT_FOUND",
        f"unknown model family {name!r}: there are {names}, {', '.join(BUILDERS)}, {GATED}, {ENSEMBLE}",
    )


BUILDERS: Mapping[str, Callable[[Sequence[State], Facts, torch.device], Pipeline]] = {
    multitask.MULTITASK: multitask.build,
    rim.RIM: rim.build,
    **{name: kind.build for name, kind in WHOLE_CT.items()},
}
"""Families that build their pipeline themselves, from the networks' weights and the sidecar's facts."""

_PREPROCESSING: Mapping[str, Callable[[View], dict[str, Any]]] = {
    multitask.MULTITASK: multitask.preprocessing_facts,
    rim.RIM: rim.preprocessing_facts,
    **{name: kind.preprocessing for name, kind in WHOLE_CT.items()},
}


def preprocessing(name: str, view: View) -> dict[str, Any]:
    """What weights of that family and their preprocessing must agree on, as a sidecar tells it."""
    own = _PREPROCESSING.get(name)
    return own(view) if own else family(name).preprocessing(view.size)


GATED = "gated"
"""Two families in one file: a classifier, and a segmenter behind it."""
ENSEMBLE = "ensemble"
"""Several families in one file, whose evidence is averaged."""


def build(tensors: State, facts: Facts, engine: Engine) -> Pipeline:
    """The pipeline of a weights file whose sidecar says `family`, `members` and the rest.

    The `engine` runs its networks.

    A gated one has the facts of its parts under `classifier` and `segmenter`, an ensemble under `parts`,
    each with its `weight`; their networks follow one another in the file.
    """
    states = split(tensors, int(facts["members"]))
    identity = ModelIdentity(facts["name"], facts["version"], facts["sha256"])
    if facts["family"] == GATED:
        roles = [(role, facts[role]) for role in ("classifier", "segmenter")]
        parts = _parts(states, facts, roles, engine)
        return GatedPipeline(parts[0], parts[1], float(facts.get("slice_threshold", 0.0)), identity)
    if facts["family"] == ENSEMBLE:
        named = [(one["recipe"]["name"], one) for one in facts["parts"]]
        read = [_reading(part) for part in _parts(states, facts, named, engine)]
        weights = [float(one["weight"]) for one in facts["parts"]]
        return EnsemblePipeline(identity, read, weights, Operating.from_facts(facts))
    return _one(states, facts, engine)


def _one(states: Sequence[State], facts: Facts, engine: Engine) -> Pipeline:
    builder = BUILDERS.get(facts["family"])
    pipeline = (builder or family(facts["family"]).build)(states, facts, engine.device)
    if isinstance(pipeline, PicturePipeline):
        pipeline.run_on(engine)
    return pipeline


def _reading(part: Pipeline) -> ReadingPipeline:
    if not isinstance(part, ReadingPipeline):
        raise PermanentError("MODEL_INVALID", f"{part.identity.name}: its evidence cannot be averaged")
    return part


def _parts(
    states: Sequence[State],
    facts: Facts,
    parts: Sequence[tuple[str, Facts]],
    engine: Engine,
) -> list[Pipeline]:
    """The pipelines of the parts, by their facts; `states` hold the networks of all, in their order."""
    found: list[Pipeline] = []
    start = 0
    for role, own in parts:
        shared = {"name": f"{facts['name']}/{role}", "version": facts["version"], "sha256": facts["sha256"]}
        stop = start + int(own["members"])
        found.append(_one(states[start:stop], {**own, **shared}, engine))
        start = stop
    if start != len(states):
        raise _invalid(facts, f"its parts have {start} networks, the weights hold {len(states)}")
    return found


def split(tensors: State, members: int) -> list[dict[str, Tensor]]:
    """The state dict of each network of a weights file."""
    own: list[dict[str, Tensor]] = [{} for _ in range(members)]
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        if not index.isdigit() or int(index) >= members:
            raise PermanentError("MODEL_INVALID", f"tensor {key} belongs to none of {members} networks")
        own[int(index)][name] = value
    return own


def _invalid(facts: Facts, told: str) -> PermanentError:
    return PermanentError("MODEL_INVALID", f"{facts['name']}: {told}")
