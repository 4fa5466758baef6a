"""The engine behind every family: batches, precision, memory that runs out, compilers that fail. On the CPU.

No GPU is needed: batches of fixed shapes, bfloat16 and pictures made on a device are the same code there.
What bfloat16 may change is stated here and in docs/performance.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from node.domain.errors import PermanentError, TransientError
from node.domain.findings import ModelIdentity
from tests.networks import whole_ct
from tests.readings import require_alike
from workers.models import device, engine, several
from workers.models.backbones import windows_of
from workers.models.baseline import SIGMOID, SmallCNN
from workers.models.device import OPENVINO, Runtime, Wish, choose_runtime
from workers.models.engine import CPU, Engine, in_float32
from workers.models.ensemble import EnsemblePipeline
from workers.models.families import FAMILIES, Family
from workers.models.gated import GatedPipeline
from workers.models.multitask import MultiTaskPipeline
from workers.models.network import MultiTaskNet
from workers.models.picture import Operating, PicturePipeline
from workers.models.rim import RimNet, RimPipeline
from workers.models.runtime import load_pipeline
from workers.models.scan import Scan, packed
from workers.models.sequence import SequenceModel
from workers.models.slicewise import SequencePipeline
from workers.models.whole_ct import WHOLE_CT
from workers.phantom import PhantomVolume, volume
from workers.preprocess import BRAIN, DEFAULT_VIEW, HeadFrame, View, network_input

SAME = 1e-4
"""Of logits and pictures in float32, however they are batched and wherever they are made."""
LOWER_LOGIT, LOWER_PROBABILITY, LOWER_DICE = 0.15, 0.03, 0.97
"""What bfloat16 may change: logits, relative to their span; probabilities; the mask."""
LIGHT = [one for one in FAMILIES if "seresnext" not in one.name]


class Two(NamedTuple):
    doubled: Tensor
    nothing: Tensor | None
    halved: Tensor


def two(batch: Tensor) -> Two:
    return Two(batch * 2, None, batch.mean((1, 2, 3)) / 2)


def pictures(count: int) -> Tensor:
    return torch.rand(count, 2, 4, 4, generator=torch.Generator().manual_seed(count))


class Seen:
    """A function that notes the batches it gets, and has memory for `most` pictures only."""

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self.batches: list[int] = []

    def __call__(self, batch: Tensor) -> Two:
        self.batches.append(len(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return two(batch)


@pytest.fixture(scope="module")
def head() -> PhantomVolume:
    return volume(950_003, ("epidural", "intraparenchymal"), slices=9, size=192, lowest_mm=-20)


class TestBatches:
    @pytest.mark.parametrize("shapes", [(), (4, 8, 16), (5,)])
    @pytest.mark.parametrize("counts", [(1,), (3, 40, 1), (16, 16), (37,)])
    def test_whatever_the_shapes_each_group_gets_its_own_answers(
        self, shapes: Sequence[int], counts: Sequence[int]
    ) -> None:
        groups = [pictures(count) for count in counts]
        seen = Seen()
        answers = Engine(shapes=shapes).each(seen, groups)
        for group, answer in zip(groups, answers, strict=True):
            assert isinstance(answer, Two) and answer.nothing is None
            assert torch.equal(answer.doubled, group * 2)
            assert torch.allclose(answer.halved, group.mean((1, 2, 3)) / 2)
        assert not shapes or set(seen.batches) <= set(shapes)

    @pytest.mark.parametrize(
        ("count", "expected"),
        [
            (32, [32]),
            (30, [32]),
            (37, [32, 8]),
            (12, [16]),
            (20, [16, 8]),
            (3, [8]),
            (172, [128, 32, 16]),
        ],
    )
    def test_shapes_are_few_and_little_is_wasted(self, count: int, expected: list[int]) -> None:
        seen = Seen()
        Engine(shapes=engine.SHAPES).each(seen, [pictures(count)])
        assert seen.batches == expected

    def test_one_tensor_is_answered_by_one(self) -> None:
        (answer,) = Engine().each(lambda batch: batch + 1, [np.zeros((20, 1, 2, 2), np.float32)])
        assert torch.equal(answer, torch.ones(20, 1, 2, 2))

    def test_every_shape_is_met_before_the_first_patient(self) -> None:
        seen = Seen()
        Engine(shapes=(4, 8)).warm_up(seen, (3, 8, 8))
        assert seen.batches == [4, 8]

    def test_time_in_flight_is_counted(self) -> None:
        made = Engine()
        assert made.busy.seconds() == 0
        made.each(two, [pictures(3)])
        assert made.busy.seconds() > 0


class TestMemory:
    @pytest.mark.parametrize("shapes", [(), engine.SHAPES])
    def test_batches_are_halved_until_they_fit_and_stay_so(
        self, shapes: Sequence[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        seen, made, group = Seen(most=3), Engine(shapes=shapes), pictures(21)
        with caplog.at_level(logging.WARNING):
            (answer,) = made.each(seen, [group])
        assert torch.equal(answer.doubled, group * 2)
        assert made.largest_batch == 2 and "ran out of memory" in caplog.text
        seen.batches.clear()
        made.each(seen, [group])
        assert max(seen.batches) <= 2

    def test_no_memory_for_a_single_picture_is_told_and_worth_another_try(self) -> None:
        with pytest.raises(TransientError, match="no memory left for one picture"):
            Engine(shapes=(8,)).each(Seen(most=0), [pictures(5)])

    def test_other_errors_are_not_hidden(self) -> None:
        def broken(batch: Tensor) -> Tensor:
            raise RuntimeError("shapes do not fit")

        with pytest.raises(RuntimeError, match="do not fit"):
            Engine().each(broken, [pictures(2)])


class TestCompiling:
    def test_what_cannot_be_compiled_runs_as_it_is_and_says_so(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        tried = []

        def refuses(function: object, **_: object) -> object:
            def run(batch: Tensor) -> Tensor:
                tried.append(len(batch))
                raise torch._dynamo.exc.TorchDynamoException("no compiler here\nand much more")

            return run

        monkeypatch.setattr(torch, "compile", refuses)
        network = nn.Conv2d(2, 3, 1).eval()
        fast = engine.quickened(network, network, (2, 4, 4))
        with caplog.at_level(logging.WARNING), torch.no_grad():
            for count in (2, 3):
                assert torch.equal(fast(pictures(count)), network(pictures(count)))
        assert tried == [2] and "Conv2d is not compiled" in caplog.text and "much more" not in caplog.text

    def test_memory_that_runs_out_is_no_reason_to_give_up_the_compiled(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch, "compile", lambda function, **_: Seen(most=4))
        network = nn.Conv2d(2, 3, 1)
        fast = engine.quickened(network, network, (2, 4, 4))
        (answer,) = Engine().each(fast, [pictures(9)])
        assert isinstance(answer, Two)

    def test_a_pipeline_answers_alike_compiled(
        self, head: PhantomVolume, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By the part of torch.compile that needs no compiler of C++."""
        compile_ = torch.compile
        monkeypatch.setattr(torch, "compile", lambda f, **how: compile_(f, backend="eager", **how))
        plain, fast = (_floors() for _ in range(2))
        fast.run_on(Engine(compiles=True, shapes=(8,)))
        require_alike(*(one.look(head.hu, head.spacing_mm) for one in (plain, fast)), SAME)


