"""Numbers to lines and bars: points for inline SVG. Draws nothing itself, knows no patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WIDTH, HEIGHT = 640, 160
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 22
SQUARE, MARGIN = 400, 36


@dataclass(frozen=True)
class Line:
    """One class along the slices; `points` is the attribute of an SVG polyline."""

    name: str
    words: str
    points: str


@dataclass(frozen=True)
class Bar:
    """A stage of the way; `x` and `width` in per mille of the whole."""

    name: str
    begin: float
    seconds: float
    x: float
    width: float


@dataclass(frozen=True)
class Column:
    """One hour of a plot; heights in per cent of the highest column."""

    begin: float
    count: int
    height: float
    median_s: float | None = None
    worst_s: float | None = None
    median_height: float = 0.0
    worst_height: float = 0.0


@dataclass(frozen=True)
class Course:
    """A feature over time: quartiles of groups of equal size, on the plot of WIDTH × HEIGHT.

    `band` is the attribute of an SVG polygon between the quartiles, `middle` of a polyline of medians;
    `usual` the heights (y) of quartile, median, quartile of the reference; `ticks` (y, words).
    """

    band: str
    middle: str
    usual: tuple[float, float, float] | None
    ticks: tuple[tuple[float, str], ...]
    first_at: float
    last_at: float
    group: int


def course(
    values: Sequence[tuple[float, float]], usual: Sequence[float] = (), groups: int = 48, fewest: int = 10
) -> Course | None:
    """Of values (time, value) in order of time; `usual` are known quartiles. None for too few values."""
    size = max(fewest, -(-len(values) // groups))
    parts = [values[i : i + size] for i in range(0, len(values) - fewest + 1, size)]
    if len(parts) < 2:
        return None
    quartiles = [np.quantile([v for _, v in part], (0.25, 0.5, 0.75)) for part in parts]
    times = [part[len(part) // 2][0] for part in parts]
    every = [float(v) for row in quartiles for v in row] + [float(v) for v in usual]
    low, high = min(every), max(every)
    room = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room

    def y(value: float) -> float:
        return y_of((value - low) / (high - low))

    def x(time: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (time - times[0]) / (times[-1] - times[0] or 1)

    line = [
        " ".join(f"{x(t):.1f},{y(q[k]):.1f}" for t, q in zip(times, quartiles, strict=True)) for k in range(3)
    ]
    back = " ".join(reversed(line[0].split(" ")))
    ticks = tuple((y(v), f"{v:.3g}") for v in np.linspace(low + room, high - room, 3))
    heights = (y(usual[0]), y(usual[1]), y(usual[2])) if len(usual) == 3 else None
    return Course(f"{line[2]} {back}", line[1], heights, ticks, times[0], times[-1], size)


@dataclass(frozen=True)
class Dot:
    """One series that two models read: both probabilities of "any" on a square of SQUARE. `kind`: what a
    reader saw (bleeding, clear, unread); `differs`: only one of the models calls it.
    """

    x: float
    y: float
    kind: str
    differs: bool
    words: str
    study: str | None


def scatter(rows: Sequence[Mapping[str, Any]]) -> list[Dot]:
    """The active model to the right, the shadow model upwards; what a reader saw comes last, on top."""
    dots = [_dot(row) for row in rows]
    return sorted(dots, key=lambda dot: (dot.kind != "unread", dot.differs))


def _dot(row: Mapping[str, Any]) -> Dot:
    active, shadow = row["active_any_probability"], row["shadow_any_probability"]
    calls = row["active_present"] & 1, row["shadow_present"] & 1
    kind = "unread"
    if (row["told"] or 0) & 1:
        kind = "bleeding" if calls[0] != (row["wrong"] or 0) & 1 else "clear"
    said = {"unread": "not judged", "bleeding": "a reader saw a haemorrhage", "clear": "a reader saw none"}
    words = f"active {active:.2f}, shadow {shadow:.2f}; {said[kind]}"
    side = SQUARE - 2 * MARGIN
    return Dot(
        MARGIN + side * active,
        SQUARE - MARGIN - side * shadow,
        kind,
        calls[0] != calls[1],
        words,
        row["study_instance_uid"],
    )


def along_slices(slices: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> list[Line]:
    """Probabilities along the slices, one line a class that has any; "any" comes last, on top."""
    lines = []
    for name in [n for n in names if n != "any"] + ["any"]:
        known = [(i, values[name]) for i, values in enumerate(slices) if name in values]
        if known:
            points = " ".join(f"{x_of(i, len(slices)):.1f},{y_of(p):.1f}" for i, p in known)
            lines.append(Line(name, names[name], points))
    return lines


def x_of(index: int, count: int) -> float:
    """Middle of a slice's place on the plot."""
    return LEFT + (WIDTH - LEFT - RIGHT) * (index + 0.5) / max(count, 1)


def y_of(probability: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(max(probability, 0.0), 1.0))


def waterfall(stages: Sequence[tuple[str, float | None, float | None]]) -> list[Bar]:
    """Stages that have begun and ended, on one scale; a stage that went back in time lasts 0 s."""
    known = [(name, begin, end) for name, begin, end in stages if begin is not None and end is not None]
    if not known:
        return []
    first = min(begin for _, begin, _ in known)
    whole = max(max(end for _, _, end in known) - first, 1e-9)
    bars = []
    for name, begin, end in known:
        seconds = max(end - begin, 0.0)
        bars.append(Bar(name, begin, seconds, 1000 * (begin - first) / whole, 1000 * seconds / whole))
    return bars


def by_hour(rows: Sequence[Mapping[str, Any]], now: float, hours: int = 24) -> list[Column]:
    """How many analyses ended in each hour, and how long the way from the last slice to the report took."""
    end = (int(now) // 3600 + 1) * 3600
    held: list[list[Mapping[str, Any]]] = [[] for _ in range(hours)]
    for row in rows:
        place = hours - 1 - int((end - row["analysed_at"]) // 3600)
        if 0 <= place < hours:
            held[place].append(row)
    most = max((len(rows) for rows in held), default=0) or 1
    times = [
        sorted(r["first_sent_at"] - r["received_at"] for r in rows if r["first_sent_at"]) for rows in held
    ]
    longest = max((t[-1] for t in times if t), default=0.0) or 1.0
    columns = []
    for place, (rows_, took) in enumerate(zip(held, times, strict=True)):
        median = took[len(took) // 2] if took else None
        columns.append(
            Column(
                end - (hours - place) * 3600,
                len(rows_),
                100 * len(rows_) / most,
                median,
                took[-1] if took else None,
                100 * (median or 0) / longest,
                100 * (took[-1] if took else 0) / longest,
            )
        )
    return columns
