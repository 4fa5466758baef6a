"""The slice classifiers: their inputs, their sizes, and where on the picture their maps belong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from node.domain.errors import PermanentError
from workers.models.backbones import (
    SPECS,
    BackboneNet,
    BackboneSpec,
    SliceNetwork,
    parameter_count,
    spec,
    windows_of,
)
from workers.models.baseline import SIGMOID, SOFTMAX, SmallCNN, categorical_loss, competing_logits
from workers.models.cam import spread
from workers.models.efficientnet import Bottleneck
from workers.phantom import volume
from workers.preprocess import BONE, BRAIN, SUBDURAL, View, Window, network_input

Cell = tuple[int, int]

COUNTS = {
    # counts of torchvision, Cadene and timm for 1000 classes, with their classifier exchanged for ours
    "resnet18-3window": 11_689_512 - 513 * 1000 + 513 * 6,
    "densenet121-3window": 7_978_856 - 1025 * 1000 + 1025 * 6,
    "densenet121-mlp": 7_978_856 - 1025 * 1000 + 1025 * 512 + 513 * 6,
    "seresnext101-3window": 48_955_416 - 2049 * 1000 + 2049 * 6,
    "seresnext101-3slice": 48_955_416 - 2049 * 1000 + 2049 * 6,
    "efficientnet-3window": 4_652_008 - 1281 * 1000 + 1281 * 6,
    "efficientnet-3slice": 4_652_008 - 1281 * 1000 + 1281 * 6,
}


def test_a_window_maps_its_level_to_the_middle_and_cuts_off_at_both_ends() -> None:
    hu = np.asarray([-1000, 0, 40, 80, 3000], np.float32)
    assert BRAIN.apply(hu).tolist() == [0, 0, 0.5, 1, 1]
    assert SUBDURAL.apply(np.asarray([-20, 80, 180], np.float32)).tolist() == [0, 0.5, 1]
    assert BONE.apply(np.asarray([-800, 600, 2000], np.float32)).tolist() == [0, 0.5, 1]


def test_neighbours_are_the_slice_above_the_slice_and_the_slice_below() -> None:
    pictures = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
    seen = spec("seresnext101-3slice").inputs(pictures)[:, :, 0, 0]
    assert seen.tolist() == [[1, 0, 0], [2, 1, 0], [3, 2, 1], [3, 3, 2]]


def test_a_single_slice_is_its_own_neighbour() -> None:
    seen = spec("seresnext101-3slice").inputs(np.full((1, 1, 2, 2), 7, np.float32))
    assert seen.shape == (1, 3, 2, 2)
    assert (seen == 7).all()


def test_windows_of_a_pair_are_made_once() -> None:
    pair = (spec("seresnext101-3window"), spec("seresnext101-3slice"))
    assert windows_of(pair) == (Window(40, 80), Window(80, 200), Window(600, 2800))


def test_pictures_show_the_head_through_each_window() -> None:
    head = volume(3, (), slices=3, size=96, lowest_mm=0)
    source = network_input(head.hu, head.spacing_mm, View((BRAIN, BONE), 64))
    assert source.pictures.shape == (3, 2, 64, 64)
    assert source.pictures.dtype == np.float32
    brain, bone = source.pictures[1]
    assert source.pictures.min() >= 0 and source.pictures.max() <= 1
    assert 0.2 < brain[28:36, 28:36].mean() < 0.8  # tissue lies within the brain window
    assert brain.max() == 1 and bone.max() < 1  # bone saturates it, and not its own window


def test_what_is_no_volume_is_refused() -> None:
    with pytest.raises(PermanentError) as error:
        network_input(np.zeros((4, 4), np.float32), (5, 1, 1), View((BRAIN,), 64))
    assert error.value.code == "VOLUME_INVALID"


@pytest.mark.parametrize("known", SPECS, ids=lambda known: known.name)
def test_shapes_and_parameter_counts(known: BackboneSpec) -> None:
    torch.manual_seed(0)
    network = BackboneNet(known).eval()
    assert parameter_count(network) == COUNTS[known.name]
    with torch.no_grad():
        picture = torch.rand(2, known.channels, 64, 64)
        output = network(picture)
        again = network(picture)
    assert output.classes.shape == (2, 6)
    assert output.features.shape == (2, network.width, 2, 2)
    assert output.features.min() >= 0
    assert torch.equal(network.classify(output.features), output.classes)
    assert torch.equal(again.classes, output.classes)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="densenet121-mlp"):
        spec("vgg")


@pytest.mark.parametrize("name", ["resnet18-3window", "densenet121-3window", "seresnext101-3window"])
def test_a_map_is_drawn_where_its_features_look(name: str) -> None:
    """The middle of a cell's receptive field is the middle of what that cell alone draws."""
    torch.manual_seed(0)
    network = BackboneNet(spec(name)).eval()
    _make_even(network)
    _require_middles_agree(network, 256, [(3, 4), (4, 3), (4, 4)], 2.0)  # half a stride would be 16


