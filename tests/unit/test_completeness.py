"""When a series is taken for complete, and what counts as a gap between its slices."""

from __future__ import annotations

from itertools import accumulate

import pytest

from node.domain.completeness import Complete, Evidence, Wait, completeness, find_gaps
from node.domain.instance import Instance, Vector

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
TILTED = (1.0, 0.0, 0.0, 0.0, 0.9483237, -0.3173047)
QUIET_S, MAX_WAIT_S = 10.0, 120.0


def slices(
    positions_mm: list[float],
    thickness_mm: list[float | None] | float | None = 5.0,
    orientation: Vector | None = AXIAL,
) -> list[Instance]:
    thick = thickness_mm if isinstance(thickness_mm, list) else [thickness_mm] * len(positions_mm)
    return [
        Instance(
            f"1.{k}", "", "1", "1", "", position=(0.0, 0.0, z), orientation=orientation, slice_thickness=t
        )
        for k, (z, t) in enumerate(zip(positions_mm, thick, strict=True))
    ]


def stepped(*steps_mm: float) -> list[float]:
    return list(accumulate(steps_mm, initial=0.0))


GE_Z = [5.836 + 4.22 * k for k in range(14)] + [61.836 + 7.38 * k for k in range(14)]
GE_THICK: list[float | None] = [4.0] * 14 + [7.0] * 14

GAPS = [
    ("regular", slices(stepped(*[5.0] * 30)), 0),
    ("one missing", slices(stepped(5, 5, 5, 10, 5, 5, 5)), 1),
    ("first step too", slices(stepped(10, 5, 5, 5, 5)), 1),
    ("two apart missing", slices(stepped(5, 5, 10, 5, 5, 10, 5, 5)), 2),
    ("two side by side", slices(stepped(5, 5, 5, 10, 10, 5, 5, 5)), 2),
    ("without thickness", slices(stepped(5, 5, 5, 10, 5, 5, 5), None), 1),
    ("overlapping reconstruction", slices(stepped(3, 3, 3, 6, 3, 3, 3), 5.0), 1),
    ("interval scan", slices(stepped(*[10.0] * 12), 5.0), 0),
    ("GE head, tilted, 4 then 7 mm", slices(GE_Z, GE_THICK, TILTED), 0),
    ("the same without thickness", slices(GE_Z, None, TILTED), 0),
    ("the same, one missing in each part", slices(GE_Z[:5] + GE_Z[6:20] + GE_Z[21:], None, TILTED), 2),
    ("4 then 8 mm", slices(stepped(*[4] * 8, *[8] * 8), [4.0] * 9 + [8.0] * 8), 0),
    ("4 then 8 mm, meeting at 6", slices(stepped(*[4] * 8, 6, *[8] * 7), [4.0] * 9 + [8.0] * 8), 0),
    ("missing at the join", slices(stepped(*[4] * 8, 14, *[8] * 7), [4.0] * 9 + [8.0] * 8), 1),
    ("jitter", slices(stepped(1, 3, 1, 3, 1, 3, 1, 3), 3.0), 0),
    ("duplicates", slices([0, 0, 5, 5, 10, 10, 15, 15]), 0),
    ("one slice", slices([0.0]), 0),
    ("two slices side by side", slices([0.0, 5.0]), 0),
    ("two slices apart", slices([0.0, 15.0]), 1),
    ("no geometry", slices([0, 5, 20], orientation=None), 0),
    ("nothing", [], 0),
]


@pytest.mark.parametrize(("instances", "count"), [row[1:] for row in GAPS], ids=[row[0] for row in GAPS])
def test_gaps(instances: list[Instance], count: int) -> None:
    assert len(find_gaps(instances)) == count
    assert find_gaps(instances[::-1]) == find_gaps(instances)


def test_a_localizer_in_the_series_is_another_stack() -> None:
    coronal = slices([0.0], orientation=(1.0, 0.0, 0.0, 0.0, 0.0, -1.0))
    assert find_gaps(slices(stepped(5, 5, 5, 5)) + coronal) == ()


def evidence(
    instances: list[Instance], associations_open: int = 0, aborted: bool = False, expected: int | None = None
) -> Evidence:
    return Evidence(1000.0, associations_open, instances, aborted, expected)


WHOLE, GAPPY = slices(stepped(*[5.0] * 30)), slices(stepped(5, 5, 5, 10, 5, 5, 5))


def test_whole_and_released_waits_for_quiet_only() -> None:
    assert completeness(evidence(WHOLE), 1009.9, QUIET_S, MAX_WAIT_S) == Wait(
        1010.0,
        completeness(evidence(WHOLE), 1005.0, QUIET_S, MAX_WAIT_S).why,  # type: ignore[union-attr]
    )
    assert completeness(evidence(WHOLE), 1010.0, QUIET_S, MAX_WAIT_S) == Complete()


@pytest.mark.parametrize(
    ("doubtful", "code"),
    [
        (evidence(GAPPY), "GAPS"),
        (evidence(WHOLE, associations_open=1), "ASSOCIATION_OPEN"),
        (evidence(WHOLE, aborted=True), "ASSOCIATION_ABORTED"),
        (evidence(WHOLE, expected=40), "COUNT"),
    ],
)
def test_doubts_wait_to_the_end_and_are_noted(doubtful: Evidence, code: str) -> None:
    early = completeness(doubtful, 1010.0, QUIET_S, MAX_WAIT_S)
    assert isinstance(early, Wait)
    assert (early.until, early.why.code) == (1120.0, code)
    late = completeness(doubtful, 1120.0, QUIET_S, MAX_WAIT_S)
    assert isinstance(late, Complete)
    assert [note.code for note in late.notes] == [code]


def test_a_full_count_settles_gaps_and_aborts() -> None:
    counted = evidence(GAPPY, aborted=True, expected=len(GAPPY))
    assert completeness(counted, 1010.0, QUIET_S, MAX_WAIT_S) == Complete()


@pytest.mark.parametrize("instances", [[], slices([0.0]), slices([0, 5], orientation=None)])
def test_what_has_no_geometry_waits_for_quiet_only(instances: list[Instance]) -> None:
    assert completeness(evidence(instances), 1010.0, QUIET_S, MAX_WAIT_S) == Complete()


def test_a_quiet_time_beyond_the_longest_wait_still_ends() -> None:
    decision = completeness(evidence(GAPPY), 1030.0, 30.0, 20.0)
    assert isinstance(decision, Complete)
