"""Broken answers and broken weights are refused; what is shipped can be loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, ModelIdentity
from workers.models import device, runtime
from workers.models.aggregate import Aggregation
from workers.models.catalogue import CATALOGUE, entry
from workers.models.contract import Classification, require_classification, require_probabilities
from workers.models.multitask import MULTITASK, MultiTaskPipeline, preprocessing_facts
from workers.models.network import MultiTaskNet, mask_evidence
from workers.models.picture import Operating, Reading, ReadingPipeline
from workers.phantom import volume
from workers.preprocess import HeadFrame, NetworkInput
from workers.training.learners import without_picture_head
from workers.training.recipes import RECIPES

WIDTHS = (8, 8, 16, 16)


def _network(seed: int = 0) -> MultiTaskNet:
    torch.manual_seed(seed)
    return MultiTaskNet(WIDTHS)


def _pipeline(network: MultiTaskNet) -> MultiTaskPipeline:
    operating = Operating(dict.fromkeys(CLASSES, 0.5), 0.5, Aggregation.plain())
    return MultiTaskPipeline(ModelIdentity("test", "1", "0"), [network], operating)


def _saved(folder: Path) -> Path:
    recipe = replace(RECIPES[0], widths=WIDTHS)
    facts = {
        "name": "tiny",
        "version": "1",
        "recipe": {"widths": list(recipe.widths), "dropout": recipe.dropout},
        "thresholds": dict.fromkeys(CLASSES, 0.5),
        "mask_threshold": 0.5,
        "aggregation": Aggregation.plain().to_json(),
        "family": MULTITASK,
        "preprocessing": preprocessing_facts(),
    }
    sidecar = folder / "tiny.json"
    runtime.save_pipeline(sidecar, [_network().state_dict(), _network(1).state_dict()], facts)
    return sidecar


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_weights_that_float16_cannot_hold_are_not_shipped(tmp_path: Path, value: float) -> None:
    state = {"weight": torch.tensor([1.0, value])}
    with pytest.raises(PermanentError, match="weight is NaN, infinite or too large"):
        runtime.save_pipeline(tmp_path / "x.json", [state], {"name": "x"})
    assert not list(tmp_path.iterdir())


def test_a_head_that_draws_the_picture_again_is_for_training_only() -> None:
    whole = MultiTaskNet((8, 8, 16, 16), reconstruct=True)
    output = whole.eval()(torch.rand(2, 3, 64, 64))
    assert output.picture is not None and output.picture.shape == (2, 1, 64, 64)
    used = MultiTaskNet((8, 8, 16, 16))
    used.load_state_dict(without_picture_head(whole.state_dict()))
    assert used.eval()(torch.rand(1, 3, 64, 64)).picture is None


def test_the_network_answers_in_the_shapes_it_promises() -> None:
    output = _network().eval()(torch.rand(2, 3, 64, 96))
    assert output.classes.shape == (2, 6)
    assert output.masks.shape == (2, 6, 64, 96)
    assert output.features.shape == (2, 16, 4, 6)
    assert mask_evidence(output.masks).shape == (2, 6)


@pytest.mark.parametrize(
    "values",
    (
        np.full(6, np.nan, np.float32),
        np.full(6, np.inf, np.float32),
        np.full(6, 1.5, np.float32),
        np.full(6, -0.1, np.float32),
        np.full(5, 0.5, np.float32),
    ),
)
def test_what_is_no_probability_is_refused(values: np.ndarray) -> None:
    with pytest.raises(PermanentError) as caught:
        require_probabilities(values, (6,), "series probabilities")
    assert caught.value.code == "MODEL_OUTPUT_INVALID"


def test_a_classification_of_too_few_slices_is_refused() -> None:
    answer = Classification(np.zeros((3, 6), np.float32), np.zeros(6, np.float32))
    assert require_classification(answer, 3) is answer
    with pytest.raises(PermanentError):
        require_classification(answer, 4)


def test_a_network_that_says_nan_raises_and_is_never_negative() -> None:
    network = _network()
    with torch.no_grad():
        network.class_head.bias[3] = float("nan")
    head = volume(1, (), slices=4, size=64)
    with pytest.raises(PermanentError) as caught:
        _pipeline(network).classify(head.hu, head.spacing_mm)
    assert caught.value.code == "MODEL_OUTPUT_INVALID"


def test_a_volume_without_a_head_is_refused() -> None:
    with pytest.raises(PermanentError) as caught:
        _pipeline(_network()).classify(np.full((4, 64, 64), -1000, np.float32), (5.0, 1.0, 1.0))
    assert caught.value.code == "HEAD_NOT_FOUND"


def test_answers_lie_on_the_grid_of_the_source() -> None:
    head = volume(2, ("epidural",), slices=5, size=72)
    pipeline = _pipeline(_network())
    answer = pipeline.classify(head.hu, head.spacing_mm)
    assert answer.slices.shape == (5, 6)
    assert pipeline.segment(head.hu, head.spacing_mm, answer).shape == head.hu.shape
    for name, mask in pipeline.segment_subtypes(head.hu, head.spacing_mm, answer).items():
        assert name in CLASSES and mask.shape == head.hu.shape
    maps = pipeline.explain(head.hu, head.spacing_mm, answer, "any")
    assert maps.shape == (5, 128, 128) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1


@pytest.mark.parametrize("slices", [4, 7])
def test_every_place_of_the_mask_has_one_subtype(slices: int) -> None:
    """Thin slices, three to a picture: some lie midway between two, some where three kinds meet."""
    kinds = np.random.default_rng(5).integers(1, 6, (-(-slices // 3), 8, 8))
    masks = np.full((len(kinds), 6, 8, 8), 0.1, np.float32)
    masks[:, 0] = 0.9
    np.put_along_axis(masks, kinds[:, None], 0.8, axis=1)
    centres = np.asarray([1 + 3 * k for k in range(len(kinds) - 1)] + [slices - 1], np.float32)
    shape = (slices, 48, 48)
    source = NetworkInput(masks[:, :1], centres, HeadFrame(0, 0, 48, 48), shape)
    identity = ModelIdentity("drawn", "1", "00")
    pipeline = ReadingPipeline(identity, Operating.plain())
    logits = np.zeros((len(kinds), 6), np.float32)
    state = Reading(identity, source, logits, logits, (), masks)
    answer = Classification(np.zeros((slices, 6), np.float32), np.zeros(6, np.float32), state)
    hu, spacing_mm = np.zeros(shape, np.float32), (1.67, 1.0, 1.0)
    parts = pipeline.segment_subtypes(hu, spacing_mm, answer)
    held = np.sum(list(parts.values()), axis=0)
    assert np.array_equal(held, pipeline.segment(hu, spacing_mm, answer))


def test_thin_slices_get_an_answer_each() -> None:
    head = volume(2, (), slices=23, size=64, step_mm=1.25, lowest_mm=0)
    answer = _pipeline(_network()).classify(head.hu, head.spacing_mm)
    assert answer.slices.shape == (23, 6)


def test_a_classification_read_back_without_its_state_is_read_anew() -> None:
    head = volume(2, ("epidural",), slices=4, size=64)
    pipeline = _pipeline(_network())
    answer = pipeline.classify(head.hu, head.spacing_mm)
    bare = Classification(answer.slices, answer.series)
    again = pipeline.segment(head.hu, head.spacing_mm, bare)
    assert np.array_equal(again, pipeline.segment(head.hu, head.spacing_mm, answer))


def test_weights_round_trip_and_are_loaded_once(tmp_path: Path) -> None:
    sidecar = _saved(tmp_path)
    pipeline = runtime.load_pipeline(sidecar, "cpu")
    assert pipeline is runtime.load_pipeline(str(sidecar), "cpu")
    assert isinstance(pipeline, MultiTaskPipeline) and len(pipeline.members) == 2
    assert pipeline.identity.sha256 == json.loads(sidecar.read_text())["sha256"]


def test_weights_that_differ_from_their_digest_are_refused(tmp_path: Path) -> None:
    sidecar = _saved(tmp_path)
    weights = sidecar.with_suffix(".safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(PermanentError) as caught:
        runtime.load_pipeline(sidecar, "cpu")
    assert caught.value.code == "MODEL_DIGEST_MISMATCH"


def test_weights_of_another_preprocessing_are_refused(tmp_path: Path) -> None:
    sidecar = _saved(tmp_path)
    facts = json.loads(sidecar.read_text())
    facts["preprocessing"]["window_hu"] = [0.0, 80.0]
    sidecar.write_text(json.dumps(facts))
    with pytest.raises(PermanentError) as caught:
        runtime.load_pipeline(sidecar, "cpu")
    assert caught.value.code == "MODEL_PREPROCESSING_MISMATCH"


def test_an_unknown_name_and_an_absent_file_are_named(tmp_path: Path) -> None:
    for name in ("no-such-model", tmp_path / "absent.json"):
        with pytest.raises(PermanentError) as caught:
            runtime.load_pipeline(name, "cpu")
        assert caught.value.code == "MODEL_NOT_FOUND"


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(PermanentError) as caught:
        device.choose_device("cuda")
    assert caught.value.code == "DEVICE_UNAVAILABLE"


@pytest.mark.parametrize("name", ["gpu", "CPU0", "", "openvino:1"])
def test_a_device_that_there_is_not_is_named_with_those_there_are(name: str) -> None:
    for choose in (device.choose_device, lambda text: device.choose_runtime(device.Wish(text))):
        with pytest.raises(PermanentError, match="auto, cuda, openvino or cpu") as caught:
            choose(name)
        assert caught.value.code == "DEVICE_UNAVAILABLE" and repr(name) in str(caught.value)


@pytest.mark.parametrize("lacking", ["weights", "sha256", "members", "family", "version", "aggregation"])
def test_a_sidecar_that_lacks_something_is_named_with_it(lacking: str, tmp_path: Path) -> None:
    sidecar = _saved(tmp_path)
    facts = json.loads(sidecar.read_text())
    del facts[lacking]
    sidecar.write_text(json.dumps(facts))
    with pytest.raises(PermanentError, match=f"{sidecar}.*{lacking}") as caught:
        runtime.load_pipeline(sidecar, "cpu")
    assert caught.value.code == "MODEL_INVALID"


def test_what_is_no_sidecar_at_all_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "list.json").write_text("[1]")
    for name in ("folder.json", "list.json"):
        with pytest.raises(PermanentError, match=name) as caught:
            runtime.load_pipeline(tmp_path / name, "cpu")
        assert caught.value.code == "MODEL_INVALID"
    sidecar = _saved(tmp_path)
    sidecar.with_suffix(".safetensors").unlink()
    sidecar.with_suffix(".safetensors").mkdir()
    with pytest.raises(PermanentError, match="safetensors") as caught:
        runtime.load_pipeline(sidecar, "cpu")
    assert caught.value.code == "MODEL_INVALID"


def test_every_entry_of_the_catalogue_loads_and_is_what_its_sidecar_says() -> None:
    for known in CATALOGUE:
        assert entry(known.name) is known
        facts = runtime.read_sidecar(known.sidecar)
        pipeline = runtime.load_pipeline(known.name, "cpu")
        assert pipeline.identity == ModelIdentity(facts["name"], facts["version"], facts["sha256"])
        assert set(pipeline.thresholds) == set(CLASSES)
        assert all(0 < value < 1 for value in pipeline.thresholds.values())


def test_a_series_speaks_by_its_strongest_pictures_and_not_by_one() -> None:
    aggregation = replace(Aggregation.plain(), smoothing=0.0)
    lone, many = np.full((20, 6), -4, np.float32), np.full((20, 6), -4, np.float32)
    lone[10], many[8:13] = 4, 4
    assert aggregation.series_probabilities(lone)[0] < 0.5 < aggregation.series_probabilities(many)[0]
    order = aggregation.slice_probabilities(many)[:, 0]
    assert order[10] > order[0]
    assert Aggregation.from_json(aggregation.to_json()) == aggregation
