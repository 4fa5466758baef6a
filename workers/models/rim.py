"""The rim of the brain, unrolled: a network that looks along the inside of the skull. No I/O.

Epidural and subdural blood, and much of what is subarachnoid, lies against the inner table of the skull, and
is thin: on a picture of the whole head a few pixels next to something far brighter. Here that rim is
unrolled (rows are depths below the inner table, columns directions around the head), so that such blood is
a level band wherever it lies, and the other side of the head, mirrored, lies over it. What is deeper than
the band is not seen, and no blood is drawn there: this is one voice beside networks that see everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from node.domain.findings import CLASSES, ModelIdentity
from workers import preprocess
from workers.models.cam import grad_cam_pp
from workers.models.compiled import named
from workers.models.contract import Spacing
from workers.models.engine import Compiler, Forward, in_float32
from workers.models.loading import filled, require_preprocessing
from workers.models.network import CLASS_PRIOR, MASK_PRIOR
from workers.models.picture import Operating, PicturePipeline, Reading
from workers.preprocess import SUBDURAL, WIDE_BRAIN, NetworkInput, View, Window

RIM = "rim"
WINDOW: Window = SUBDURAL
"""-20..180 HU: what tells blood apart, and bone from blood."""
RIM_VIEW = View((WINDOW,), 224)
COLUMNS, DEPTHS = 256, 48
"""Directions around the head, and depths, of the unrolled band."""
UNIT = 1 / 224
"""One step of depth in sides of the picture, about a millimetre."""
OUTSIDE = 6
"""Rows of the band that lie in the bone."""
CHANNELS = 5
"""Three slices in the brain window, the middle one in the wider WINDOW, and its mirror image."""
CELLS = 4
"""Columns of the band in one cell of the last features."""

_BONE = 0.95
_TISSUE = 0.08
"""In WINDOW: about 170 HU, and -4 HU."""
_HEAD = 0.15
_GAP = 4
"""Gaps in the bone up to about twice so many steps of depth are closed."""
_SMOOTH = 9
"""Columns of the running median of the inner table."""
_SCALP = 12
"""Steps from the skin to the inside, where no bone is in sight."""
_LEAN = 80
"""Columns between a head that looks straight ahead and the most turned one, doubled: 56 degrees."""
_SHAPE = 0.07
"""What one step of the radius says of the midline, beside values 0..1 of the band."""
_SHARPNESS = 4.0


class Unrolled(NamedTuple):
    """Bands (n, CHANNELS, DEPTHS, COLUMNS) 0..1 and where they lie on the picture.

    `grid` (n, DEPTHS, COLUMNS, 2) are places as `grid_sample` takes them; `centre` (n, 2) is y and x, and
    `radius` (n, COLUMNS) that of the inner table, both in pixels. Column 0 looks to the front, the next
    ones to the patient's left.
    """

    bands: Tensor
    grid: Tensor
    centre: Tensor
    radius: Tensor


class Drawn(NamedTuple):
    """Last features (n, k, DEPTHS / 8, COLUMNS / CELLS), rectified; mask logits (n, 6, DEPTHS, COLUMNS)."""

    features: Tensor
    masks: Tensor


class RimOutput(NamedTuple):
    """Class logits (n, 6), those of each cell around the head (n, COLUMNS / CELLS, 6), and as `Drawn`."""

    classes: Tensor
    cells: Tensor
    features: Tensor
    masks: Tensor


@torch.no_grad()
def unroll(pictures: Tensor) -> Unrolled:
    """The rim of pictures (n, 3, s, s) of three neighbouring slices in WINDOW; the middle one tells where."""
    pictures = pictures.float()
    middle = pictures[:, 1:2]
    centre = _centre(middle[:, 0] > _HEAD)
    radius = _inner_table(middle, centre)
    unit = UNIT * pictures.shape[-1]
    depths = torch.arange(DEPTHS, device=pictures.device, dtype=torch.float32)
    grid = _grid(centre, radius[:, None] + (OUTSIDE - depths)[:, None] * unit, pictures.shape[-1])
    seen = functional.grid_sample(pictures, grid, align_corners=False)
    brain = _through(WIDE_BRAIN, seen)
    bands = torch.cat((brain, seen[:, 1:2], mirrored(brain[:, 1:2], radius, unit)), dim=1)
    return Unrolled(bands, grid, centre, radius)


def laid_out(unrolled: Unrolled) -> Tensor:
    """The bands, channels last: the networks are fastest so."""
    return unrolled.bands.contiguous(memory_format=torch.channels_last)


class Places(NamedTuple):
    """Where on the band each pixel (n, size, size) of a picture lies: at which part 0..1 of a turn, and how
    deep, -1..1 from its first to its last row."""

    turn: Tensor
    down: Tensor

    @property
    def seen(self) -> Tensor:
        """Which of the pixels lie on the band."""
        return self.down.abs() <= 1


def places(unrolled: Unrolled, size: int) -> Places:
    """Of the pixels of the pictures (n, size, size) that were unrolled."""
    place = torch.arange(size, device=unrolled.centre.device, dtype=torch.float32)
    y = place[None, :, None] - unrolled.centre[:, :1, None]
    x = place[None, None, :] - unrolled.centre[:, 1:, None]
    turn = torch.atan2(x, -y) / (2 * math.pi) % 1
    table = _at(unrolled.radius[:, None, None], turn, torch.zeros_like(turn))[:, 0]
    depth = OUTSIDE + (table - torch.hypot(y, x)) / (UNIT * size)
    return Places(turn, (depth + 0.5) * 2 / DEPTHS - 1)


def rolled_up(maps: Tensor, at: Places) -> Tensor:
    """Maps (n, k, h, w) of bands on their pictures (n, k, size, size) again; zero off the band."""
    return _at(maps, at.turn, at.down) * at.seen[:, None]


def _at(rows: Tensor, turn: Tensor, down: Tensor) -> Tensor:
    """Values of (n, k, h, w), which goes round, at these parts 0..1 of a turn and -1..1 of the height."""
    width = rows.shape[-1]
    across = ((turn * COLUMNS + 0.5) * width / COLUMNS + 1) * 2 / (width + 2) - 1
    grid = torch.stack((across, down), dim=-1)
    return functional.grid_sample(_round(rows), grid, padding_mode="border", align_corners=False)


def mirrored(band: Tensor, radius: Tensor, unit: float) -> Tensor:
    """A band (n, 1, DEPTHS, COLUMNS) mirrored about the plane that makes the head most like its mirror image.

    What lies in the band speaks, and the shape of the skull: its `radius` (n, COLUMNS), in steps of `unit`.
    """
    told = torch.cat((band[:, 0], radius[:, None] * (_SHAPE / unit)), dim=1)
    waves = torch.fft.rfft(told - told.mean(dim=2, keepdim=True), dim=2)
    likeness = torch.fft.irfft(waves * waves, n=COLUMNS, dim=2).sum(1)
    turn = torch.arange(COLUMNS, device=band.device)
    allowed = torch.minimum(turn, COLUMNS - turn) <= _LEAN
    best = torch.where(allowed, likeness, -torch.inf).argmax(dim=1)
    opposite = (best[:, None] - turn) % COLUMNS
    return torch.gather(band, 3, opposite[:, None, None].expand_as(band))


def unrolled_masks(masks: Tensor, unrolled: Unrolled) -> Tensor:
    """Masks (n, k, s, s) of the pictures on their bands (n, k, DEPTHS, COLUMNS)."""
    return functional.grid_sample(masks, unrolled.grid, mode="nearest", align_corners=False)


def cells_of(masks: Tensor) -> Tensor:
    """Which cells around the head (n, COLUMNS / CELLS, k) hold any of the masks (n, k, DEPTHS, COLUMNS)."""
    return functional.max_pool1d(masks.amax(2), CELLS).transpose(1, 2)


def _centre(head: Tensor) -> Tensor:
    """Mean place (n, 2), y and x in pixels, of masks (n, s, s); the middle of empty ones."""
    size = head.shape[-1]
    weight = head.float()
    mass = weight.sum((1, 2))
    place = torch.arange(size, device=head.device, dtype=torch.float32)
    y, x = (weight.sum(2) * place).sum(1), (weight.sum(1) * place).sum(1)
    found = torch.stack((y, x), dim=1) / mass.clamp(min=1)[:, None]
    return torch.where(mass[:, None] > 0, found, torch.full_like(found, (size - 1) / 2))


def _inner_table(middle: Tensor, centre: Tensor) -> Tensor:
    """Radius (n, COLUMNS) in pixels at which tissue begins below the outermost bone."""
    size = middle.shape[-1]
    unit = UNIT * size
    radii = torch.arange(5.0, 0.65 / UNIT, 0.5, device=middle.device) * unit
    grid = _grid(centre, radii[:, None].expand(-1, COLUMNS).expand(len(middle), -1, -1), size)
    along = functional.grid_sample(middle, grid, align_corners=False)
    reach = 2 * _GAP
    bone = _closed((along > _BONE).float(), reach)[:, 0] > 0.5
    tissue = functional.avg_pool2d(along, (5, 1), 1, (2, 0))[:, 0] > _TISSUE
    covered = bone.flip(1).cumsum(1).flip(1) > 0
    inner = _outermost(covered & ~bone & tissue, radii)
    skin = _outermost(along[:, 0] > _HEAD, radii) - _SCALP * unit
    radius = torch.where(inner > 0, inner, skin.clamp(min=float(radii[0])))
    half = _SMOOTH // 2
    around = torch.cat((radius[:, -half:], radius, radius[:, :half]), dim=1)
    return around.unfold(1, _SMOOTH, 1).median(dim=2).values


def _outermost(where: Tensor, radii: Tensor) -> Tensor:
    """The largest of the radii (r) at which each direction of (n, r, COLUMNS) holds; 0 where none does."""
    return (where * radii[:, None]).amax(1)


def _closed(mask: Tensor, reach: int) -> Tensor:
    """Morphological closing (n, 1, r, COLUMNS) along radius and direction; directions go round."""
    side = reach // 4
    wide = torch.cat((mask[..., -2 * side :], mask, mask[..., : 2 * side]), dim=-1)
    closed = -_grown(-_grown(wide, reach, side), reach, side)
    return closed[..., 2 * side : -2 * side]


def _grown(mask: Tensor, reach: int, side: int) -> Tensor:
    """The largest value within so many rows and columns, one after the other, which is much sooner."""
    tall = functional.max_pool2d(mask, (2 * reach + 1, 1), 1, (reach, 0))
    return functional.max_pool2d(tall, (1, 2 * side + 1), 1, (0, side))


def _grid(centre: Tensor, radius: Tensor, size: int) -> Tensor:
    """Places (n, r, COLUMNS, 2) for `grid_sample` at these radii (n, r, COLUMNS) in pixels."""
    turn = torch.arange(COLUMNS, device=radius.device) * (2 * math.pi / COLUMNS)
    y = centre[:, 0, None, None] - torch.cos(turn) * radius
    x = centre[:, 1, None, None] + torch.sin(turn) * radius
    return (torch.stack((x, y), dim=-1) + 0.5) * (2 / size) - 1


def _through(window: Window, seen: Tensor) -> Tensor:
    """What was seen in WINDOW through another one, 0..1."""
    return ((seen * WINDOW.width + WINDOW.low - window.low) / window.width).clamp(0, 1)


class _Conv(nn.Module):
    """3x3 convolution, batch normalisation, ReLU. Columns go round, rows end."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=(1, 0), bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(_round(x))))