def _floors() -> SequencePipeline:
    torch.manual_seed(3)
    cnns = [SmallCNN(replace(SIGMOID, size=64), widths=(8, 16)) for _ in range(2)]
    identity = ModelIdentity("pair", "0", "")
    return SequencePipeline(identity, cnns, SequenceModel(2, 16, 8), Operating.plain())


def _of(one: Family) -> Callable[[], PicturePipeline]:
    networks, identity = one.networks(64), ModelIdentity(one.name, "1", "00")
    return lambda: one.assemble(identity, networks, Operating.plain(), CPU, 64)


def _multitask() -> Callable[[], PicturePipeline]:
    networks = [MultiTaskNet((8, 8, 16, 16)) for _ in range(2)]
    return lambda: MultiTaskPipeline(ModelIdentity("m", "1", "00"), networks, Operating.plain())


def _rim() -> Callable[[], PicturePipeline]:
    network = RimNet()
    return lambda: RimPipeline(ModelIdentity("rim", "1", "00"), [network], Operating.plain())


def _whole(name: str) -> Callable[[], PicturePipeline]:
    return lambda: whole_ct(name, size=64)


MAKERS = {
    **{one.name: partial(_of, one) for one in LIGHT},
    "multitask": _multitask,
    "rim": _rim,
    **{name: partial(_whole, name) for name in WHOLE_CT},
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_family_answers_alike_in_fixed_shapes_and_nearly_so_in_bfloat16(
    name: str, head: PhantomVolume
) -> None:
    torch.manual_seed(4)
    maker = MAKERS[name]()
    made = [maker() for _ in range(3)]
    made[1].run_on(Engine(shapes=(4, 8)))
    made[2].run_on(Engine(precision=torch.bfloat16, shapes=(8,)))
    plain, fixed, lower = (each.look(head.hu, head.spacing_mm) for each in made)
    require_alike(plain, fixed, SAME)
    span = max(float(np.abs(plain.class_logits).max()), 1.0)
    require_alike(plain, lower, LOWER_LOGIT * span)
    assert not np.array_equal(plain.class_logits, lower.class_logits), "bfloat16 was not used at all"


def test_the_shipped_model_says_the_same_in_bfloat16(head: PhantomVolume) -> None:
    plain = load_pipeline("default", "cpu")
    lower = load_pipeline("default", Wish("cpu", "bfloat16"))
    assert plain is not lower and plain.identity == lower.identity
    said = [one.classify(head.hu, head.spacing_mm) for one in (plain, lower)]
    for one, other in ((said[0].slices, said[1].slices), (said[0].series, said[1].series)):
        assert np.abs(one - other).max() < LOWER_PROBABILITY
    masks = [
        one.segment(head.hu, head.spacing_mm, answer)
        for one, answer in zip((plain, lower), said, strict=True)
    ]
    assert masks[0].any()
    assert 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) > LOWER_DICE
    maps = [
        one.explain(head.hu, head.spacing_mm, answer, "any")
        for one, answer in zip((plain, lower), said, strict=True)
    ]
    assert np.abs(maps[0] - maps[1]).max() < 0.1