def test_a_map_is_drawn_where_features_look_that_pad_after() -> None:
    """A wider receptive field wants a larger picture to lie within."""
    torch.manual_seed(0)
    network = BackboneNet(spec("efficientnet-3window")).eval()
    _make_even(network)
    _require_middles_agree(network, 512, [(7, 8), (8, 7)], 2.0)


def test_the_map_of_the_small_cnn_is_drawn_where_its_features_look() -> None:
    torch.manual_seed(0)
    network = SmallCNN().eval()
    _make_even(network)
    _require_middles_agree(network, 64, [(7, 8), (8, 7), (8, 8)], 0.7)  # half a stride would be 2


def _make_even(network: torch.nn.Module) -> None:
    """Even kernels make the receptive field symmetric; constant gates keep it local."""
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if parameter.dim() == 4:
                parameter.fill_(1 / parameter[0].numel())
            if "se_layer" in key:
                parameter.zero_()
        for module in network.modules():
            if isinstance(module, Bottleneck) and module.added:
                module.project[0].weight *= 0.1  # sums of sums would be cut off at 6


def _require_middles_agree(
    network: SliceNetwork, size: int, cells: list[tuple[int, int]], within: float
) -> None:
    # many pictures, all above the mean so that no ReLU closes: which pixel a pool takes is chance
    pictures = (
        0.6 + 0.4 * torch.rand(1 if size > 64 else 64, network.spec.channels, size, size)
    ).requires_grad_()
    features = network.features(pictures)
    for y, x in cells:
        (gradient,) = torch.autograd.grad(features[:, :, y, x].sum(), pictures, retain_graph=True)
        lone = torch.zeros(1, *features.shape[2:])
        lone[0, y, x] = 1
        looked = _middle(gradient.abs().sum((0, 1)))
        assert _middle(spread(lone, size, network.first_centre)[0]) == pytest.approx(looked, abs=within)


def _middle(weights: torch.Tensor) -> tuple[float, float]:
    rows, columns = (torch.arange(n, dtype=torch.float32) for n in weights.shape)
    total = weights.sum()
    return float((weights.sum(1) * rows).sum() / total), float((weights.sum(0) * columns).sum() / total)


def test_competing_logits_are_a_softmax() -> None:
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(torch.sigmoid(competing_logits(logits)), logits.softmax(-1), atol=1e-6)


def test_a_softmax_cannot_say_that_both_any_and_a_subtype_are_there() -> None:
    """The warning in numbers: fitted to one bleeding slice, the sigmoid says so and the softmax does not."""
    labels = torch.tensor([[1.0, 0, 0, 0, 0, 1]])
    found = {}
    for which in (SIGMOID, SOFTMAX):
        torch.manual_seed(0)
        network = SmallCNN(replace(which, size=64), widths=(2, 4))
        pooled = torch.ones(1, 4)
        optimiser = torch.optim.Adam(network.head.parameters(), lr=0.1)
        for _ in range(200):
            scores = network.score(pooled)
            loss = (
                categorical_loss(scores, labels)
                if network.exclusive
                else torch.nn.functional.binary_cross_entropy_with_logits(scores, labels)
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        found[which.name] = torch.sigmoid(network.score(pooled))[0].detach()
    assert found["small-cnn"][[0, 5]].min() > 0.95
    assert found["small-cnn-softmax"][[0, 5]].max() < 0.55


def test_the_categorical_loss_learns_nothing_from_slices_without_blood() -> None:
    network = SmallCNN(SOFTMAX, widths=(2, 4))
    categorical_loss(network.score(torch.rand(3, 4)), torch.zeros(3, 6)).backward()
    assert network.head.get_parameter("weight").grad.abs().max() == 0
