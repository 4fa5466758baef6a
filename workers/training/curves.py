"""Learning curves as a picture. Decides nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from workers.training.fit import History

SMOOTHED = 20
"""Training losses are averaged over so many steps, or over a quarter of a shorter run."""


def draw(history: History, title: str, path: Path) -> None:
    """Training loss, validation loss and validation AUC by step, with the step that was best."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    losses = np.asarray(history.training)
    width = max(1, min(SMOOTHED, len(losses) // 4))
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    shape = "-" if len(smooth) > 1 else "."
    axes.plot(np.arange(width, len(losses) + 1), smooth, shape, label=f"training loss (mean of {width})")
    axes.set(xlabel="step", ylabel="loss", title=title, ylim=(0, None))
    if history.validation:
        steps, validation, auc = (np.asarray(part) for part in zip(*history.validation, strict=True))
        axes.plot(steps, validation, "o-", label="validation loss")
        axes.axvline(steps[history.best], color="0.6", linestyle=":", label="best validation loss")
        right = axes.twinx()
        right.plot(steps, auc, "s--", color="C2", label="validation: slice AUC of any")
        right.set(ylim=(0.4, 1.0), ylabel="AUC")
        lines = [*axes.get_lines(), *right.get_lines()]
        figure.legend(lines, [str(line.get_label()) for line in lines], loc="outside lower center", ncols=2)
    else:
        figure.legend(loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