def test_heads_are_computed_in_float32_amid_bfloat16() -> None:
    head = nn.Linear(300, 1)
    values = torch.randn(2, 300).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        exact, rough = in_float32(head, values), head(values)
        assert torch.is_autocast_enabled("cpu")
    assert exact.dtype is torch.float32 and rough.dtype is torch.bfloat16
    assert torch.equal(exact, head(values.float()))


class TestSeveral:
    """Slices of several series in one batch: each series gets the answer it gets alone."""

    def _check(self, pipeline: object, heads: list[PhantomVolume]) -> None:
        prepared = [several.prepare(pipeline, one.hu, one.spacing_mm) for one in heads]  # type: ignore[arg-type]
        together = several.classify_all(pipeline, prepared)  # type: ignore[arg-type]
        for one, answer in zip(heads, together, strict=True):
            alone = pipeline.classify(one.hu, one.spacing_mm)  # type: ignore[attr-defined]
            assert np.abs(alone.slices - answer.slices).max() < SAME
            assert np.abs(alone.series - answer.series).max() < SAME
            masks = [pipeline.segment(one.hu, one.spacing_mm, said) for said in (alone, answer)]  # type: ignore[attr-defined]
            assert (masks[0] != masks[1]).mean() < SAME

    def test_by_every_kind_of_pipeline(self, head: PhantomVolume) -> None:
        heads = [head, volume(5, (), slices=3, size=96, lowest_mm=-10)]
        default = load_pipeline("default", "cpu")
        assert isinstance(default, EnsemblePipeline)
        floors = _floors()
        for pipeline in (default, floors, GatedPipeline(floors, default.parts[0])):
            assert isinstance(pipeline, several.TakesSeveral)
            self._check(pipeline, heads)
        assert isinstance(several.prepare(floors, head.hu, head.spacing_mm).size_bytes, int)

    def test_one_that_cannot_is_asked_one_by_one(self, head: PhantomVolume) -> None:
        class Plain:
            def classify(self, hu: np.ndarray, spacing_mm: object) -> float:
                return float(hu.max())

        prepared = [several.prepare(Plain(), one, (1, 1, 1)) for one in (head.hu, head.hu + 1)]  # type: ignore[arg-type]
        assert several.classify_all(Plain(), prepared) == [head.hu.max(), head.hu.max() + 1]  # type: ignore[arg-type]
        assert several.busy_s(Plain()) is None  # type: ignore[arg-type]

    def test_the_time_of_an_engine_counts_once(self, head: PhantomVolume) -> None:
        floors = _floors()
        shared = EnsemblePipeline(floors.identity, [floors, floors], [1, 1], Operating.plain())
        floors.classify(head.hu, head.spacing_mm)
        assert several.busy_s(shared) == several.busy_s(floors) > 0  # type: ignore[operator]


