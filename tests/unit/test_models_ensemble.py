"""An ensemble says and draws what its parts do on average, each where it sees, and hides no failing part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, ModelIdentity
from workers import preprocess
from workers.models import scan
from workers.models.aggregate import Aggregation
from workers.models.backbones import spec
from workers.models.contract import Classification
from workers.models.engine import Engine
from workers.models.ensemble import EnsemblePipeline, JointReading, Overlay, overlaid
from workers.models.families import ENSEMBLE, build, family, slice_network
from workers.models.multitask import MULTITASK, MultiTaskPipeline, preprocessing_facts
from workers.models.network import MultiTaskNet
from workers.models.picture import Operating, ReadingPipeline
from workers.models.rim import RimNet, RimPipeline
from workers.models.slicewise import SlicePipeline
from workers.models.unet import UNet
from workers.phantom import PhantomVolume, volume
from workers.preprocess import find_head
from workers.training.datasets import phantom_series
from workers.training.predict import joined, load, predict, predict_through, save

CPU = torch.device("cpu")
WIDTHS = (8, 8, 16, 16)
IDENTITY = ModelIdentity("both", "1", "00")


@pytest.fixture(scope="module")
def head() -> PhantomVolume:
    return volume(3, ("epidural",), slices=4, size=96, lowest_mm=0)


def _multitask() -> MultiTaskPipeline:
    torch.manual_seed(1)
    return MultiTaskPipeline(ModelIdentity("m", "1", "0"), [MultiTaskNet(WIDTHS)], Operating.plain())


def _slices() -> SlicePipeline:
    torch.manual_seed(2)
    network = slice_network(replace(spec("efficientnet-3window"), size=160))
    return SlicePipeline(ModelIdentity("e", "1", "0"), [network], Operating.plain())


def _rim() -> RimPipeline:
    torch.manual_seed(3)
    return RimPipeline(ModelIdentity("r", "1", "0"), [RimNet()], Operating.plain())


def _ensemble(*parts: ReadingPipeline, weights: tuple[float, ...] = (3.0, 1.0)) -> EnsemblePipeline:
    return EnsemblePipeline(
        IDENTITY, parts or (_slices(), _multitask()), weights, Operating.plain(0.75, 0.25)
    )


@pytest.fixture(scope="module")
def ensemble() -> EnsemblePipeline:
    return _ensemble()


def test_evidence_is_the_weighted_mean_of_the_parts(ensemble: EnsemblePipeline, head: PhantomVolume) -> None:
    joint = ensemble.classify(head.hu, head.spacing_mm).state
    one, other = (part.look(head.hu, head.spacing_mm) for part in ensemble.parts)
    assert isinstance(joint, JointReading)
    assert np.allclose(joint.class_logits, 0.75 * one.class_logits + 0.25 * other.class_logits, atol=1e-5)
    assert np.allclose(joint.mask_logits, 0.75 * one.mask_logits + 0.25 * other.mask_logits, atol=1e-5)
    assert not np.allclose(one.class_logits, other.class_logits, atol=1e-3)


def test_the_head_is_looked_for_once(
    ensemble: EnsemblePipeline, head: PhantomVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "find_head", lambda *_: pytest.fail("looked for again"))
    found = []
    monkeypatch.setattr(scan, "find_head", lambda *of: found.append(1) or find_head(*of))
    assert len(ensemble.look(head.hu, head.spacing_mm).class_logits) == 4
    assert len(found) == 1


def test_the_mask_is_that_of_the_only_part_that_draws(
    ensemble: EnsemblePipeline, head: PhantomVolume
) -> None:
    drawing = ensemble.parts[1]
    answer, own = (one.classify(head.hu, head.spacing_mm) for one in (ensemble, drawing))
    assert ensemble.draws
    mask = ensemble.segment(head.hu, head.spacing_mm, answer)
    assert np.array_equal(mask, drawing.segment(head.hu, head.spacing_mm, own))
    parts = ensemble.segment_subtypes(head.hu, head.spacing_mm, answer)
    wanted = drawing.segment_subtypes(head.hu, head.spacing_mm, own)
    assert parts.keys() == wanted.keys()
    assert all(np.array_equal(parts[name], wanted[name]) for name in wanted)
    bare = Classification(answer.slices, answer.series)
    assert np.array_equal(mask, ensemble.segment(head.hu, head.spacing_mm, bare))


def _drawing(rim_logit: float, whole_logit: float) -> tuple[EnsemblePipeline, RimPipeline]:
    """One part draws epidural blood all along the skull, the other intraparenchymal everywhere; this sure."""
    rim, whole = _rim(), _multitask()
    with torch.no_grad():
        for head, logit, kind, cells in (
            (rim.networks[0].mask_head, rim_logit, 1, 1),
            (whole.members[0].mask_head, whole_logit, 2, 4),
        ):
            logits = torch.full((6,), -9.0)
            logits[[0, kind]] = logit
            head.weight.zero_()
            head.bias[:] = logits.repeat_interleave(cells)
    return _ensemble(whole, _slices(), rim, weights=(2.0, 1.0, 2.0)), rim


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Dice."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_a_mask_is_the_mean_of_the_parts_that_see_the_place(head: PhantomVolume) -> None:
    both, rim = _drawing(2.0, -1.0)
    joint = both.look(head.hu, head.spacing_mm)
    (seen,) = [one.sees for one in joint.parts if one.sees is not None]  # type: ignore[attr-defined]
    assert joint.masks is not None and joint.masks.shape == (4, 6, 224, 224) and 0.05 < seen.mean() < 0.6
    on, off = torch.sigmoid(torch.tensor([2.0, -1.0])).tolist()
    assert joint.masks[:, 0][seen] == pytest.approx((on + off) / 2, abs=0.02)
    assert joint.masks[:, 0][~seen] == pytest.approx(off, abs=1e-4)
    answer = both.classify(head.hu, head.spacing_mm)
    along = rim.segment(head.hu, head.spacing_mm, rim.classify(head.hu, head.spacing_mm))
    assert _overlap(both.segment(head.hu, head.spacing_mm, answer), along) > 0.9


def test_the_part_that_is_surer_says_of_which_kind_the_blood_is(head: PhantomVolume) -> None:
    both, rim = _drawing(4.0, 1.0)
    answer = both.classify(head.hu, head.spacing_mm)
    mask = both.segment(head.hu, head.spacing_mm, answer)
    kinds = both.segment_subtypes(head.hu, head.spacing_mm, answer)
    assert set(kinds) == {"epidural", "intraparenchymal"}
    assert not (kinds["epidural"] & kinds["intraparenchymal"]).any()
    assert np.array_equal(kinds["epidural"] | kinds["intraparenchymal"], mask)
    along = rim.segment(head.hu, head.spacing_mm, rim.classify(head.hu, head.spacing_mm))
    assert _overlap(kinds["epidural"], along) > 0.9


def test_masks_of_several_sizes_meet_on_the_finest_grid() -> None:
    coarse, fine = np.zeros((2, 6, 8, 8), np.float32), np.zeros((2, 1, 16, 16), np.float32)
    coarse[0, 0, 2, 2], coarse[0, 3] = 1, 1
    fine[1, 0, 15, 15] = 0.8
    sees = np.zeros((2, 16, 16), bool)
    sees[1] = True
    joint = overlaid([Overlay(coarse, None, 3.0), Overlay(fine, sees, 1.0)])
    assert joint is not None and joint.shape == (2, 1, 16, 16)
    assert np.unravel_index(joint[0, 0].argmax(), (16, 16)) in {(y, x) for y in (4, 5) for x in (4, 5)}
    assert joint[1, 0, 15, 15] == pytest.approx(0.2) and joint[1].sum() == pytest.approx(0.2)
    nowhere = overlaid([Overlay(fine, ~sees, 1.0)])
    assert nowhere is not None and not nowhere.any(), "what none sees is 0"
    assert overlaid([]) is None


def test_an_ensemble_without_a_mask_draws_none(head: PhantomVolume) -> None:
    pipeline = _ensemble(_slices(), _slices())
    assert not pipeline.draws
    answer = pipeline.classify(head.hu, head.spacing_mm)
    assert not pipeline.segment(head.hu, head.spacing_mm, answer).any()
    assert pipeline.segment_subtypes(head.hu, head.spacing_mm, answer) == {}


def test_every_part_has_its_say_in_the_map(ensemble: EnsemblePipeline, head: PhantomVolume) -> None:
    reading = ensemble.look(head.hu, head.spacing_mm)
    heat = ensemble.heat(reading, head.spacing_mm, "any")
    assert heat.shape == (4, 160, 160), "as large as the pictures of the first part"
    assert np.isfinite(heat).all() and heat.min() >= 0 and heat.max() == 1
    assert isinstance(reading, JointReading)
    first = ensemble.parts[0].heat(reading.parts[0], head.spacing_mm, "any")
    assert not np.allclose(heat, first, atol=0.05)
    answer = ensemble.classify(head.hu, head.spacing_mm)
    shown = ensemble.explain(head.hu, head.spacing_mm, answer, "any")
    assert shown.shape == (4, 128, 128) and shown.max() <= 1


def test_one_part_that_says_nan_stops_the_whole(head: PhantomVolume) -> None:
    broken = _multitask()
    with torch.no_grad():
        broken.members[0].class_head.bias[2] = float("nan")
    with pytest.raises(PermanentError) as caught:
        _ensemble(_slices(), broken).classify(head.hu, head.spacing_mm)
    assert caught.value.code == "MODEL_OUTPUT_INVALID"


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0)])
def test_every_part_needs_a_weight(weights: tuple[float, ...]) -> None:
    with pytest.raises(PermanentError, match="weight above 0"):
        _ensemble(_slices(), _multitask(), weights=weights)


def test_parts_that_tell_other_classes_are_refused() -> None:
    only_any = family("unet").assemble(IDENTITY, [UNet()], Operating.plain(), CPU, 64)
    assert isinstance(only_any, ReadingPipeline)
    with pytest.raises(PermanentError, match="same classes"):
        _ensemble(_multitask(), only_any)


def _facts(members: int, first: int = 1) -> dict[str, Any]:
    plain = {
        "thresholds": dict.fromkeys(CLASSES, 0.5),
        "mask_threshold": 0.4,
        "aggregation": Aggregation.plain().to_json(),
    }
    named = {"name": "both", "version": "2", "sha256": "ef" * 32, "family": ENSEMBLE, "members": members}
    multitask = {
        "family": MULTITASK,
        "members": first,
        "weight": 2,
        "recipe": {"name": "m", "widths": list(WIDTHS), "dropout": 0.3},
        "preprocessing": preprocessing_facts(),
        **plain,
    }
    slices = {
        "family": "small-cnn",
        "members": 1,
        "weight": 1,
        "recipe": {"name": "s"},
        "preprocessing": family("small-cnn").preprocessing(64),
        **plain,
    }
    return {**named, **plain, "parts": [multitask, slices]}


def _tensors() -> dict[str, torch.Tensor]:
    networks = [MultiTaskNet(WIDTHS), *family("small-cnn").networks(64)]
    return {
        f"{index}.{key}": value
        for index, network in enumerate(networks)
        for key, value in network.state_dict().items()
    }


def test_a_weights_file_becomes_an_ensemble(head: PhantomVolume) -> None:
    pipeline = build(_tensors(), _facts(2), Engine())
    assert isinstance(pipeline, EnsemblePipeline)
    assert pipeline.identity == ModelIdentity("both", "2", "ef" * 32)
    assert [part.identity.name for part in pipeline.parts] == ["both/m", "both/s"]
    assert pipeline.weights == pytest.approx((2 / 3, 1 / 3))
    assert pipeline.classify(head.hu, head.spacing_mm).slices.shape == (4, 6)


@pytest.mark.parametrize("first", [0, 2])
def test_a_file_with_more_or_fewer_networks_than_its_parts_is_refused(first: int) -> None:
    with pytest.raises(PermanentError) as caught:
        build(_tensors(), _facts(2, first), Engine())
    assert caught.value.code == "MODEL_INVALID"


def test_predictions_are_joined_as_the_pipeline_joins_readings(ensemble: EnsemblePipeline) -> None:
    def seen(view: preprocess.View) -> list[Any]:
        return [phantom_series(5, slices=4, size=view.size, view=view)]

    (one,) = predict_through(ensemble, seen)
    parts = [predict(part, seen(part.view)[0]) for part in ensemble.parts]  # type: ignore[attr-defined]
    assert np.allclose(
        one.class_logits, 0.75 * parts[0].class_logits + 0.25 * parts[1].class_logits, atol=1e-5
    )
    assert one.blood is not None and np.array_equal(one.blood, parts[1].blood)
    assert one.mask.shape == parts[1].mask.shape
    assert one.heat.shape == (4, 64, 64)
    with pytest.raises(ValueError, match="different series"):
        joined([parts[0], replace(parts[1], patient="another")], (1, 1))


def test_joined_predictions_draw_as_the_pipeline_does() -> None:
    """On the grid of the finest of those that draw, which the truth then has too; also once kept and read."""
    both, _ = _drawing(2.0, 1.0)

    def seen(view: preprocess.View) -> list[Any]:
        return [phantom_series(5, slices=4, size=view.size, view=view)]

    (one,) = predict_through(both, seen)
    (leader,) = seen(both.parts[2].view)  # type: ignore[attr-defined]
    assert one.blood is not None and one.blood.shape == one.mask.shape == leader.pictures[:, 0].shape
    on, off = (round(float(torch.sigmoid(torch.tensor(logit))) * 255) for logit in (2.0, 1.0))
    assert set(np.unique(one.blood)) <= {off, *range((on + off) // 2 - 4, (on + off) // 2 + 3)}


def test_where_a_part_sees_is_kept_with_its_predictions(tmp_path: Path) -> None:
    pipeline = _rim()
    one = predict(pipeline, phantom_series(5, slices=4, size=224, view=pipeline.view))
    save(tmp_path / "one.npz", [one, one])
    again = load(tmp_path / "one.npz")[1]
    assert one.sees is not None and again.sees is not None and np.array_equal(again.sees, one.sees)
    assert again.blood is not None and np.array_equal(again.blood, one.blood)
