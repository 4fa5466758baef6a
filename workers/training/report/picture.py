"""What every picture of the report shares: its frame, its colours, and a legend that covers no data."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from node.domain.findings import CLASSES

COLOURS = dict(zip(CLASSES, ("#222222", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#b8860b"), strict=True))
DPI = 110
WITH, WITHOUT = "#d55e00", "#0072b2"
"""With and without haemorrhage; told apart by colour-blind readers too (Okabe and Ito)."""


@dataclass(frozen=True)
class Picture:
    """One figure, the file name it goes by, and what it shows in words."""

    name: str
    caption: str
    figure: Figure

    def png(self) -> bytes:
        """The same bytes for the same figure."""
        buffer = BytesIO()
        self.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return buffer.getvalue()


def pair(height: float = 5.4) -> tuple[Figure, list[Axes]]:
    """Two panels: slices and studies."""
    figure = Figure(figsize=(11.0, height), layout="constrained")
    return figure, list(figure.subplots(1, 2))


def line(name: str) -> dict[str, Any]:
    """Colour and width of a class."""
    return {"color": COLOURS[name], "linewidth": 2.2 if name == "any" else 1.3}


def below(axes: Axes, title: str | None = None, columns: int = 1, gap: float = 0.13) -> None:
    """The legend under the axes, where it covers nothing."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -gap), fontsize=9, frameon=False, title=title, ncols=columns,
        alignment="left",
    )  # fmt: skip


def nothing(axes: Axes, title: str) -> None:
    """A panel for which there are no cases."""
    axes.set_axis_off()
    axes.set_title(title)
    axes.text(0.5, 0.5, "not told by these cases", ha="center", va="center", color="#666666")


def square(axes: Axes, title: str, across: str, up: str) -> None:
    """Both axes from 0 to 1."""
    axes.set(xlabel=across, ylabel=up, title=title, xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axes.set_aspect("equal")
    axes.grid(alpha=0.25)