class TestPicturesOnADevice:
    @pytest.mark.parametrize(
        "frame",
        [
            None,
            HeadFrame(-20.3, -7.7, 231.5, 219.1),
            HeadFrame(12.3, 7.7, 60.2, 71.5),
            HeadFrame(150, -9, 80, 30),
        ],
    )
    @pytest.mark.parametrize("step_mm", [5.0, 1.25, 2.4])
    def test_are_those_of_the_cpu(self, frame: HeadFrame | None, step_mm: float) -> None:
        head = volume(7, ("epidural",), slices=7, size=192, lowest_mm=-10, step_mm=step_mm)
        for view in (DEFAULT_VIEW, View((*windows_of([SIGMOID]), BRAIN), 300)):
            plain = network_input(head.hu, head.spacing_mm, view, frame)
            other = Scan(head.hu, head.spacing_mm, frame).on_device(view, CPU)
            assert isinstance(other.pictures, Tensor) and other.pictures.shape == plain.pictures.shape
            assert np.abs(plain.pictures - other.pictures.numpy()).max() < SAME
            assert (other.frame, other.shape) == (plain.frame, plain.shape)
            assert np.array_equal(other.centres, plain.centres)
            assert np.allclose(other.triplets().numpy(), plain.triplets(), atol=SAME)

    def test_and_so_is_what_a_pipeline_reads_in_them(self, head: PhantomVolume) -> None:
        default = load_pipeline("default", "cpu")
        assert isinstance(default, EnsemblePipeline)
        for part in (*default.parts, _floors()):
            assert isinstance(part, PicturePipeline)
            scan = Scan(head.hu, head.spacing_mm)
            require_alike(
                part.read(scan.pictures(part.view), head.spacing_mm),
                part.read(scan.on_device(part.view, CPU), head.spacing_mm),
                10 * SAME,
            )

    def test_values_travel_as_int16_only_where_that_loses_nothing(self) -> None:
        whole = np.array([[-1024.0, 3071.0]], np.float32)
        assert packed(whole).dtype == np.int16
        for value in (0.5, 40000.0, np.nan):
            other = np.array([[0.0, value]], np.float32)
            assert packed(other).dtype == np.float32


class TestChoice:
    def test_bfloat16_where_a_gpu_computes_in_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(device.torch.cuda, "is_available", lambda: True)
        for able, wished, expected in (
            (True, "auto", "bfloat16"),
            (False, "auto", "float32"),
            (True, "float32", "float32"),
        ):
            monkeypatch.setattr(device.torch.cuda, "is_bf16_supported", lambda able=able, **_: able)
            assert choose_runtime(Wish(precision=wished)) == Runtime("cuda", expected)
        with pytest.raises(PermanentError, match="does not compute in bfloat16"):
            monkeypatch.setattr(device.torch.cuda, "is_bf16_supported", lambda **_: False)
            choose_runtime(Wish(precision="bfloat16"))

    def test_what_would_run_is_said_in_words(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert choose_runtime(Wish("cpu", "bfloat16", True)).words == "cpu, bfloat16, torch.compile"
        monkeypatch.setattr(device.torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
        assert Runtime("cuda", "bfloat16").words == "cuda (NVIDIA H200), bfloat16"

    def test_openvino_computes_in_float32(self) -> None:
        if not device.compiled.available():
            pytest.skip("openvino is not installed")
        assert choose_runtime(Wish(OPENVINO)).words == "openvino, float32"
        with pytest.raises(PermanentError, match="openvino computes in float32"):
            choose_runtime(Wish(OPENVINO, "bfloat16"))
