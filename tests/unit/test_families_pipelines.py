"""Every slicewise pipeline on a small phantom head: what it answers, and what it refuses to answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, ModelIdentity
from workers.models.aggregate import Aggregation
from workers.models.backbones import BackboneNet, SliceNetwork, spec
from workers.models.baseline import SIGMOID, SOFTMAX, SmallCNN
from workers.models.contract import MAP_SIZE, Classification
from workers.models.picture import DIM, Operating, PicturePipeline
from workers.models.sequence import SequenceModel
from workers.models.slicewise import SequencePipeline, SlicePipeline, UNetPipeline
from workers.models.unet import UNet, decision
from workers.phantom import PhantomVolume, volume
from workers.preprocess import BRAIN, View, network_input

ANY = CLASSES.index("any")


@pytest.fixture(scope="module")
def head() -> PhantomVolume:
    return volume(7, ("epidural",), slices=3, size=96, lowest_mm=-10)


def _operating(mask_threshold: float = 0.5) -> Operating:
    return Operating(dict.fromkeys(CLASSES, 0.5), mask_threshold, Aggregation.plain(1, 0))


def _identity(name: str) -> ModelIdentity:
    return ModelIdentity(name, "0", "")


def _small(name: str) -> SliceNetwork:
    return BackboneNet(replace(spec(name), size=64))


def _slices(name: str) -> Callable[[], PicturePipeline]:
    return lambda: SlicePipeline(_identity(name), [_small(name)], _operating())


def _floor(members: int = 2) -> SlicePipeline:
    networks = [SmallCNN(replace(SIGMOID, size=64)) for _ in range(members)]
    return SlicePipeline(_identity("floor"), networks, _operating())


def _softmax() -> SlicePipeline:
    return SlicePipeline(_identity("softmax"), [SmallCNN(replace(SOFTMAX, size=64))], _operating())


def _pair() -> SequencePipeline:
    cnns = [_small("seresnext101-3window"), _small("seresnext101-3slice")]
    return SequencePipeline(_identity("pair"), cnns, SequenceModel(), _operating())


def _unet() -> UNetPipeline:
    return UNetPipeline(_identity("unet"), [UNet((4, 8, 8)), UNet((4, 8, 8))], _operating(), size=64)


PIPELINES: dict[str, Callable[[], PicturePipeline]] = {
    "floor": _floor,
    "softmax": _softmax,
    "resnet18": _slices("resnet18-3window"),
    "densenet121-mlp": _slices("densenet121-mlp"),
    "pair": _pair,
    "unet": _unet,
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_keeps_the_contract(name: str, head: PhantomVolume) -> None:
    torch.manual_seed(0)
    pipeline = PIPELINES[name]()
    answer = pipeline.classify(head.hu, head.spacing_mm)
    assert answer.slices.shape == (3, 6) and answer.series.shape == (6,)
    assert answer.slices.dtype == answer.series.dtype == np.float32
    known = [name in pipeline.knows for name in CLASSES]
    assert (answer.slices[:, known] > 0).all() and (answer.slices[:, np.logical_not(known)] == 0).all()
    heat = pipeline.explain(head.hu, head.spacing_mm, answer, "any")
    assert heat.shape == (3, MAP_SIZE, MAP_SIZE) and heat.dtype == np.float32
    assert 0 < heat.max() <= answer.slices[:, ANY].max() + 1e-6
    mask = pipeline.segment(head.hu, head.spacing_mm, answer)
    assert mask.shape == head.hu.shape and mask.dtype == bool
    assert pipeline.draws or not mask.any()
    assert pipeline.segment_subtypes(head.hu, head.spacing_mm, answer) == {}


@pytest.mark.parametrize("name", PIPELINES)
def test_slices_that_are_hardly_suspected_have_no_map_and_change_no_other(
    name: str, head: PhantomVolume
) -> None:
    torch.manual_seed(0)
    pipeline = PIPELINES[name]()
    said = pipeline.classify(head.hu, head.spacing_mm)

    def shown(*strength: float) -> NDArray[np.float32]:
        slices = np.repeat(np.asarray(strength, np.float32)[:, None], len(CLASSES), axis=1)
        answer = Classification(slices, said.series, said.state)
        return pipeline.explain(head.hu, head.spacing_mm, answer, "any")

    every, some = shown(0.5, 0.5, 0.5), shown(0.05, 0.5, DIM)
    assert not some[0].any()
    assert np.allclose(some[1], every[1], atol=1e-4)
    assert np.allclose(some[2] * 0.5 / DIM, every[2], atol=1e-3)
    faint = shown(0.02, 0.03, 0.01)
    assert faint[1].any() and not faint[[0, 2]].any(), "the likeliest slice always has one"


@pytest.mark.parametrize("name", ["floor", "softmax", "unet"])
def test_other_weights_explain_otherwise(name: str, head: PhantomVolume) -> None:
    """The sanity check of Adebayo et al. (NeurIPS 2018), where a map has more than a few cells."""
    maps = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        pipeline = PIPELINES[name]()
        answer = pipeline.classify(head.hu, head.spacing_mm)
        sure = replace(answer, slices=np.full_like(answer.slices, 0.5))
        maps.append(pipeline.explain(head.hu, head.spacing_mm, sure, "any")[1].ravel())
    assert np.corrcoef(*maps)[0, 1] < 0.98


def test_the_same_head_gives_the_same_answer_also_without_its_state(head: PhantomVolume) -> None:
    torch.manual_seed(0)
    pipeline = _floor()
    first, second = (pipeline.classify(head.hu, head.spacing_mm) for _ in range(2))
    assert np.array_equal(first.slices, second.slices) and np.array_equal(first.series, second.series)
    bare = Classification(first.slices, first.series)
    kept, anew = (pipeline.explain(head.hu, head.spacing_mm, one, "any") for one in (first, bare))
    assert np.array_equal(kept, anew)


def test_another_models_state_is_not_taken_for_ones_own(head: PhantomVolume) -> None:
    torch.manual_seed(0)
    floor, softmax = _floor(), _softmax()
    foreign = floor.classify(head.hu, head.spacing_mm)
    own = softmax.classify(head.hu, head.spacing_mm)
    mixed = Classification(own.slices, own.series, foreign.state)
    expected = softmax.explain(head.hu, head.spacing_mm, own, "any")
    assert np.array_equal(softmax.explain(head.hu, head.spacing_mm, mixed, "any"), expected)


def test_the_softmax_shares_one_probability_among_the_classes(head: PhantomVolume) -> None:
    torch.manual_seed(0)
    answer = _softmax().classify(head.hu, head.spacing_mm)
    aggregation = _operating().aggregation
    assert aggregation.smoothing  # so a slice's own sum is 1 only about
    assert answer.slices.sum(axis=1) == pytest.approx(np.ones(3), abs=0.01)


def test_thin_slices_are_averaged_and_answered_one_by_one() -> None:
    thin = volume(7, (), slices=10, size=96, lowest_mm=0, step_mm=1.25)
    torch.manual_seed(0)
    pipeline = _pair_of_floors()
    answer = pipeline.classify(thin.hu, thin.spacing_mm)
    assert len(answer.state.source.pictures) == 3  # four slices of 1.25 mm each make one of 5 mm
    assert answer.slices.shape == (10, 6)
    assert pipeline.explain(thin.hu, thin.spacing_mm, answer, "any").shape == (10, MAP_SIZE, MAP_SIZE)


def _pair_of_floors() -> SequencePipeline:
    cnns = [SmallCNN(replace(SIGMOID, size=64), widths=(8, 16)) for _ in range(2)]
    return SequencePipeline(_identity("pair"), cnns, SequenceModel(2, 16, 8), _operating())


def test_a_single_slice_is_read_too(head: PhantomVolume) -> None:
    torch.manual_seed(0)
    for pipeline in (_pair_of_floors(), _floor(), _unet()):
        answer = pipeline.classify(head.hu[1:2], head.spacing_mm)
        assert answer.slices.shape == (1, 6)
        assert pipeline.explain(head.hu[1:2], head.spacing_mm, answer, "any").max() > 0


@pytest.mark.parametrize("name", ["floor", "softmax", "resnet18", "unet"])
def test_weights_that_are_not_numbers_are_no_negative_result(name: str, head: PhantomVolume) -> None:
    pipeline = PIPELINES[name]()
    networks: list[nn.Module] = pipeline.networks  # type: ignore[attr-defined]
    with torch.no_grad():
        next(networks[0].parameters()).fill_(float("nan"))
    _require_refusal(pipeline, head)


def test_a_sequence_model_that_gives_no_numbers_is_no_negative_result(head: PhantomVolume) -> None:
    pipeline = _pair_of_floors()
    with torch.no_grad():
        pipeline.reader.model.second_head.bias.fill_(float("inf"))
    _require_refusal(pipeline, head)


def _require_refusal(pipeline: PicturePipeline, head: PhantomVolume) -> None:
    with pytest.raises(PermanentError) as error:
        pipeline.classify(head.hu, head.spacing_mm)
    assert error.value.code == "MODEL_OUTPUT_INVALID"


def test_an_air_scan_has_no_head(head: PhantomVolume) -> None:
    with pytest.raises(PermanentError) as error:
        _floor().classify(np.full_like(head.hu, -1000), head.spacing_mm)
    assert error.value.code == "HEAD_NOT_FOUND"


def test_members_are_averaged(head: PhantomVolume) -> None:
    torch.manual_seed(0)
    both = _floor(2)
    source = network_input(head.hu, head.spacing_mm, View((BRAIN,), 64))
    alone = [
        SlicePipeline(_identity("one"), [network], _operating()).read(source, head.spacing_mm).class_logits
        for network in both.networks
    ]
    assert np.allclose(both.read(source, head.spacing_mm).class_logits, np.mean(alone, axis=0), atol=1e-6)


def test_cnns_of_two_sizes_are_refused() -> None:
    networks = [SmallCNN(replace(SIGMOID, size=size)) for size in (64, 96)]
    with pytest.raises(PermanentError, match="networks of one size"):
        SlicePipeline(_identity("x"), networks, _operating())


def test_a_sequence_model_for_another_number_of_cnns_is_refused() -> None:
    with pytest.raises(PermanentError, match="reads 2 CNNs, there are 1"):
        SequencePipeline(
            _identity("x"), [SmallCNN(replace(SIGMOID, size=64))], SequenceModel(2, 64, 8), _operating()
        )


def test_the_unet_has_the_published_number_of_parameters_and_keeps_the_size() -> None:
    network = UNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_962_337
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    output = network(torch.rand(2, 1, 64, 64))
    assert output.mask.shape == (2, 64, 64) and output.features.shape == (2, 16, 64, 64)


def test_the_decision_is_the_mean_mask_probability() -> None:
    mask = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(torch.sigmoid(decision(mask)), torch.sigmoid(mask).mean((1, 2)), atol=1e-6)
    assert decision(torch.full((1, 4, 4), -1e4)).isfinite().all()


class _Bright(UNet):
    """Draws what is bright: a mask whose place is known."""

    def forward(self, x: torch.Tensor):
        return super().forward(x)._replace(mask=60 * (x[:, 0] - 0.97))


def test_the_unets_mask_lies_where_the_network_drew_it(head: PhantomVolume) -> None:
    pipeline = UNetPipeline(_identity("bright"), [_Bright((4, 8))], _operating(), size=96)
    answer = pipeline.classify(head.hu, head.spacing_mm)
    mask = pipeline.segment(head.hu, head.spacing_mm, answer)
    bright = head.hu >= 78
    assert mask.any()
    assert (mask & bright).sum() / mask.sum() > 0.8
    assert (mask & bright).sum() / bright.sum() > 0.6


def test_the_map_points_at_what_the_features_hold(head: PhantomVolume) -> None:
    """A network that looks at bone alone is shown to look at the skull, drawn on the source's own field."""
    network = SmallCNN(replace(SIGMOID, size=96), widths=(1, 1))
    with torch.no_grad():
        for convolution in (network.body[0], network.body[3]):
            convolution.weight.zero_()
            convolution.weight[0, 0, 1, 1] = 1
            convolution.bias.fill_(-1.2 if convolution is network.body[0] else 0)
        network.head.weight.fill_(1)
    pipeline = SlicePipeline(_identity("bone"), [network], _operating())
    answer = pipeline.classify(head.hu, head.spacing_mm)
    heat = pipeline.explain(head.hu, head.spacing_mm, answer, "any")[1]
    y, x = ((np.indices(heat.shape) + 0.5) * head.hu.shape[1] / MAP_SIZE).astype(int)
    bone = head.hu[1][y, x] > 300
    assert heat[bone].mean() > 4 * heat[~bone].mean()
