"""How a figure is written for a reader: always with its interval, and with words where it has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNTOLD = "–"
NO_INTERVAL = "no interval"
NO_SPREAD = "no spread"


def plain(value: float | None, digits: int = 3) -> str:
    """A bare number with a true minus sign, or a dash."""
    return UNTOLD if value is None else f"{value:.{digits}f}".replace("-", "−")


def shown(figure: Sequence[float | None] | None, digits: int = 3) -> str:
    """'0.897 (0.855–0.934)'; a dash where the figure is undefined."""
    if not figure or figure[0] is None:
        return UNTOLD
    value, low, high = figure
    if low is None or high is None:
        return f"{plain(value, digits)} ({NO_INTERVAL})"
    if low == high:
        return f"{plain(value, digits)} ({NO_SPREAD})"
    between = " to " if low < 0 or high < 0 else "–"
    return f"{plain(value, digits)} ({plain(low, digits)}{between}{plain(high, digits)})"


def fact(value: Any) -> str:
    """Anything a caller tells of a run, in one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return UNTOLD
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {fact(item)}" for key, item in value.items())
    return ", ".join(map(fact, value)) if isinstance(value, (list, tuple)) else str(value)
