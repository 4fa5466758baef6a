"""Masks, volumes and explanations of the evaluation report, on shapes that can be checked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.reports import case, patients
from workers.training import report
from workers.training.report import Case, explanation, masks

Mask = NDArray[np.bool_]


def box(top: int, left: int, height: int = 2, width: int = 2, size: int = 10) -> Mask:
    mask = np.zeros((size, size), bool)
    mask[top : top + height, left : left + width] = True
    return mask


NOTHING = np.zeros((10, 10), bool)


def masked(patient: str, drawn: list[Mask], truth: list[Mask], **fields: Any) -> Case:
    labels = np.zeros((len(truth), 6), np.uint8)
    labels[:, :2] = np.stack(truth).any(axis=(1, 2))[:, None]
    told = {
        "labels": labels,
        "slices": labels.astype(np.float32),
        "drawn": np.stack(drawn),
        "truth": np.stack(truth),
    }
    return case(patient, **(told | fields))


def told(cases: list[Case]) -> Any:
    return report.summarise(cases, {"any": 0.5}, draws=20)


def test_the_rule_of_empty_masks() -> None:
    drawn = [box(0, 0), NOTHING, box(5, 5), NOTHING]
    truth = [box(0, 1), box(0, 0), NOTHING, NOTHING]
    found = told([masked(f"p{index}", drawn, truth) for index in range(4)])["masks"]["all"]
    assert [found[name] for name in ("both", "only_true", "only_drawn", "both_empty")] == [4, 4, 4, 4]
    assert found["dice_mean"][0] == pytest.approx(
        0.5 / 3, rel=1e-5
    )  # one of 1/2, two of 0, the empty pair left out
    assert found["iou_mean"][0] == pytest.approx(2 / 6 / 3, rel=1e-5)
    assert found["dice_pooled"][0] == pytest.approx(2 * 2 / (4 * 4), rel=1e-5)
    assert found["iou_pooled"][0] == pytest.approx(2 / 14, rel=1e-5)
    assert found["hd95"]["grid pixels"]["slices"] == 4


def test_slices_drawn_by_hand_pseudo_masks_and_clean_slices_are_told_apart() -> None:
    drawn, truth = [box(0, 0), box(0, 0), box(0, 0), box(3, 3)], [box(0, 0), box(5, 5), NOTHING, box(3, 3)]
    by_hand, known = np.array([1, 0, 0, 0], bool), np.array([1, 1, 1, 0], bool)
    found = told([masked(f"p{i}", drawn, truth, by_hand=by_hand, mask_known=known) for i in range(3)])[
        "masks"
    ]
    assert found["by_hand"]["slices"] == 3 and found["by_hand"]["dice_mean"] == [1, 1, 1]
    assert found["pseudo"]["slices"] == 3 and found["pseudo"]["dice_mean"] == [0, 0, 0]
    assert found["without_blood"] == {"slices": 3, "patients": 3, "falsely_drawn": [1, 1, 1]}
    assert found["all"]["slices"] == 9  # the fourth slice of each is not known


def test_hd95_in_pixels_and_in_mm() -> None:
    point, far = box(2, 2, 1, 1), box(2, 6, 1, 1)
    stack = np.stack
    assert masks.hausdorff95(stack([point]), stack([far]), (1.0, 1.0)) == pytest.approx(4)
    assert masks.hausdorff95(stack([point]), stack([far]), (1.0, 0.5)) == pytest.approx(2)
    tall = box(6, 2, 1, 1)
    assert masks.hausdorff95(stack([point]), stack([tall]), (3.0, 0.5)) == pytest.approx(12)
    assert np.isnan(masks.hausdorff95(stack([point]), stack([NOTHING]), (1.0, 1.0))).all()
    assert masks.hausdorff95(stack([point]), stack([point]), (1.0, 1.0)) == 0


def test_hd95_forgives_one_pixel_in_many_but_not_a_shift() -> None:
    large = box(10, 10, 30, 30, size=64)
    stray = large.copy()
    stray[10, 60] = True
    shifted = np.roll(large, 3, axis=1)
    found = masks.hausdorff95(np.stack([stray, shifted]), np.stack([large, large]), (1.0, 1.0))
    assert found == pytest.approx([0, 3])


def test_units_are_never_mixed() -> None:
    pixels = [masked(f"p{i}", [box(0, 0)], [box(0, 1)]) for i in range(3)]
    sized = [masked(f"q{i}", [box(0, 0)], [box(0, 1)], cell_mm=(5.0, 1.0, 2.0)) for i in range(4)]
    found = told(pixels + sized)["masks"]
    assert {unit: one["slices"] for unit, one in found["all"]["hd95"].items()} == {"mm": 4, "grid pixels": 3}
    assert found["all"]["hd95"]["mm"]["mean"][0] == pytest.approx(2)
    assert found["all"]["hd95"]["grid pixels"]["median"][0] == pytest.approx(1)
    assert {unit: one["n"] for unit, one in found["volume"].items()} == {"mL": 4, "grid pixels": 3}


def test_bland_altman_and_correlation_of_volumes() -> None:
    sides = range(1, 13)
    cases = [
        masked(f"p{side}", [box(0, 0, side, 2, 40)], [box(0, 0, side, 4, 40)], cell_mm=(5.0, 2.0, 1.0))
        for side in sides
    ]
    cases += [masked("none", [np.zeros((40, 40), bool)], [np.zeros((40, 40), bool)], cell_mm=(5.0, 2.0, 1.0))]
    found = told(cases)["masks"]["volume"]["mL"]
    difference = np.array([side * -2 * 10 / 1000 for side in sides])  # a cell is 10 mm3
    assert (found["n"], found["both_empty"]) == (12, 1)
    assert found["bias"][0] == pytest.approx(difference.mean(), rel=1e-4)
    assert found["limit_low"][0] == pytest.approx(difference.mean() - 1.96 * difference.std(ddof=1), rel=1e-4)
    assert found["limit_high"][0] == pytest.approx(
        difference.mean() + 1.96 * difference.std(ddof=1), rel=1e-4
    )
    assert found["pearson"][0] == pytest.approx(1)
    assert found["bias"][1] < found["bias"][0] < found["bias"][2]


def test_a_handful_of_patients_gets_no_interval() -> None:
    two = told([masked(f"p{i}", [box(0, 0)], [box(0, i)]) for i in range(2)])["masks"]
    assert two["all"]["dice_pooled"][0] is not None and two["all"]["dice_pooled"][1:] == [None, None]
    nine = told([masked(f"p{i}", [box(0, 0, 1 + i)], [box(0, 0)]) for i in range(9)])["masks"]
    assert nine["all"]["dice_mean"][1] is not None
    assert nine["volume"]["grid pixels"]["bias"][1:] == [None, None]


def test_without_masks_nothing_is_said_of_them() -> None:
    found = report.summarise([case(str(i)) for i in range(3)], {"any": 0.5}, draws=5)
    assert found["masks"] is None and found["explanation"] is None


def figures(heat: NDArray[Any], mask: Mask) -> dict[str, float]:
    return dict(zip(explanation.FIGURES, explanation.judge(heat, mask), strict=True))


def test_the_peak_hits_in_the_mask_and_one_pixel_beside_it() -> None:
    mask = box(4, 4)
    for place, hit in (((4, 4), 1), ((3, 3), 1), ((6, 6), 1), ((2, 4), 0), ((7, 7), 0)):
        heat = np.zeros((10, 10))
        heat[place] = 1
        assert figures(heat, mask)["pointing"] == hit
    assert figures(heat, mask)["pointing_by_chance"] == pytest.approx(0.16)


def test_of_equal_peaks_the_share_that_hits_counts() -> None:
    heat = np.zeros((10, 10))
    heat[4, 4] = heat[0, 0] = heat[9, 9] = heat[0, 9] = 0.7
    assert figures(heat, box(4, 4))["pointing"] == 0.25


def test_overlap_and_energy_of_a_map() -> None:
    heat = np.zeros((10, 10))
    heat[4:6, 4:8] = 0.6
    heat[0, 0], heat[4, 4] = 0.29, 1.0
    found = figures(heat, box(4, 4))
    assert found["iou"] == pytest.approx(4 / 8)
    assert found["energy"] == pytest.approx((1 + 3 * 0.6) / (1 + 7 * 0.6 + 0.29))
    assert found["energy_by_chance"] == pytest.approx(0.04)


def test_a_perfect_map_and_an_empty_one() -> None:
    mask = box(4, 4)
    perfect = figures(mask.astype(float), mask)
    assert (perfect["pointing"], perfect["iou"], perfect["energy"]) == (1, 1, 1)
    empty = figures(np.zeros((10, 10)), mask)
    assert (empty["pointing"], empty["iou"]) == (0, 0) and np.isnan(empty["energy"])


def test_a_coarse_map_lies_on_the_same_picture_as_the_mask() -> None:
    heat = np.zeros((4, 4), np.float16)
    heat[1, 2] = 1
    spread = explanation.on_grid(heat, (16, 16))
    assert spread.shape == (16, 16)
    rows, columns = np.indices((16, 16)) + 0.5
    assert (spread * rows).sum() / spread.sum() == pytest.approx(6)  # middle of the second of four cells
    assert (spread * columns).sum() / spread.sum() == pytest.approx(10)


def test_maps_are_judged_where_a_bloody_mask_is_known_and_apart_where_detected() -> None:
    heat = np.zeros((4, 10, 10), np.float16)
    heat[:, 0, 0] = 1
    heat[2] = 0
    slices = np.zeros((4, 6), np.float32)
    slices[0, 0] = 0.9
    truth = [box(0, 0), box(5, 5), box(5, 5), NOTHING]
    cases = [masked(f"p{i}", truth, truth, explanation=heat, slices=slices) for i in range(4)]
    found = told(cases)["explanation"]
    assert found["all"]["slices"] == 12 and found["detected"]["slices"] == 4
    assert found["all"]["pointing"][0] == pytest.approx(1 / 3, rel=1e-5) and found["all"]["empty_maps"] == 4
    assert found["all"]["energy"][0] == 0.5  # empty maps have none
    assert found["detected"]["pointing"] == [1, 1, 1]


def test_random_maps_point_no_better_than_chance() -> None:
    found = told(patients(200, seed=3))["explanation"]["all"]
    assert found["slices"] == 200
    assert found["energy"][1] < found["energy_by_chance"][0] * 1.1
    assert found["energy"][2] > found["energy_by_chance"][0] * 0.9
