"""Closed outlines of a mask, for drawing as vectors. Never fills a hole, never joins what does not touch.

Coordinates are those of PS3.3 C.10.5 for PIXEL: (column, row), 0\\0 is the upper left corner of the first
pixel and 0.5\\0.5 its centre. An outline runs through the middles of the pixel edges between inside and
outside, so every pixel centre stays on its side of it and diagonal borders show no staircase.
"""

from __future__ import annotations

import numpy as np

Vertex = tuple[int, int]
Step = tuple[int, int]


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """(n, 2) points for each border of the boolean (rows, columns) mask, the last one equal to the first.

    Borders of regions run clockwise as seen, those of holes the other way; regions that only meet at a
    corner are kept apart.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return []
    corner = np.array([columns[0], rows[0]])
    leaving = _edges(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    found = []
    while leaving:
        found.append(_thinned(_trace(leaving)) + corner)
    return found


def _edges(mask: np.ndarray) -> dict[Vertex, list[Step]]:
    """The steps that leave each grid vertex (row, column), with the inside on their right-hand side."""
    padded = np.pad(np.asarray(mask, bool), 1)
    inside = padded[1:-1, 1:-1]
    sides = (  # neighbour outside, start of the edge relative to the pixel, step
        (padded[:-2, 1:-1], (0, 0), (0, 1)),
        (padded[1:-1, 2:], (0, 1), (1, 0)),
        (padded[2:, 1:-1], (1, 1), (0, -1)),
        (padded[1:-1, :-2], (1, 0), (-1, 0)),
    )
    leaving: dict[Vertex, list[Step]] = {}
    for neighbour, (down, right), step in sides:
        for row, column in np.argwhere(inside & ~neighbour).tolist():
            leaving.setdefault((row + down, column + right), []).append(step)
    return leaving


def _trace(leaving: dict[Vertex, list[Step]]) -> np.ndarray:
    """Take one border out of `leaving`: the middles of its edges as (column, row)."""
    vertex = next(iter(leaving))
    step = leaving[vertex][0]
    edges: list[tuple[Vertex, Step]] = []
    while not edges or (vertex, step) != edges[0]:
        edges.append((vertex, step))
        vertex = (vertex[0] + step[0], vertex[1] + step[1])
        turn = (step[1], -step[0])  # to the right, around the same pixel
        step = turn if turn in leaving[vertex] else leaving[vertex][0]
    for vertex, step in edges:
        leaving[vertex].remove(step)
        if not leaving[vertex]:
            del leaving[vertex]
    points = [(column + right / 2, row + down / 2) for (row, column), (down, right) in edges]
    return np.array([*points, points[0]])


def _thinned(points: np.ndarray) -> np.ndarray:
    """Without the points in the middle of a straight line."""
    ring = points[:-1]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept = ring[turns]
    return np.vstack([kept, kept[:1]])
