"""The recipes this project can train, in one visible tuple. Extend it; nothing registers itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.training.augment import Augmentation
from workers.training.losses import LossWeights


@dataclass(frozen=True)
class Stage:
    """One run of the optimiser: `steps` batches; `phantom_share` of each batch is phantoms."""

    name: str
    steps: int
    batch: int
    learning_rate: float
    phantom_share: float
    positive_share: float = 0.45
    weight_decay: float = 0.02
    ema: float = 0.995


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is trained. Changing any of it makes another model.

    The fine-tuning stages follow one another, each from the averaged weights of the one before;
    the networks at the end of each are shipped together (snapshots of restarted cosine cycles:
    Loshchilov & Hutter, arXiv:1608.03983; Huang et al., arXiv:1704.00109).
    """

    name: str
    summary: str
    pretrain: Stage
    finetune: tuple[Stage, ...]
    widths: tuple[int, ...] = (32, 64, 128, 192)
    dropout: float = 0.3
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: LossWeights = field(default_factory=LossWeights)


RECIPES: tuple[Recipe, ...] = (
    Recipe(
        name="default",
        summary="Multi-task 2.5-D U-Net: phantoms first, then CT-ICH with phantom replay.",
        pretrain=Stage("pretrain", steps=800, batch=48, learning_rate=3e-3, phantom_share=1.0),
        finetune=(
            Stage("first", steps=300, batch=32, learning_rate=1e-3, phantom_share=0.2, ema=0.99),
            Stage("second", steps=240, batch=32, learning_rate=8e-4, phantom_share=0.2, ema=0.99),
        ),
    ),
)


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises KeyError with the names there are."""
    for known in RECIPES:
        if known.name == name:
            return known
    raise KeyError(f"no recipe {name!r}: there are {', '.join(known.name for known in RECIPES)}")
