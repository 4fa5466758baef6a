"""One head CT on its way to the networks: where the head lies and its pictures, made where they are read.

On a CPU the pictures are those of `workers.preprocess`, bit for bit. On another device the volume goes up
once (as int16 where that loses nothing), and windows, slabs and resampling are done there: the same pictures
within 1e-4. Decides nothing about disease.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.models.contract import Spacing, Volume
from workers.models.engine import CPU
from workers.preprocess import (
    HeadFrame,
    NetworkInput,
    View,
    Window,
    find_head,
    network_input,
    slabs,
    unclipped,
)


class Scan:
    """What the parts of a pipeline share of a volume `hu` (z, y, x); `frame` where it is known already."""

    def __init__(self, hu: Volume, spacing_mm: Spacing, frame: HeadFrame | None = None) -> None:
        self.hu = hu
        self.spacing_mm = spacing_mm
        self._known = frame
        self._sent: tuple[torch.device, Tensor] | None = None

    @cached_property
    def whole(self) -> Volume:
        """The volume with the bone and the air that a window has cut off."""
        return unclipped(self.hu)

    @cached_property
    def frame(self) -> HeadFrame:
        """Raises PermanentError without a head."""
        return self._known or find_head(self.whole, self.spacing_mm)

    def pictures(self, view: View, device: torch.device = CPU) -> NetworkInput:
        """Raises PermanentError as `network_input` does."""
        if device.type == "cpu":
            checked = self.hu.ndim == 3 and self.hu.size
            return network_input(self.hu, self.spacing_mm, view, self.frame if checked else None)
        return self.on_device(view, device)

    def on_device(self, view: View, device: torch.device) -> NetworkInput:
        """The pictures as a tensor there."""
        parts = slabs(len(self.hu), self.spacing_mm[0])
        pictures = drawn(self._volume(device), parts, self.frame, view)
        centres = np.asarray([(start + stop - 1) / 2 for start, stop in parts], np.float32)
        shape = (self.hu.shape[0], self.hu.shape[1], self.hu.shape[2])
        return NetworkInput(pictures, centres, self.frame, shape)

    def release(self) -> None:
        """Give the device its memory back; the pictures stay."""
        self._sent = None

    def _volume(self, device: torch.device) -> Tensor:
        if self._sent is None or self._sent[0] != device:
            host = torch.from_numpy(packed(self.whole))
            if device.type == "cuda":
                host = host.pin_memory()
            self._sent = device, host.to(device, non_blocking=True).float()
        return self._sent[1]


def packed(hu: Volume) -> NDArray[np.int16] | Volume:
    """The same values as int16 where that loses nothing: half as much to carry."""
    with np.errstate(invalid="ignore"):
        short = hu.astype(np.int16)
    return short if np.array_equal(short, hu) else np.ascontiguousarray(hu)


def drawn(hu: Tensor, parts: list[tuple[int, int]], frame: HeadFrame, view: View) -> Tensor:
    """Pictures (n, windows, size, size) of a volume (z, y, x) on its device; `parts` are its slabs.

    Resampling along an axis is linear, so it is one matrix for all slices.
    """
    down = _to(hu, weights(hu.shape[1], frame.top, frame.height, view.size))
    across = _to(hu, weights(hu.shape[2], frame.left, frame.width, view.size))
    return torch.stack([down @ _means(_seen(hu, one), parts) @ across.T for one in view.windows], dim=1)


def weights(length: int, start: float, extent: float, size: int) -> NDArray[np.float32]:
    """What each of `size` pixels takes of each of `length` (size, length), along one axis of a frame.

    The antialiased bilinear resampling of `workers.preprocess.resample`, which is Pillow's with a box: a
    triangle as wide as a pixel of the coarser grid, cut off at the edge and made to sum up to 1. The picture
    goes on with zeros up to the frame.
    """
    before, after = max(0, int(np.ceil(-start))), max(0, int(np.ceil(start + extent - length)))
    scale = extent / size
    reach = max(scale, 1.0)
    centres = start + before + (np.arange(size) + 0.5) * scale
    whole = np.arange(before + length + after)
    first = np.maximum(np.floor(centres - reach + 0.5), 0)
    last = np.minimum(np.floor(centres + reach + 0.5), len(whole))
    taken = np.clip(1 - np.abs((whole + 0.5 - centres[:, None]) / reach), 0, None)
    taken *= (whole >= first[:, None]) & (whole < last[:, None])
    taken /= taken.sum(1, keepdims=True)
    return taken[:, before : before + length].astype(np.float32)


def _to(like: Tensor, values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(values).to(like.device)


def _seen(hu: Tensor, window: Window) -> Tensor:
    return ((hu - window.low) / window.width).clamp(0, 1)


def _means(hu: Tensor, parts: list[tuple[int, int]]) -> Tensor:
    """The mean of each slab; all are alike, but for the last, which may be thinner."""
    thick = parts[0][1] - parts[0][0]
    whole = len(hu) // thick * thick
    means = hu[:whole].reshape(-1, thick, *hu.shape[1:]).mean(1)
    return means if whole == len(hu) else torch.cat((means, hu[whole:].mean(0, keepdim=True)))
