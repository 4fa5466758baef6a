"""What the look at the image says of real and synthetic heads, and of things that are none.

`python -m tests.bench.heads [--data FOLDER] [--phantoms 120]`. FOLDER (default ICHNODE_TEST_DATA) holds
`ct-ich/` and `dicom/ge-head-tilt/`; what is missing is left out. The spacing of CT-ICH is unknown, so
its heads are looked at with three. Prints the figures of docs/architecture.md.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.nonheads import NON_HEADS, PIXEL_MM, STEP_MM
from workers.head import Evidence, look
from workers.load import load_volume
from workers.phantom import volume

SPACINGS_MM = (0.35, 0.45, 0.55)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("ICHNODE_TEST_DATA"))
    parser.add_argument("--phantoms", type=int, default=120)
    options = parser.parse_args()
    if options.data is None:
        print("no folder of real heads is named: only phantoms and non-heads")
    else:
        tell("CT-ICH", list(ct_ich(options.data / "ct-ich")))
        real = load_volume(sorted((options.data / "dicom" / "ge-head-tilt").glob("*.dcm")))
        tell("GE head, tilted", [look(real.hu, real.pixel_spacing_mm, real.thickness_mm)])
    tell("phantoms", [phantom(seed) for seed in range(options.phantoms)])
    tell("no heads", [at(make(), PIXEL_MM, STEP_MM) for make in NON_HEADS.values()])


def at(hu: NDArray[np.float32], pixel_mm: float, step_mm: float) -> Evidence:
    return look(hu, (pixel_mm, pixel_mm), np.full(len(hu), step_mm))


def phantom(seed: int) -> Evidence:
    """Every second one may bleed."""
    made = volume(seed, None if seed % 2 else (), slices=32, size=128)
    return at(made.hu, made.spacing_mm[1], made.spacing_mm[0])


def ct_ich(folder: Path) -> Iterator[Evidence]:
    """Every patient, 5 mm a slice, once for each assumed pixel spacing."""
    patients: dict[int, list[dict[str, str]]] = {}
    with (folder / "index.csv").open(encoding="utf-8") as table:
        for row in csv.DictReader(table):
            patients.setdefault(int(row["patient"]), []).append(row)
    for _, rows in sorted(patients.items()):
        hu = np.stack([slice_hu(folder, row) for row in sorted(rows, key=lambda row: int(row["slice"]))])
        for spacing in SPACINGS_MM:
            yield at(hu, spacing, 5.0)


def slice_hu(folder: Path, row: dict[str, str]) -> NDArray[np.float32]:
    """HU from the two published windows, each of 8 bits: exact to 0.5 HU within -20 to 100."""
    brain = np.asarray(Image.open(folder / row["brain_path"]).convert("L").resize((512, 512)), np.float32)
    path = folder / row["bone_path"]
    bone = (
        np.asarray(Image.open(path).convert("L").resize((512, 512)), np.float32) if path.exists() else brain
    )
    clipped = (brain <= 2) | (brain >= 253)
    hu = np.where(clipped, bone / 255 * 3200 - 900, brain / 255 * 120 - 20)
    return np.where(bone <= 1, -1000, hu).astype(np.float32)


def tell(name: str, found: list[Evidence]) -> None:
    heights = [e.cranial_mm for e in found]
    shares = [e.cranial_mm / e.covered_mm for e in found]
    refused = sum(not e.is_head for e in found)
    print(
        f"{name:<16} {refused} of {len(found)} refused; cranial {min(heights):.0f} to {max(heights):.0f} mm, "
        f"{min(shares):.0%} to {max(shares):.0%}"
    )


if __name__ == "__main__":
    main()