def _round(x: Tensor) -> Tensor:
    """One column of the other end at each end."""
    return torch.cat((x[..., -1:], x, x[..., :1]), dim=-1)


class RimNet(nn.Module):
    """Bands (n, CHANNELS, DEPTHS, COLUMNS) to `RimOutput`: heads for the whole and for cells, one draws.

    What draws goes up again as in a U-Net (Ronneberger et al., MICCAI 2015).
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), dropout: float = 0.3) -> None:
        super().__init__()
        first, second, third = widths
        self.shallow = nn.Sequential(_Conv(CHANNELS, first), _Conv(first, first))
        self.middle = nn.Sequential(nn.MaxPool2d(2), _Conv(first, second), _Conv(second, second))
        self.deep = nn.Sequential(
            nn.MaxPool2d(2), _Conv(second, third), _Conv(third, third), nn.MaxPool2d((2, 1)),
            _Conv(third, third),
        )  # fmt: skip
        self.up = _Conv(third + second, second)
        self.out = _Conv(second + first, first)
        self.mask_head = nn.Conv2d(first, len(CLASSES), 1)
        nn.init.constant_(self.mask_head.get_parameter("bias"), MASK_PRIOR)
        rows = DEPTHS // 8
        self.dropout = nn.Dropout(dropout)
        self.column = nn.Conv1d(third * rows, third, 3)
        self.cell_head = nn.Linear(third, len(CLASSES))
        self.class_head = nn.Linear(2 * third, len(CLASSES))
        nn.init.constant_(self.class_head.get_parameter("bias"), CLASS_PRIOR)
        nn.init.constant_(self.cell_head.get_parameter("bias"), CLASS_PRIOR)

    def draw(self, bands: Tensor) -> Drawn:
        """All but what the heads for the whole and for the cells say."""
        shallow = self.shallow(bands)
        middle = self.middle(shallow)
        features = self.deep(middle)
        up = functional.interpolate(features, scale_factor=(4.0, 2.0), mode="nearest")
        up = self.up(torch.cat((up, middle), dim=1))
        up = functional.interpolate(up, scale_factor=2.0, mode="nearest")
        up = self.out(torch.cat((up, shallow), dim=1))
        masks = self.mask_head(up) if self.training else in_float32(self.mask_head, up)
        return Drawn(features, masks)

    def judge(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (n, 6), and those of each cell (n, COLUMNS / CELLS, 6)."""
        whole, cells = self._columns(features)
        return self.class_head(self.dropout(whole)), cells

    def _columns(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and maximum over the columns (n, 2 k), and the logits of each cell."""
        columns = functional.relu(self.column(_round(self.dropout(features.flatten(1, 2)))))
        whole = torch.cat((columns.mean(2), columns.amax(2)), dim=1)
        return whole, self.cell_head(columns.transpose(1, 2))

    @property
    def pooled_features(self) -> int:
        return self.class_head.in_features + len(CLASSES)

    def pooled(self, features: Tensor) -> Tensor:
        """What the class head sees of the last features, and what the cells say together."""
        whole, cells = self._columns(features)
        return torch.cat((whole, around(cells)), dim=1)

    def score(self, pooled: Tensor) -> Tensor:
        """Class logits (..., 6) from that, the mean of both voices."""
        whole, cells = pooled[..., : -len(CLASSES)], pooled[..., -len(CLASSES) :]
        return (self.class_head(self.dropout(whole)) + cells) / 2

    def forward(self, bands: Tensor) -> RimOutput:
        drawn = self.draw(bands)
        return RimOutput(*self.judge(drawn.features), *drawn)


def around(cells: Tensor) -> Tensor:
    """What the cells (n, c, 6) say together, (n, 6): a maximum that lets the others be heard a little."""
    return torch.logsumexp(cells.float() * _SHARPNESS, dim=1) / _SHARPNESS


class RimPipeline(PicturePipeline):
    """See `workers.models.contract.Pipeline`. The cells' evidence stands where others have the mask's.

    The masks of a reading have a channel for each class, and are empty off the band.
    """

    draws = True

    def __init__(
        self,
        identity: ModelIdentity,
        networks: Sequence[RimNet],
        operating: Operating,
        device: torch.device | None = None,
        view: View = RIM_VIEW,
    ) -> None:
        super().__init__(identity, operating, view, device)
        self.networks: list[RimNet] = [self.engine.place(network) for network in networks]
        self.trunks: list[Forward] = [network.draw for network in self.networks]

    def use(self, compiler: Compiler) -> None:
        band = (CHANNELS, DEPTHS, COLUMNS)
        self.trunks = [named(Drawn, compiler(network, network.draw, band)) for network in self.networks]

    def warm_up(self) -> None:
        self.engine.warm_up(self._see, (3, *self.view.shape))

    def read_all(self, sources: Sequence[NetworkInput], spacings_mm: Sequence[Spacing]) -> list[Reading]:
        """Run every network over all bands and their mirror images."""
        found = self.engine.each(self._see, [source.triplets() for source in sources])
        return [
            Reading(
                self.identity,
                source,
                classes.cpu().numpy(),
                cells.cpu().numpy(),
                tuple(features),
                masks.cpu().numpy(),
                seen.cpu().numpy() > 0.5,
            )
            for source, (classes, cells, masks, seen, *features) in zip(sources, found, strict=True)
        ]

    def _see(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Of a batch of pictures: logits, what cells say, masks and where; then of each network its maps."""
        unrolled = in_float32(unroll, batch)
        bands = laid_out(unrolled)
        said, beside, blood, features = [], [], [], []
        for network, trunk in zip(self.networks, self.trunks, strict=True):
            plain, mirrored = trunk(bands), trunk(bands.flip(3))
            for drawn in (plain, mirrored):
                whole, parts = in_float32(network.judge, drawn.features)
                said.append(whole)
                beside.append(around(parts))
            blood += [plain.masks, mirrored.masks.flip(3)]
            features.append(plain.features)
        shown = torch.sigmoid(torch.stack(blood).float().mean(0))
        at = places(unrolled, batch.shape[-1])
        return (
            torch.stack(said).mean(0),
            torch.stack(beside).mean(0),
            rolled_up(shown, at),
            at.seen,
            *features,
        )

    def drawing(self, reading: Reading, lit: Tensor) -> Callable[[Tensor, float], Tensor]:
        """Maps of the bands, rolled up again."""
        pictures = torch.as_tensor(reading.source.triplets()).to(self.device)[lit]
        at = places(unroll(pictures), self.view.size)
        return lambda maps, first_centre: rolled_up(maps[:, None], at)[:, 0]

    def coarse(
        self, reading: Reading, spacing_mm: Spacing, place: int, lit: Tensor
    ) -> Iterator[tuple[Tensor, float]]:
        """On the bands. The gradient passes both heads."""
        for network, maps in zip(self.networks, reading.features, strict=True):
            leaf = maps[lit].detach().float().clone().requires_grad_(True)
            with torch.enable_grad():
                whole, cells = network.judge(leaf)
                (gradients,) = torch.autograd.grad((whole + around(cells))[:, place].sum(), leaf)
            yield grad_cam_pp(leaf.detach(), gradients), 0.0


def view(size: int) -> View:
    """How this family sees the head."""
    return View((WINDOW,), size)


def preprocessing_facts(seen: View) -> dict[str, Any]:
    """What weights and preprocessing of this family must agree on."""
    return {
        "size": seen.size,
        "window": [WINDOW.level, WINDOW.width],
        "rim": [COLUMNS, DEPTHS, OUTSIDE, UNIT],
        "margin": preprocess.MARGIN,
        "step_mm": preprocess.STEP_MM,
    }


def build(
    states: Sequence[Mapping[str, Tensor]], facts: Mapping[str, Any], device: torch.device
) -> RimPipeline:
    """The pipeline of these weights, network by network, and the facts of their sidecar.

    Raises PermanentError for another preprocessing, or weights that do not fit.
    """
    seen = view(int(facts["preprocessing"]["size"]))
    require_preprocessing(facts, preprocessing_facts(seen))
    widths, dropout = tuple(facts["recipe"]["widths"]), facts["recipe"]["dropout"]
    networks = [filled(RimNet(widths, dropout), state, facts["name"]) for state in states]
    identity = ModelIdentity(facts["name"], facts["version"], facts["sha256"])
    return RimPipeline(identity, networks, Operating.from_facts(facts), device, seen)
