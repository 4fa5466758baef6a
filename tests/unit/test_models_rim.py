"""The unrolled rim: where the inner table is found, that it goes round, and that maps find their way back."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, ModelIdentity
from workers.models import compiled, families, rim
from workers.models.contract import MAP_SIZE
from workers.models.engine import Engine
from workers.models.picture import Operating
from workers.models.rim import (
    CELLS,
    COLUMNS,
    DEPTHS,
    OUTSIDE,
    RimNet,
    RimPipeline,
    Unrolled,
    around,
    cells_of,
    places,
    rolled_up,
    unroll,
    unrolled_masks,
)
from workers.phantom import volume
from workers.preprocess import network_input
from workers.training.learners import RimLearner
from workers.training.losses import Truth, cell_loss
from workers.training.recipes import recipe

SIZE = 224
BRAIN, BONE, BLOOD = 0.28, 1.0, 0.45
"""In the window of the network: 36, 180 and 70 HU."""
LEFT, RIGHT = COLUMNS // 4, 3 * COLUMNS // 4


def _head(
    *, semi: tuple[float, float] = (85.0, 70.0), centre: tuple[float, float] = (111.5, 111.5),
    skull: float = 7.0, turn_deg: float = 0.0, lens_deg: float | None = None,
) -> Tensor:  # fmt: skip
    """Three equal slices of an elliptic head; a lens of blood lies under the bone in that direction.

    Directions are clockwise from the front on the picture, as the columns of a band are.
    """
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    dy, dx = y - centre[0], x - centre[1]
    turn = math.radians(turn_deg)
    along, across = dy * math.cos(turn) - dx * math.sin(turn), dy * math.sin(turn) + dx * math.cos(turn)
    inner = np.hypot(along / semi[0], across / semi[1])
    outer = np.hypot(along / (semi[0] + skull), across / (semi[1] + skull))
    picture = np.where(inner < 1, BRAIN, np.where(outer < 1, BONE, 0.0))
    if lens_deg is not None:
        direction = np.degrees(np.arctan2(dx, -dy)) % 360
        near = np.abs((direction - lens_deg + 180) % 360 - 180) < 15
        picture[near & (inner < 1) & (inner > 0.9)] = BLOOD
    return torch.from_numpy(picture.astype(np.float32)).expand(1, 3, -1, -1)


def _expected(semi: tuple[float, float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    turn = np.arange(COLUMNS) * 2 * np.pi / COLUMNS
    return 1 / np.hypot(np.cos(turn) / semi[0], np.sin(turn) / semi[1])


@pytest.mark.parametrize("semi", [(85.0, 70.0), (60.0, 60.0), (40.0, 55.0)])
def test_the_inner_table_is_found_to_the_pixel(semi: tuple[float, float]) -> None:
    unrolled = unroll(_head(semi=semi))
    assert np.abs(unrolled.radius[0].numpy() - _expected(semi)).max() < 1.5
    wide = unrolled.bands[0, 3]
    assert (wide[OUTSIDE - 3] > 0.9).all() and (wide[OUTSIDE + 3 : 25] - BRAIN).abs().max() < 0.02


def test_a_head_that_lies_elsewhere_gives_the_same_band() -> None:
    plain, moved = unroll(_head()), unroll(_head(centre=(104.5, 118.5)))
    assert (plain.bands - moved.bands)[:, :3, OUTSIDE + 2 :].abs().mean() < 0.01
    assert (moved.centre - plain.centre)[0].tolist() == pytest.approx([-7, 7], abs=0.5)


@pytest.mark.parametrize("direction", [0, 45, 90, 200, 355])
def test_a_lens_lies_where_it_is_and_is_level(direction: int) -> None:
    band = unroll(_head(lens_deg=direction)).bands[0, 3]
    bloody = (band[OUTSIDE + 1 : OUTSIDE + 5] > 0.4).float().mean(0)
    place = torch.arange(COLUMNS) * (360 / COLUMNS)
    near = ((place - direction + 180) % 360 - 180).abs() < 12
    far = ((place - direction + 180) % 360 - 180).abs() > 19
    assert bloody[near].min() > 0.7 and bloody[far].max() < 0.3


def test_a_sinus_full_of_air_is_no_inside() -> None:
    head = _head(skull=14.0).clone()
    y, x = np.mgrid[:SIZE, :SIZE]
    sinus = torch.from_numpy(np.hypot(y - 20, x - 111.5) < 5)
    head[:, :, sinus] = 0.0
    assert np.abs(unroll(head).radius[0].numpy() - _expected((85.0, 70.0))).max() < 2.0


@pytest.mark.parametrize("turn_deg", [0.0, 25.0, -25.0])
def test_the_other_side_lies_over_it(turn_deg: float) -> None:
    """Blood to the picture's right (the patient's left) is seen mirrored on the other side of the midline."""
    bands = unroll(_head(turn_deg=turn_deg, lens_deg=90 + turn_deg)).bands[0]
    shift = round(turn_deg / 360 * COLUMNS)
    rows = slice(OUTSIDE + 1, OUTSIDE + 5)
    own, other = bands[1, rows].mean(0).roll(-shift), bands[4, rows].mean(0).roll(-shift)
    assert own[LEFT] > own[RIGHT] + 0.2
    assert other[RIGHT] > other[LEFT] + 0.2


def test_a_mirrored_picture_gives_the_mirrored_band() -> None:
    head = _head(lens_deg=70)
    plain, other = unroll(head).bands, unroll(head.flip(3)).bands
    assert (plain - other.flip(3).roll(1, dims=3)).abs().mean() < 0.01


@pytest.mark.parametrize("value", [0.0, BRAIN, 1.0], ids=["air", "brain", "bone"])
def test_what_is_no_head_is_unrolled_all_the_same(value: float) -> None:
    unrolled = unroll(torch.full((2, 3, SIZE, SIZE), value))
    assert all(torch.isfinite(part).all() for part in unrolled)
    answer = RimNet().eval()(unrolled.bands)
    assert all(torch.isfinite(part).all() for part in answer)


def test_a_map_of_the_band_lies_on_the_picture_again() -> None:
    head = _head(lens_deg=130, centre=(108.0, 114.0))
    unrolled = unroll(head)
    drawn = rolled_up(unrolled.bands[:, 3:4], places(unrolled, SIZE))[0, 0]
    inside = drawn > 0
    assert inside.sum() > 10_000
    assert (drawn - head[0, 1])[inside].abs().mean() < 0.03
    assert drawn[112, 112] == 0 and drawn[2, 2] == 0


def test_a_coarse_cell_is_drawn_in_its_direction_and_depth() -> None:
    unrolled = unroll(_head(semi=(80.0, 80.0)))
    coarse = torch.zeros(1, 1, DEPTHS // 8, COLUMNS // CELLS)
    coarse[0, 0, 2, 16] = 1.0
    drawn = rolled_up(coarse, places(unrolled, SIZE))[0, 0]
    y, x = divmod(int(drawn.argmax()), SIZE)
    depth_px = (2 + 0.5) * 8 - 0.5 - OUTSIDE
    direction = (16 + 0.5) * CELLS - 0.5
    turn = direction / COLUMNS * 2 * math.pi
    expected = (111.5 - math.cos(turn) * (80 - depth_px), 111.5 + math.sin(turn) * (80 - depth_px))
    assert (y, x) == pytest.approx(expected, abs=2.5)


def test_cells_with_blood_are_those_of_the_mask() -> None:
    mask = ((_head(lens_deg=90) - _head()).abs() > 0.1)[:, :1].float()
    cells = cells_of(unrolled_masks(mask, unroll(_head(lens_deg=90))))[0, :, 0]
    middle = COLUMNS // CELLS // 4
    assert cells.shape == (COLUMNS // CELLS,)
    assert cells[middle - 2 : middle + 2].min() == 1 and cells.sum() <= 8


@pytest.mark.parametrize("direction", [0, 70, 180, 290])
def test_a_mask_comes_back_from_the_band(direction: int) -> None:
    head = _head(lens_deg=direction, turn_deg=10, centre=(106.0, 117.0))
    mask = ((head - _head(turn_deg=10, centre=(106.0, 117.0))).abs() > 0.1)[:, :1].float()
    unrolled = unroll(head)
    back = rolled_up(unrolled_masks(mask, unrolled), places(unrolled, SIZE)) > 0.5
    overlap = 2 * (back & (mask > 0)).sum() / (back.sum() + mask.sum())
    assert mask.sum() > 100 and overlap > 0.9


def test_a_mask_is_taught_where_it_is_known() -> None:
    """The step of one batch lets the network draw more where there is blood, and nothing else counts."""
    torch.manual_seed(1)
    pictures = _head(lens_deg=90)
    mask = torch.zeros(1, len(CLASSES), SIZE, SIZE)
    mask[:, 0] = ((pictures - _head()).abs() > 0.1)[:, 0].float()
    known = torch.zeros(1, len(CLASSES))
    truth = Truth(torch.zeros(1, len(CLASSES)), known, mask, known)
    learner = RimLearner(recipe("rim"))
    network = learner.network()
    learner.loss(network, pictures, truth).backward()
    assert network.mask_head.weight.grad is not None and not network.mask_head.weight.grad.any()
    known[0, 0] = 1
    learner.loss(network, pictures, truth).backward()
    assert network.mask_head.bias.grad is not None
    assert network.mask_head.bias.grad[0] != 0 and not network.mask_head.bias.grad[1:].any()


def test_the_network_knows_no_first_column() -> None:
    torch.manual_seed(0)
    network, bands = RimNet().eval(), torch.rand(2, rim.CHANNELS, DEPTHS, COLUMNS)
    plain, rolled = network(bands), network(bands.roll(3 * CELLS, dims=3))
    assert torch.allclose(plain.classes, rolled.classes, atol=1e-5)
    assert torch.allclose(plain.cells.roll(3, dims=1), rolled.cells, atol=1e-5)
    assert torch.allclose(plain.masks.roll(3 * CELLS, dims=3), rolled.masks, atol=1e-5)


def test_one_cell_is_enough_to_be_heard() -> None:
    cells = torch.full((1, COLUMNS // CELLS, len(CLASSES)), -4.0)
    quiet = around(cells)
    cells[0, 5, 0] = 3.0
    assert around(cells)[0, 0] == pytest.approx(3.0, abs=0.1)
    assert torch.equal(around(cells)[0, 1:], quiet[0, 1:])


def test_cells_whose_mask_is_unknown_teach_nothing() -> None:
    cells = torch.zeros(2, 4, len(CLASSES), requires_grad=True)
    truth = torch.ones(2, 4, len(CLASSES))
    known = torch.zeros(2, len(CLASSES))
    known[1, 0] = 1
    (gradient,) = torch.autograd.grad(cell_loss(cells, truth, known), cells)
    assert gradient[0].abs().sum() == 0 and gradient[1, :, 1:].abs().sum() == 0
    assert (gradient[1, :, 0] < 0).all()
    assert cell_loss(cells, truth, torch.zeros_like(known)) == 0


IDENTITY = ModelIdentity("made", "1", "f" * 64)


def _pipeline(seed: int = 3) -> RimPipeline:
    torch.manual_seed(seed)
    return RimPipeline(IDENTITY, [RimNet()], Operating.plain())


def test_pipeline_reads_and_explains_a_head() -> None:
    head = volume(5, (), slices=4, size=128, lowest_mm=-10)
    pipeline = _pipeline()
    said = pipeline.classify(head.hu, head.spacing_mm)
    assert said.slices.shape == (4, 6) and np.isfinite(said.slices).all()
    maps = pipeline.explain(head.hu, head.spacing_mm, said, "epidural")
    assert maps.shape == (4, MAP_SIZE, MAP_SIZE) and maps.max() <= 1
    other = _pipeline(4)
    again = other.explain(head.hu, head.spacing_mm, other.classify(head.hu, head.spacing_mm), "epidural")
    assert np.abs(maps - again).max() > 0.05, "other weights draw another map"
    assert not pipeline.segment(head.hu, head.spacing_mm, said).any(), "no blood before anything is learnt"


def test_what_is_drawn_lies_on_the_band() -> None:
    """Networks that see blood everywhere draw it along the skull alone, and say of which kind."""
    head = volume(5, (), slices=4, size=128, lowest_mm=-10)
    pipeline = _pipeline()
    with torch.no_grad():
        pipeline.networks[0].mask_head.bias += torch.tensor([9.0, 0, 0, 0, 0, 6])
    said = pipeline.classify(head.hu, head.spacing_mm)
    mask = pipeline.segment(head.hu, head.spacing_mm, said)
    (kind,) = pipeline.segment_subtypes(head.hu, head.spacing_mm, said).items()
    assert pipeline.draws and mask.any() and kind[0] == CLASSES[5] and np.array_equal(kind[1], mask)
    y, x = ndimage.center_of_mass(head.hu[1] > -200)
    assert not mask[1, int(y) - 5 : int(y) + 5, int(x) - 5 : int(x) + 5].any()


def test_both_voices_are_heard() -> None:
    """The cells' evidence is not the class head's, and each decides when it has all the weight."""
    head = volume(5, (), slices=4, size=128, lowest_mm=-10)
    pipeline = _pipeline()
    reading = pipeline.read(network_input(head.hu, head.spacing_mm, pipeline.view), head.spacing_mm)
    assert np.abs(reading.class_logits - reading.mask_logits).max() > 1e-3


@pytest.mark.skipif(not compiled.available(), reason="openvino is not installed")
def test_compiled_answers_alike() -> None:
    head = volume(5, ("epidural",), slices=4, size=128, lowest_mm=-10)
    plain, fast = _pipeline(), _pipeline()
    fast.run_on(Engine(compiler=compiled.compiled))
    one, other = (made.look(head.hu, head.spacing_mm) for made in (plain, fast))
    assert np.abs(one.class_logits - other.class_logits).max() < 1e-3
    assert np.abs(one.mask_logits - other.mask_logits).max() < 1e-3
    assert one.masks is not None and other.masks is not None
    assert one.masks.max() > 0 and np.abs(one.masks - other.masks).max() < 1e-3


def _facts() -> dict[str, Any]:
    one = recipe("rim")
    return {
        "name": "made", "version": "1", "sha256": "f" * 64, "family": rim.RIM, "members": 1,
        "preprocessing": families.preprocessing(rim.RIM, rim.view(one.size)), "recipe": asdict(one),
        "thresholds": dict.fromkeys(CLASSES, 0.5), "aggregation": Operating.plain().aggregation.to_json(),
    }  # fmt: skip


def test_weights_that_do_not_fit_are_refused() -> None:
    state = RimNet().state_dict()
    tensors = {f"0.{name}": value for name, value in state.items()}
    assert isinstance(families.build(tensors, _facts(), Engine()), RimPipeline)
    tensors.pop("0.class_head.bias")
    with pytest.raises(PermanentError, match="do not fit") as error:
        families.build(tensors, _facts(), Engine())
    assert error.value.code == "MODEL_INVALID"


def test_another_unrolling_is_refused() -> None:
    facts = _facts()
    facts["preprocessing"]["rim"][1] = 64
    tensors = {f"0.{name}": value for name, value in RimNet().state_dict().items()}
    with pytest.raises(PermanentError, match="another preprocessing"):
        families.build(tensors, facts, Engine())


def test_unrolled_has_the_shape_it_tells() -> None:
    unrolled: Unrolled = unroll(_head().expand(3, -1, -1, -1))
    assert unrolled.bands.shape == (3, rim.CHANNELS, DEPTHS, COLUMNS)
    assert unrolled.grid.shape == (3, DEPTHS, COLUMNS, 2) and unrolled.radius.shape == (3, COLUMNS)
