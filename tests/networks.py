"""Pipelines around networks of chance, small enough for a test."""

from __future__ import annotations

import torch

from node.domain.findings import ModelIdentity
from workers.models.picture import Operating
from workers.models.whole_ct import WHOLE_CT, WholeCtPipeline

WIDTHS = {"multitask-sequence": (8, 8, 16, 16), "rim-sequence": (8, 12, 16)}


def whole_ct(family: str, size: int, seed: int = 3) -> WholeCtPipeline:
    """Two networks of a family of WHOLE_CT and the sequence model that reads them; the same for a seed."""
    torch.manual_seed(seed)
    kind = WHOLE_CT[family]
    recipe = {"widths": WIDTHS[family], "dropout": 0.3}
    networks, model = kind.fresh(2, recipe["widths"], recipe["dropout"])
    states = [one.state_dict() for one in (*networks, model)]
    how = Operating.plain(class_weight=1, mask_weight=0)
    return kind.assemble(
        ModelIdentity(family, "0", ""), states, recipe, how, torch.device("cpu"), kind.view(size)
    )
