"""Grad-CAM++ against its closed form, against MONAI, and against weights made random."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

monai_cam = pytest.importorskip("monai.visualize.class_activation_maps")

from workers.models.cam import grad_cam_pp, grad_cam_pp_pooled, spread  # noqa: E402
from workers.models.network import FIRST_CENTRE, MultiTaskNet  # noqa: E402


def _pooled_gradient(features: torch.Tensor, head: nn.Module, place: int) -> torch.Tensor:
    mean = features.mean((2, 3)).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(head(mean)[:, place].sum(), mean)
    return gradient


def test_the_closed_form_is_the_literal_formula_behind_mean_pooling() -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6))
    features = torch.rand(5, 12, 7, 9)
    leaf = features.clone().requires_grad_(True)
    (gradients,) = torch.autograd.grad(head(leaf.mean((2, 3)))[:, 2].sum(), leaf)
    literal = grad_cam_pp(features, gradients)
    closed = grad_cam_pp_pooled(features, _pooled_gradient(features, head, 2))
    assert literal.max() > 0
    assert torch.allclose(literal, closed, rtol=1e-4, atol=1e-6)


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


def test_the_map_is_monais_up_to_scale() -> None:
    torch.manual_seed(1)
    network = _Small().eval()
    with torch.no_grad():
        network.head.weight *= 100  # so that the 1e-7 MONAI adds to a denominator does not count
    picture = torch.rand(1, 3, 24, 24)
    theirs = monai_cam.GradCAMpp(
        network, "features", upsampler=lambda *_: lambda x: x, postprocessing=lambda x: x
    )
    expected = theirs.compute_map(picture, class_idx=4)[0, 0]
    features = network.features(picture).detach()
    ours = grad_cam_pp_pooled(features, _pooled_gradient(features, network.head, 4))[0]
    assert ours.max() > 0
    assert torch.allclose(ours / ours.max(), expected / expected.max(), atol=1e-4)


def test_the_map_of_random_weights_is_another_map() -> None:
    """Sanity check of Adebayo et al. (2018): a map that outlives the weights explains nothing."""

    def cam(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        network = MultiTaskNet((8, 8, 16, 16, 16)).eval()
        features = network(picture).features.detach().requires_grad_(True)
        (gradients,) = torch.autograd.grad(network.classify(features)[:, 0].sum(), features)
        return grad_cam_pp(features.detach(), gradients)[0].numpy().ravel()

    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    assert np.array_equal(cam(1), cam(1))
    assert abs(np.corrcoef(cam(1), cam(2))[0, 1]) < 0.9


@pytest.mark.parametrize("cell", [(3, 4), (4, 3), (4, 4)])
def test_a_map_is_drawn_where_its_features_look(cell: tuple[int, int]) -> None:
    """The middle of a cell's receptive field is the middle of what that cell alone draws."""
    network = MultiTaskNet().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 4:
                parameter.fill_(1 / parameter[0].numel())  # even kernels: the field is symmetric
    picture = torch.rand(1, 3, 128, 128, requires_grad=True)
    features = network(picture).features
    y, x = cell
    (gradient,) = torch.autograd.grad(features[0, :, y, x].sum(), picture)
    lone = torch.zeros(1, *features.shape[2:])
    lone[0, y, x] = 1
    looked, drawn = _middle(gradient[0].abs().sum(0)), _middle(spread(lone, 128, FIRST_CENTRE)[0])
    assert drawn == pytest.approx(looked, abs=2.0)  # half a stride would be 8


def _middle(weights: torch.Tensor) -> tuple[float, float]:
    rows, columns = (torch.arange(n, dtype=torch.float32) for n in weights.shape)
    total = weights.sum()
    return float((weights.sum(1) * rows).sum() / total), float((weights.sum(0) * columns).sum() / total)
