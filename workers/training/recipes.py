"""The recipes this project can train, in one visible tuple. Extend it; nothing registers itself.

A recipe is all that decides what is trained: network, view, stages of the optimiser, augmentation, loss.
Sizes and lengths are those of a machine with two cores; the published ones are named where they differ.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

from workers.training.augment import STILL, Augmentation
from workers.training.losses import LossWeights


@dataclass(frozen=True)
class Stage:
    """One run of the optimiser over `steps` batches, or `epochs` times as many slices as there are.

    `phantom_share` of each batch is phantoms. `positive_share` None draws slices as they occur, and
    `mid_volume` those amid the head more often. `ema` > 0 averages the weights. `patience` > 0 stops after
    so many epochs without a better validation loss and goes back to the best. `decoupled` weight decay is
    AdamW's, otherwise it is Adam's L2 term.
    """

    name: str
    batch: int
    learning_rate: float
    steps: int = 0
    epochs: float = 0.0
    schedule: str = "cosine"
    phantom_share: float = 0.0
    positive_share: float | None = 0.45
    mid_volume: bool = False
    weight_decay: float = 0.02
    decoupled: bool = True
    ema: float = 0.0
    patience: int = 0

    def length(self, slices: int) -> int:
        """Steps in all, for a corpus of so many slices."""
        return self.steps or max(1, round(self.epochs * slices / self.batch))


@dataclass(frozen=True)
class Rules:
    """How thresholds are chosen from predictions of unseen patients.

    `series`: "specificity" (a fixed one) or "f1" (the best); `mask`: "fixed" (`mask_threshold`) or "area"
    (the best Pearson correlation of drawn and true areas).
    """

    series: str = "specificity"
    mask: str = "fixed"
    mask_threshold: float = 0.5


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is trained. Changing any of it makes another model.

    `family` is one of `workers.models.families`. The `stages` follow one another, each from the weights of
    the one before; the networks at the end of the last `members` of them are shipped together (snapshots of
    restarted cosine cycles: Loshchilov & Hutter, arXiv:1608.03983; Huang et al., arXiv:1704.00109).
    `pretrain` sees phantoms alone, `phantoms` are how many are drawn. `parts` are recipes this one is put
    together from, and `weights` how much each says in an ensemble. `kept` blocks of an EfficientNet stay as
    its public weights (`--init`) have them; without those, none. Besides the patients as they are, `scanners`
    more readings of each are learned from, as other scanners may show them.
    """

    name: str
    summary: str
    family: str
    size: int
    stages: tuple[Stage, ...] = ()
    pretrain: Stage | None = None
    members: int = 1
    parts: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    widths: tuple[int, ...] = (32, 64, 128, 192)
    dropout: float = 0.3
    reconstruct: bool = False
    kept: int = 0
    phantoms: int = 800
    scanners: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: LossWeights = field(default_factory=LossWeights)
    rules: Rules = field(default_factory=Rules)

    @property
    def told(self) -> dict[str, Any]:
        """What differs from the plain recipe: a field added later changes no recipe that leaves it alone."""
        plain = {one.name: _plain(one) for one in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != plain[name]}

    def adjusted(self, size: int | None, steps: int | None, scanners: int | None = None) -> Recipe:
        """The same at another size, or with so many steps a stage or scanners. None: as it is."""
        sized = replace(self, size=size) if size else self
        shown = sized if scanners is None else replace(sized, scanners=scanners)
        return shown if steps is None else shown._shortened(steps)

    def _shortened(self, steps: int) -> Recipe:
        pretrain = replace(self.pretrain, steps=steps) if self.pretrain else None
        stages = tuple(replace(stage, steps=steps, patience=0) for stage in self.stages)
        return replace(self, stages=stages, pretrain=pretrain)


def _plain(one: Field[Any]) -> Any:
    """The value of a field that nobody set, as `asdict` writes it; None where one must be given."""
    value = one.default_factory() if one.default_factory is not MISSING else one.default
    if value is MISSING:
        return None
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


