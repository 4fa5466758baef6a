"""The sequence model: any number of slices, its loss, and Grad-CAM++ followed through it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, ModelIdentity
from tests.networks import WIDTHS, whole_ct
from workers.models.aggregate import Aggregation
from workers.models.backbones import parameter_count
from workers.models.baseline import SIGMOID, SmallCNN
from workers.models.cam import grad_cam_pp
from workers.models.engine import CPU
from workers.models.multitask import MultiTaskPipeline
from workers.models.picture import Operating, PicturePipeline, Reading
from workers.models.rim import RimPipeline
from workers.models.sequence import (
    SequenceModel,
    SequenceOutput,
    SequenceReader,
    both_ways,
    sequence_loss,
    steps_mm,
)
from workers.models.slicewise import SequencePipeline
from workers.models.whole_ct import SHORTEST, WHOLE_CT, WholeCtPipeline
from workers.preprocess import HeadFrame, NetworkInput

PLAIN = Operating(dict.fromkeys(CLASSES, 0.5), 0.5, Aggregation.plain(1, 0))


@pytest.fixture(scope="module")
def model() -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel().eval()


def test_it_has_the_published_number_of_parameters(model: SequenceModel) -> None:
    assert parameter_count(model) == 3_398_418  # "3.40 M" at two CNNs


@pytest.mark.parametrize("slices", [1, 2, 40])
def test_it_reads_any_number_of_slices(model: SequenceModel, slices: int) -> None:
    with torch.no_grad():
        output = model(
            torch.rand(1, slices, 2, 2048), torch.rand(1, slices, 2, 6), torch.full((1, slices), 5.0)
        )
    assert output.final.shape == output.first.shape == (1, slices, 6)
    assert all(bool(logits.isfinite().all()) for logits in output)


def test_it_reads_a_batch_as_it_reads_each_ct() -> None:
    torch.manual_seed(1)
    small = SequenceModel(width=16, hidden=8).eval()
    features, said, steps = torch.rand(3, 7, 2, 16), torch.rand(3, 7, 2, 6), torch.rand(3, 7) * 5
    together = small(features, said, steps).final
    alone = torch.cat([small(features[i : i + 1], said[i : i + 1], steps[i : i + 1]).final for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_every_input_counts() -> None:
    torch.manual_seed(2)
    small = SequenceModel(width=16, hidden=8).eval()
    inputs = [torch.rand(1, 5, 2, 16), torch.rand(1, 5, 2, 6), torch.rand(1, 5)]
    plain = small(*inputs).final
    for index in range(3):
        changed = list(inputs)
        changed[index] = changed[index] + 1
        assert not torch.allclose(small(*changed).final, plain, atol=1e-6)


def test_both_ways_does_not_mind_which_way_is_up() -> None:
    torch.manual_seed(3)
    small = SequenceModel(width=16, hidden=8).eval()
    features, said, steps = torch.rand(1, 6, 2, 16), torch.rand(1, 6, 2, 6), torch.full((1, 6), 5.0)
    up = both_ways(small, features, said, steps)
    down = both_ways(small, features.flip(1), said.flip(1), steps.flip(1))
    assert torch.allclose(up, down.flip(1), atol=1e-6)


def test_steps_are_distances_to_the_next_picture() -> None:
    assert steps_mm(np.asarray([0.5, 2.5, 4.0], np.float32), 2.5, 5.0).tolist() == [5.0, 3.75, 3.75]
    assert steps_mm(np.asarray([0], np.float32), 2.5, 5.0).tolist() == [5.0]
    assert steps_mm(np.asarray([0, 1], np.float32), 0.0, 5.0).tolist() == [5.0, 5.0]


def test_the_loss_is_the_challenges_on_both_outputs() -> None:
    labels = torch.tensor([[[1.0, 0, 1, 0, 0, 0]]])
    final, first = torch.randn(2, 1, 1, 6, generator=torch.Generator().manual_seed(4))
    expected = 0.0
    for logits in (final, first):
        for index, weight in enumerate((2, 1, 1, 1, 1, 1)):
            p = 1 / (1 + math.exp(-float(logits[0, 0, index])))
            expected -= weight / 7 * math.log(p if labels[0, 0, index] else 1 - p)
    assert float(sequence_loss(SequenceOutput(final, first), labels)) == pytest.approx(expected, rel=1e-5)


def test_padding_can_be_left_out_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(5)
    final, first = torch.randn(2, 1, 4, 6, generator=generator)
    labels = torch.zeros(1, 4, 6)
    valid = torch.tensor([[1, 1, 0, 0]])[..., None].expand(-1, -1, 6)
    padded = sequence_loss(SequenceOutput(final, first), labels, valid)
    cut = sequence_loss(SequenceOutput(final[:, :2], first[:, :2]), labels[:, :2])
    assert float(padded) == pytest.approx(float(cut), rel=1e-6)


def _pipeline(seed: int) -> SequencePipeline:
    torch.manual_seed(seed)
    specs = (replace(SIGMOID, size=64), replace(SIGMOID, size=64, neighbours=True))
    networks = [SmallCNN(one, widths=(8, 16)) for one in specs]
    return SequencePipeline(ModelIdentity(f"pair-{seed}", "0", ""), networks, SequenceModel(2, 16, 8), PLAIN)


def _read(pipeline: PicturePipeline, changed: int | None = None, count: int = 5) -> Reading:
    """So many pictures read; one of them dark, if wanted."""
    pictures = np.random.default_rng(6).random((count, 1, 64, 64), np.float32)
    if changed is not None:
        pictures[changed] = 0
    centres = np.arange(count, dtype=np.float32)
    source = NetworkInput(pictures, centres, HeadFrame(0, 0, 64, 64), (count, 64, 64))
    return pipeline.read(source, (5.0, 1.0, 1.0))


def _assert_literal(found: Sequence[Tensor], maps: Sequence[Tensor], scores: Tensor) -> None:
    """Maps of class 4 are those of the paper's formula, from the gradients of each slice's own score."""
    for z in range(len(scores)):
        gradients = torch.autograd.grad(scores[z, 4], maps, retain_graph=True)
        for ours, features, gradient in zip(found, maps, gradients, strict=True):
            literal = grad_cam_pp(features.detach()[z : z + 1], gradient[z : z + 1])[0]
            scale = literal.max().clamp(min=1e-12)
            assert torch.allclose(ours[z] / scale, literal / scale, atol=1e-4)


def test_the_closed_form_is_the_literal_formula_through_the_whole_model() -> None:
    pipeline = _pipeline(0)
    reading = _read(pipeline)
    maps = [one.clone().requires_grad_(True) for one in reading.features]
    means = torch.stack([one.mean((2, 3)) for one in maps], dim=1)
    scores = pipeline.reader(means[None], torch.full((5,), 5.0))[0]
    closed = [coarse for coarse, _ in pipeline.coarse(reading, (5.0, 1.0, 1.0), 4, torch.arange(5))]
    assert all(bool(one.max() > 0) for one in closed)
    _assert_literal(closed, maps, scores)


@pytest.mark.parametrize("family", WHOLE_CT)
def test_an_answer_is_followed_back_through_sequence_model_and_pooling(family: str) -> None:
    pipeline = whole_ct(family, 64)
    reading = _read(pipeline, count=SHORTEST)
    maps = [one.clone().requires_grad_(True) for one in reading.features]
    with torch.enable_grad():
        read = [network.pooled(one) for network, one in zip(pipeline.heard, maps, strict=True)]
        scores = pipeline.reader(torch.stack(read, dim=1)[None], torch.full((SHORTEST,), 5.0))[0]
    assert np.allclose(scores.detach().numpy(), reading.class_logits, atol=1e-5)
    lit = torch.arange(SHORTEST)
    found = [coarse for coarse, _ in pipeline.coarse(reading, (5.0, 1.0, 1.0), 4, lit)]
    assert any(bool(one.max() > 0) for one in found)
    _assert_literal(found, maps, scores)


@pytest.mark.parametrize("family", WHOLE_CT)
def test_behind_the_sequence_model_a_network_draws_and_weighs_as_without(family: str) -> None:
    """And each slice is told in the light of the others, which it is not by the network alone."""
    pipeline = whole_ct(family, 64)
    alone = _without(pipeline)
    whole, plain = _read(pipeline, count=SHORTEST), _read(alone, count=SHORTEST)
    assert whole.masks is not None and plain.masks is not None
    assert np.array_equal(whole.masks, plain.masks) and np.array_equal(whole.mask_logits, plain.mask_logits)
    assert not np.allclose(whole.class_logits, plain.class_logits)
    other = _read(pipeline, changed=4, count=SHORTEST)
    assert np.allclose(_read(alone, changed=4, count=SHORTEST).class_logits[:3], plain.class_logits[:3])
    assert not np.allclose(other.class_logits[2], whole.class_logits[2])


@pytest.mark.parametrize("family", WHOLE_CT)
def test_what_it_learns_from_is_what_it_will_read(family: str) -> None:
    """`spoken` leaves out the mirror images and the masks; features and probabilities are the same."""
    pipeline = whole_ct(family, 64)
    reading = _read(pipeline, count=SHORTEST)
    features, said = pipeline.spoken(reading.source)
    read = [network.pooled(one) for network, one in zip(pipeline.heard, reading.features, strict=True)]
    assert torch.allclose(features, torch.stack(read, dim=1), atol=1e-6)
    scores = [network.score(one) for network, one in zip(pipeline.heard, read, strict=True)]
    assert torch.allclose(said, torch.stack(scores, dim=1).sigmoid(), atol=1e-6)


@pytest.mark.parametrize("family", WHOLE_CT)
def test_a_sequence_model_without_networks_is_refused(family: str) -> None:
    kind = WHOLE_CT[family]
    recipe = {"widths": WIDTHS[family], "dropout": 0.3}
    networks, _ = kind.fresh(1, **recipe)
    with pytest.raises(PermanentError, match="the weights hold one network"):
        kind.assemble(
            ModelIdentity(family, "0", ""), [networks[0].state_dict()], recipe, PLAIN, CPU, kind.view(64)
        )


@pytest.mark.parametrize("family", WHOLE_CT)
def test_pictures_that_need_no_map_change_nothing_for_those_that_do(family: str) -> None:
    pipeline = whole_ct(family, 64)
    reading = _read(pipeline, count=SHORTEST)
    lit = np.isin(np.arange(SHORTEST), (0, 3, 4))
    every, some = (pipeline.heat(reading, (5.0, 1.0, 1.0), "epidural", which) for which in (None, lit))
    assert every.any(axis=(1, 2)).all()
    assert np.allclose(some[lit], every[lit], atol=1e-4)
    assert not some[~lit].any()
    assert not pipeline.heat(reading, (5.0, 1.0, 1.0), "epidural", np.zeros(SHORTEST, bool)).any()


@pytest.mark.parametrize("family", WHOLE_CT)
def test_a_few_slices_are_told_and_explained_one_by_one(family: str) -> None:
    """No sequence model learned from so few; a single slice sent by itself is one of them."""
    pipeline = whole_ct(family, 64)
    alone = _without(pipeline)
    for count in (1, SHORTEST - 1):
        few, plain = _read(pipeline, count=count), _read(alone, count=count)
        assert np.array_equal(few.class_logits, plain.class_logits)
        heat, expected = (one.heat(few, (5.0, 1.0, 1.0), "epidural") for one in (pipeline, alone))
        assert np.array_equal(heat, expected)
    enough, plain = _read(pipeline, count=SHORTEST), _read(alone, count=SHORTEST)
    assert not np.allclose(enough.class_logits, plain.class_logits)


def test_series_explained_side_by_side_leave_each_other_without_cudnn() -> None:
    """Its GRU refuses a backward in eval mode, and the switch is one for the whole process."""
    heard: list[bool] = []
    second_is_in, first_is_out = threading.Event(), threading.Event()

    def head(features: Tensor) -> Tensor:
        if threading.current_thread().name == "first":
            second_is_in.wait(0.5)
        else:
            second_is_in.set()
            first_is_out.wait(0.5)
        heard.append(torch.backends.cudnn.enabled)
        return features[..., :6]

    reader = SequenceReader(SequenceModel(1, 8, 4), [head])

    def explain() -> None:
        reader.gradients(torch.rand(4, 1, 8), torch.full((4,), 5.0), 0, torch.arange(4))
        if threading.current_thread().name == "first":
            first_is_out.set()

    threads = [threading.Thread(target=explain, name=name) for name in ("first", "second")]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert heard == [False, False]
    assert torch.backends.cudnn.enabled


def _without(pipeline: WholeCtPipeline) -> PicturePipeline:
    if isinstance(pipeline, RimPipeline):
        return RimPipeline(pipeline.identity, pipeline.networks, PLAIN, view=pipeline.view)
    assert isinstance(pipeline, MultiTaskPipeline)
    return MultiTaskPipeline(pipeline.identity, pipeline.members, PLAIN, view=pipeline.view)


def test_the_map_of_random_weights_is_another_map() -> None:
    """Sanity check of Adebayo et al. (2018), for the sequence model alone: the CNNs stay as they are."""
    pipeline = _pipeline(0)
    reading = _read(pipeline)

    def first_map() -> np.ndarray:
        return next(pipeline.coarse(reading, (5.0, 1.0, 1.0), 0, torch.arange(5)))[0].numpy().ravel()

    before = first_map()
    assert np.array_equal(before, first_map())
    torch.manual_seed(99)
    pipeline.reader.model = SequenceModel(2, 16, 8).eval().requires_grad_(False)
    assert abs(np.corrcoef(before, first_map())[0, 1]) < 0.99
    assert not np.allclose(before / before.max(), first_map() / first_map().max(), atol=0.05)
