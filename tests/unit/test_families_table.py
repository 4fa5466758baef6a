"""The table of families: what it says is so, and each row becomes a pipeline from weights and a sidecar."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES
from workers.models.aggregate import Aggregation
from workers.models.backbones import parameter_count
from workers.models.engine import Engine
from workers.models.families import FAMILIES, GATED, Family, build, family, split
from workers.models.gated import GatedPipeline
from workers.models.slicewise import SequencePipeline, SlicePipeline, UNetPipeline
from workers.phantom import volume


def _facts(one: Family, members: int, size: int = 64) -> dict[str, Any]:
    return {
        "name": one.name,
        "version": "1.0.0",
        "sha256": "ab" * 32,
        "family": one.name,
        "members": members,
        "preprocessing": one.preprocessing(size),
        "thresholds": dict.fromkeys(CLASSES, 0.5),
        "aggregation": Aggregation.plain(1, 0).to_json(),
    }


def _tensors(*families: Family) -> dict[str, torch.Tensor]:
    networks = [network for one in families for network in one.networks(64)]
    return {
        f"{index}.{key}": value
        for index, network in enumerate(networks)
        for key, value in network.state_dict().items()
    }


def test_names_are_unique_and_rows_complete() -> None:
    assert len({one.name for one in FAMILIES}) == len(FAMILIES)
    assert all(one.summary and one.reference for one in FAMILIES)
    assert GATED not in {one.name for one in FAMILIES}


@pytest.mark.parametrize("one", FAMILIES, ids=lambda one: one.name)
def test_a_row_tells_its_parameters_and_becomes_a_pipeline(one: Family) -> None:
    torch.manual_seed(0)
    networks = one.networks(64)
    assert sum(parameter_count(network) for network in networks) == one.parameters
    tensors = {
        f"{index}.{key}": value
        for index, network in enumerate(networks)
        for key, value in network.state_dict().items()
    }
    pipeline = build(tensors, _facts(one, len(networks)), Engine())
    kinds = {"unet": UNetPipeline, "seresnext101-pair-sequence": SequencePipeline}
    assert type(pipeline) is kinds.get(one.name, SlicePipeline)
    assert pipeline.identity.name == one.name
    assert pipeline.thresholds["epidural"] == 0.5
    for found, network in zip(getattr(pipeline, "networks"), networks, strict=False):  # noqa: B009
        for key, value in network.state_dict().items():
            assert torch.equal(found.state_dict()[key], value)


def test_a_built_pipeline_reads_a_head() -> None:
    head = volume(7, ("epidural",), slices=2, size=96, lowest_mm=0)
    one = family("small-cnn")
    pipeline = build(_tensors(one, one), _facts(one, 2), Engine())
    assert pipeline.classify(head.hu, head.spacing_mm).slices.shape == (2, 6)


def test_a_gated_file_becomes_a_gated_pipeline() -> None:
    head = volume(7, ("epidural",), slices=2, size=96, lowest_mm=0)
    classifier, segmenter = family("small-cnn"), family("unet")
    facts = {
        "name": "both",
        "version": "2",
        "sha256": "cd" * 32,
        "family": GATED,
        "members": 3,
        "classifier": _facts(classifier, 2),
        "segmenter": _facts(segmenter, 1),
        "slice_threshold": 0.25,
    }
    pipeline = build(_tensors(classifier, classifier, segmenter), facts, Engine())
    assert isinstance(pipeline, GatedPipeline)
    assert pipeline.slice_threshold == 0.25
    assert pipeline.identity.name == "both"
    assert isinstance(pipeline.segmenter, UNetPipeline)
    answer = pipeline.classify(head.hu, head.spacing_mm)
    assert pipeline.segment(head.hu, head.spacing_mm, answer).shape == head.hu.shape
    assert pipeline.explain(head.hu, head.spacing_mm, answer, "any").shape == (2, 128, 128)


def _code(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> str:
    with pytest.raises(PermanentError) as error:
        build(tensors, facts, Engine())
    return error.value.code


def test_an_unknown_family_is_not_found() -> None:
    one = family("small-cnn")
    assert _code(_tensors(one), {**_facts(one, 1), "family": "oracle"}) == "MODEL_NOT_FOUND"


def test_weights_of_another_network_are_invalid() -> None:
    one = family("small-cnn")
    assert _code(_tensors(family("unet")), _facts(one, 1)) == "MODEL_INVALID"


def test_a_pair_without_its_sequence_model_is_invalid() -> None:
    pair, small = family("seresnext101-pair-sequence"), family("small-cnn")
    assert _code(_tensors(small, small), _facts(pair, 2)) == "MODEL_INVALID"


@pytest.mark.parametrize(("key", "value"), [("windows", [[[40, 90]]]), ("margin", 2.0), ("size", 32)])
def test_weights_of_another_preprocessing_are_refused(key: str, value: object) -> None:
    one = family("small-cnn")
    facts = _facts(one, 1)
    facts["preprocessing"] = {**facts["preprocessing"], key: value}
    assert _code(_tensors(one), facts) == "MODEL_PREPROCESSING_MISMATCH"


def test_a_tensor_of_no_network_is_named() -> None:
    with pytest.raises(PermanentError, match=r"tensor 2\.weight belongs to none of 2 networks"):
        split({"0.weight": torch.zeros(1), "2.weight": torch.zeros(1)}, 2)