FLIP_AND_TURN = replace(STILL, rotation_deg=10.0, flip=0.5)
"""Flips and ±10° rotation: all that the comparison of ResNet18 and DenseNet121 used."""
WINNER = replace(
    STILL, rotation_deg=30.0, flip=0.5, scale=0.1, aspect=0.1, shift=0.1, erase=0.5, slice_swap=0.5
)
"""The RSNA 2019 winner's; its crop of 0.6 to 0.99 of the picture is a larger scale here."""
ELASTIC = replace(STILL, rotation_deg=10.0, flip=0.5, scale=0.2, shear=0.1, elastic=0.03, offset=0.08)
"""Elastic, shear, zoom and brightness, as for the small U-Net."""

RIM = Augmentation(scale=0.1, aspect=0.04, shift=0.04, gain=0.1, offset=0.03, noise=0.03)
"""Mild where the default network's is strong: the rim is found anew on every changed picture."""

_NYU = Stage(
    "fit",
    32,
    1e-4,
    epochs=10,
    schedule="halving",
    positive_share=None,
    weight_decay=0,
    decoupled=False,
    patience=4,
)
_NYU_SUMMARY = "brain, subdural and bone window; BCE, Adam 1e-4 halved, flips and ±10° rotation."
_WINNER = Stage(
    "fit",
    16,
    5e-4,
    epochs=3,
    schedule="restarts",
    positive_share=None,
    mid_volume=True,
    weight_decay=2e-5,
    decoupled=False,
)

