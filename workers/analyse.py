"""One volume through one pipeline: classify, alert, segment, explain, measure. Stores and sends nothing.

The pipeline sees the canonical volume in even steps; everything that leaves here is in source orientation
again, slice by slice. A model that answers nonsense stops the analysis: read as numbers, NaN would look like
a negative result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import PermanentError
from node.domain.findings import (
    CLASSES,
    SUBTYPES,
    ClassFinding,
    Findings,
    SegmentationFinding,
    SliceFinding,
    Status,
)
from node.domain.instance import SliceRef
from node.domain.prior import Prior, compare
from node.domain.priority import MIN_MASK_ML, consistency, priority
from workers.even import EvenSlices, even_slices
from workers.measure import measured, reaches_edge
from workers.models.contract import (
    MAP_SIZE,
    Classification,
    Pipeline,
    require_classification,
    require_probabilities,
)
from workers.models.several import Sized, classify_all, prepare
from workers.volume import Volume

Clock = Callable[[], float]
EDGE_REACHED = "the segmentation reaches the first or last slice: some of it may lie outside the scan"


@dataclass(frozen=True, eq=False)
class Analysis:
    """What an analysis leaves: `masks` bool (z, y, x) and `heat` uint8 (z, h, w), in source orientation.

    The heat map covers the field of view of each slice exactly, on a grid of its own; it shows the class
    `explained`. `subtypes` are the parts of the mask by subtype, empty where the pipeline cannot tell.
    """

    findings: Findings
    masks: NDArray[np.bool_]
    heat: NDArray[np.uint8]
    explained: str
    subtypes: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)


def with_loading(analysis: Analysis, load_s: float, notes: Sequence[str]) -> Analysis:
    """The analysis with what was known of its series before: remarks, and the time it took to read."""
    findings = analysis.findings
    timings = {"load": load_s, **findings.timings_s, "total": findings.timings_s["total"] + load_s}
    warnings = (*notes, *findings.warnings)
    return replace(analysis, findings=replace(findings, timings_s=timings, warnings=warnings))


def with_prior(analysis: Analysis, prior: Prior) -> Analysis:
    """The analysis with what changed since an earlier head CT. Priority and classes stay as they are."""
    findings = analysis.findings
    warnings = (*findings.warnings, *((prior.remark,) if prior.remark else ()))
    comparison = compare(findings, prior.found) if prior.found else None
    return replace(analysis, findings=replace(findings, comparison=comparison, warnings=warnings))


class _Stopwatch:
    """Seconds spent in each named step, each counted from the end of the one before."""

    def __init__(self, clock: Clock, before: Mapping[str, float] | None = None) -> None:
        """`before`: steps that were measured already."""
        self._clock = clock
        self._last = clock()
        self.steps_s: dict[str, float] = dict(before or {})

    def lap(self, name: str) -> None:
        now = self._clock()
        self.steps_s[name] = now - self._last
        self._last = now

    def timings_s(self) -> dict[str, float]:
        return {**self.steps_s, "total": sum(self.steps_s.values())}


@dataclass(frozen=True, eq=False)
class Ready:
    """A volume as the networks of a pipeline will see it: `seen` in even steps."""

    volume: Volume
    pipeline: Pipeline
    seen: EvenSlices
    prepared: Sized
    timings_s: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Classified:
    """What is known once the networks have run: `early` is the first word; pictures are still to be made."""

    ready: Ready
    classification: Classification
    early: Findings
    timings_s: Mapping[str, float]


def make_ready(volume: Volume, pipeline: Pipeline, clock: Clock = time.perf_counter) -> Ready:
    """All that comes before the networks, in any thread. Raises PermanentError as the pipeline does."""
    watch = _Stopwatch(clock)
    seen = even_slices(volume)
    watch.lap("canonical")
    prepared = prepare(pipeline, seen.hu, volume.spacing_mm)
    watch.lap("prepare")
    return Ready(volume, pipeline, seen, prepared, watch.steps_s)


def run_networks(ready: Sequence[Ready]) -> list[Classification]:
    """Of one or of several, which are all for the same pipeline. What is wrong with one is raised for all."""
    answers = classify_all(ready[0].pipeline, [one.prepared for one in ready])
    return [
        require_classification(answer, len(one.seen.hu)) for one, answer in zip(ready, answers, strict=True)
    ]


def first_word(
    ready: Ready, classification: Classification, network_s: float, series_instance_uid: str, revision: int
) -> Classified:
    """Classes and priority; `network_s` is how long the networks took.

    Raises PermanentError MODEL_OUTPUT_INVALID.
    """
    volume, pipeline = ready.volume, ready.pipeline
    thresholds = _thresholds(pipeline)
    slices = _of_source(ready, classification.slices)
    classes = _classes(classification.series, slices, thresholds, volume.slices)
    early = Findings(
        model=pipeline.identity,
        series_instance_uid=series_instance_uid,
        revision=revision,
        status=Status.ANALYSED,
        classes=classes,
        priority=priority(classes, thresholds),
        warnings=volume.warnings,
        not_evaluated=tuple(name for name in CLASSES if name not in classes),
    )
    return Classified(ready, classification, early, {**ready.timings_s, "classify": network_s})


def complete(known: Classified, clock: Clock = time.perf_counter, alert_s: float | None = None) -> Analysis:
    """The slower steps, after the first word; `alert_s` is how long that took to store."""
    ready, classification, classes = known.ready, known.classification, known.early.classes
    volume, pipeline, hu = ready.volume, ready.pipeline, ready.seen.hu
    watch = _Stopwatch(clock, known.timings_s if alert_s is None else {**known.timings_s, "alert": alert_s})
    masks, subtypes = _segment(ready, classification)
    watch.lap("segment")
    explained = _deciding(classes)
    heat = _heat(pipeline.explain(hu, volume.spacing_mm, classification, explained), len(hu))
    watch.lap("explain")
    found = measured(masks, volume, subtypes) if pipeline.draws else None
    agreement = consistency(classes, found.volume_ml, _beyond_noise(found)) if found else None
    watch.lap("measure")
    thresholds = _thresholds(pipeline)
    slices = _of_source(ready, classification.slices)
    findings = replace(
        known.early,
        slices=_slices(slices, volume, thresholds),
        segmentation=found,
        consistency=agreement,
        priority=priority(classes, thresholds, agreement),
        timings_s=watch.timings_s(),
        warnings=(*volume.warnings, *((EDGE_REACHED,) if reaches_edge(masks) else ())),
    )
    return Analysis(
        findings, masks, _bytes(volume.from_canonical(ready.seen.spread(heat))), explained, subtypes
    )


def analyse(
    volume: Volume,
    pipeline: Pipeline,
    *,
    series_instance_uid: str,
    revision: int,
    on_classified: Callable[[Findings], None] | None = None,
    clock: Clock = time.perf_counter,
) -> Analysis:
    """Analyse one revision of one series.

    `on_classified` is called with classes and priority as soon as they are known, before the slower steps;
    what it raises ends the analysis. Raises PermanentError MODEL_OUTPUT_INVALID.
    """
    ready = make_ready(volume, pipeline, clock)
    began = clock()
    (classification,) = run_networks([ready])
    known = first_word(ready, classification, clock() - began, series_instance_uid, revision)
    alert_s = None
    if on_classified is not None:
        began = clock()
        on_classified(known.early)
        alert_s = clock() - began
    return complete(known, clock, alert_s)


def _beyond_noise(found: SegmentationFinding) -> set[str]:
    """The subtypes of which the mask holds more than noise."""
    return {name for name, part_ml in found.subtypes_ml.items() if part_ml >= MIN_MASK_ML}


def _of_source(ready: Ready, slices: NDArray[np.float32]) -> NDArray[np.float32]:
    """What was said of the slices seen, (z, 6) in source order."""
    return ready.volume.slices_from_canonical(ready.seen.spread(slices))


def _segment(
    ready: Ready, classification: Classification
) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.bool_]]]:
    """The mask and its parts by subtype, in source orientation; empty where the pipeline draws none."""
    volume, pipeline, hu = ready.volume, ready.pipeline, ready.seen.hu
    if not pipeline.draws:
        return np.zeros(volume.hu.shape, bool), {}
    mask = _mask(pipeline.segment(hu, volume.spacing_mm, classification), hu.shape, "mask")
    parts = pipeline.segment_subtypes(hu, volume.spacing_mm, classification)
    return _to_source(mask, ready), {
        name: _to_source(_mask(parts[name], hu.shape, f"{name} mask"), ready)
        for name in SUBTYPES
        if name in parts and parts[name].any()
    }


def _to_source(mask: NDArray[np.bool_], ready: Ready) -> NDArray[np.bool_]:
    return np.ascontiguousarray(ready.volume.from_canonical(ready.seen.spread(mask)))


def _thresholds(pipeline: Pipeline) -> Mapping[str, float]:
    """Of the classes it knows, in the order of CLASSES. "any" must be among them."""
    missing = [name for name in CLASSES if name in pipeline.knows and name not in pipeline.thresholds]
    if missing or "any" not in pipeline.knows:
        text = f"the model gives no threshold for {', '.join(missing or ['any'])}; check its operating points"
        raise PermanentError("MODEL_OUTPUT_INVALID", text)
    return {name: pipeline.thresholds[name] for name in CLASSES if name in pipeline.knows}


def _classes(
    series: NDArray[np.float32],
    slices: NDArray[np.float32],
    thresholds: Mapping[str, float],
    refs: tuple[SliceRef, ...],
) -> dict[str, ClassFinding]:
    """The classes that have a threshold, of series (6,), with the slice of (z, 6) that speaks loudest for it.

    A subtype is a kind of haemorrhage: it can be present only where "any" is. Subtype thresholds rest
    on few patients, and must not raise alarms of their own.
    """
    loudest = slices.argmax(axis=0)
    any_present = bool(series[CLASSES.index("any")] >= thresholds["any"])
    return {
        name: ClassFinding(
            float(value), any_present and bool(value >= thresholds[name]), *refs[loudest[index]]
        )
        for index, (name, value) in enumerate(zip(CLASSES, series, strict=True))
        if name in thresholds
    }


def _slices(
    slices: NDArray[np.float32], volume: Volume, known: Mapping[str, float]
) -> tuple[SliceFinding, ...]:
    """The classes `known` of each slice (z, 6)."""
    return tuple(
        SliceFinding(
            ref.sop_instance_uid,
            float(place),
            {name: float(value) for name, value in zip(CLASSES, values, strict=True) if name in known},
            ref.frame_number,
        )
        for ref, place, values in zip(volume.slices, volume.positions_mm, slices, strict=True)
    )


def _deciding(classes: Mapping[str, ClassFinding]) -> str:
    """The class to explain: the most probable subtype present, else "any"."""
    present = [name for name in SUBTYPES if name in classes and classes[name].present]
    return max(present, key=lambda name: classes[name].probability, default="any")


def _mask(mask: NDArray[np.bool_], shape: tuple[int, ...], what: str) -> NDArray[np.bool_]:
    if mask.shape != shape or mask.dtype != np.bool_:
        text = f"{what} is {mask.dtype} {mask.shape} where bool {shape} is due; check the model"
        raise PermanentError("MODEL_OUTPUT_INVALID", text)
    return mask


def _heat(heat: NDArray[np.float32], slices: int) -> NDArray[np.float32]:
    """The maps once they are checked: any grid will do, if it is one a slice."""
    grid = heat.shape[1:] if heat.ndim == 3 else (MAP_SIZE, MAP_SIZE)
    require_probabilities(heat, (slices, *grid), "explanation maps")
    return heat


def _bytes(heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """0..1 as 0..255."""
    return np.ascontiguousarray(np.rint(heat * 255).astype(np.uint8))