_ALONG = Stage("sequence", 32, 3e-4, steps=400, weight_decay=0)
"""A sequence model over the whole CT, taught on what trained networks say."""

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        "default",
        "Ensemble of multitask-sequence, efficientnet-3window and rim-sequence; the first and the last draw.",
        family="ensemble",
        size=128,
        parts=("multitask-sequence", "efficientnet-3window", "rim-sequence"),
        weights=(2.0, 1.0, 2.0),
    ),
    Recipe(
        "multitask-phantom",
        "Multi-task 2.5-D U-Net: phantoms first, then real heads with phantom replay.",
        family="multitask",
        size=128,
        pretrain=Stage("pretrain", 48, 3e-3, steps=800, phantom_share=1.0, ema=0.995),
        stages=(
            Stage("first", 32, 1e-3, steps=300, phantom_share=0.2, ema=0.99),
            Stage("second", 32, 8e-4, steps=240, phantom_share=0.2, ema=0.99),
            Stage("third", 32, 8e-4, steps=240, phantom_share=0.2, ema=0.99),
        ),
        members=2,
        scanners=2,
    ),
    Recipe(
        "rim",
        "The rim of the brain, unrolled along the inner table of the skull: thin bleeds lie there.",
        family="rim",
        size=224,
        pretrain=Stage("pretrain", 32, 2e-3, steps=300, phantom_share=1.0, ema=0.98),
        stages=(
            Stage("first", 32, 1e-3, steps=300, phantom_share=0.25, positive_share=0.4, ema=0.98),
            Stage("second", 32, 8e-4, steps=240, phantom_share=0.25, positive_share=0.4, ema=0.98),
            Stage("third", 32, 8e-4, steps=240, phantom_share=0.25, positive_share=0.4, ema=0.98),
        ),
        members=2,
        widths=(16, 32, 64),
        phantoms=200,
        scanners=2,
        augmentation=RIM,
    ),
    Recipe(
        "multitask-sequence",
        "Sequence model over the whole CT that reads the multi-task networks; they draw as without it.",
        "multitask-sequence",
        128,
        (_ALONG,),
        parts=("multitask-phantom",),
    ),
    Recipe(
        "rim-sequence",
        "Sequence model over the whole CT that reads the networks of the rim; they draw as without it.",
        "rim-sequence",
        224,
        (_ALONG,),
        parts=("rim",),
        scanners=2,
        widths=(16, 32, 64),
        augmentation=RIM,
    ),
    Recipe(
        "multitask",
        "The same network with a third head that draws the picture again; no phantoms.",
        family="multitask",
        size=128,
        stages=(Stage("fit", 32, 2e-3, steps=400, ema=0.99),),
        reconstruct=True,
    ),
    Recipe("resnet18-3window", f"ResNet18: {_NYU_SUMMARY}", "resnet18-3window", 96, (_NYU,),
           augmentation=FLIP_AND_TURN),
    Recipe("densenet121-3window", f"DenseNet121: {_NYU_SUMMARY}", "densenet121-3window", 96, (_NYU,),
           augmentation=FLIP_AND_TURN),
    Recipe(
        "densenet121-mlp",
        "DenseNet121, Linear 512, ReLU, dropout 0.2, Linear 6; Adam 5e-4, early stopping after 8 epochs.",
        "densenet121-mlp",
        96,
        (Stage("fit", 32, 5e-4, epochs=10, schedule="constant", positive_share=None, weight_decay=2e-5,
               decoupled=False, patience=8),),
        augmentation=FLIP_AND_TURN,
    ),
    Recipe(
        "efficientnet-3window",
        "EfficientNet-Lite0 on three windows: public ImageNet weights (--init), only the last blocks taught.",
        "efficientnet-3window",
        224,
        (Stage("fit", 32, 3e-4, steps=240, phantom_share=0.2, positive_share=0.4, ema=0.99),),
        kept=11,
        phantoms=200,
        scanners=2,
    ),
    Recipe(
        "efficientnet-3slice",
        "EfficientNet-Lite0 on three slices in the wide brain window: as efficientnet-3window otherwise.",
        "efficientnet-3slice",
        224,
        (Stage("fit", 32, 3e-4, steps=200, positive_share=0.4, ema=0.99),),
        kept=11,
        augmentation=FLIP_AND_TURN,
    ),
    Recipe(
        "seresnext101-3window",
        "SE-ResNeXt101 on three windows, as the RSNA 2019 winner (who trained 80 epochs at 256 px and more).",
        "seresnext101-3window",
        96,
        (_WINNER,),
        augmentation=WINNER,
    ),
    Recipe(
        "seresnext101-3slice",
        "SE-ResNeXt101 on three slices, as the RSNA 2019 winner.",
        "seresnext101-3slice",
        96,
        (_WINNER,),
        augmentation=WINNER,
    ),
    Recipe(
        "sequence",
        "Sequence model over the whole CT that merges outputs and features of both SE-ResNeXt101.",
        "seresnext101-pair-sequence",
        96,
        (_ALONG,),
        parts=("seresnext101-3window", "seresnext101-3slice"),
        augmentation=WINNER,
    ),
    Recipe(
        "unet-small",
        "U-Net of 2 million parameters; haemorrhage is the mean mask probability (published at 256 px).",
        "unet",
        96,
        (Stage("fit", 16, 1e-3, epochs=10, positive_share=0.5, weight_decay=0, ema=0.99, patience=6),),
        augmentation=ELASTIC,
        rules=Rules(series="f1", mask="area"),
    ),
    Recipe(
        "cnn-baseline",
        "Two convolutions and six sigmoids: the floor to beat.",
        "small-cnn",
        64,
        (Stage("fit", 32, 1e-3, epochs=10, positive_share=None, weight_decay=0, patience=4),),
        augmentation=FLIP_AND_TURN,
    ),
    Recipe(
        "cnn-softmax",
        "The same with softmax and categorical loss, as published: a warning, it does not learn.",
        "small-cnn-softmax",
        64,
        (Stage("fit", 32, 1e-3, epochs=10, positive_share=None, weight_decay=0),),
        augmentation=FLIP_AND_TURN,
    ),
    Recipe(
        "gated",
        "Classification first, segmentation only where it is positive, with the agreement of both.",
        "gated",
        96,
        parts=("resnet18-3window", "unet-small"),
    ),
)  # fmt: skip


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises KeyError with the names there are."""
    for known in RECIPES:
        if known.name == name:
            return known
    raise KeyError(f"no recipe {name!r}: there are {', '.join(known.name for known in RECIPES)}")
