"""What models say of synthetic heads, and of real ones beside them, through the whole path from DICOM files.

`python -m tests.bench.synthetic [--models default …] [--each 3] [--healthy 10] [--heads FOLDER …]` writes
heads with one bleed (EACH of every subtype) and heads without, 32 slices of 512 x 512, whose seeds no
network learned from, and prints what is called; `FOLDER` holds one series more, its verdict is a line of its
own. Every model reads the same files. Prints the figures of docs/models/default.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from node.domain.findings import SUBTYPES, Findings
from node.domain.priority import MIN_MASK_ML
from workers.analyse import analyse
from workers.load import load_head
from workers.models.contract import Pipeline
from workers.models.runtime import load_pipeline
from workers.phantom_series import write_series
from workers.volume import Volume

FIRST_SEED = 970_000
"""Beyond those of `workers.training.plan`, to learn from and held out."""


@dataclass(frozen=True)
class Said:
    """Of one head: the bleed that was drawn into it, empty for none, and what one model made of it."""

    bleed: str
    findings: Findings

    @property
    def called(self) -> bool:
        return self.findings.classes["any"].present

    @property
    def mask_ml(self) -> float:
        mask = self.findings.segmentation
        return mask.volume_ml if mask else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["default"])
    parser.add_argument("--each", type=int, default=3)
    parser.add_argument("--healthy", type=int, default=10)
    parser.add_argument("--heads", nargs="*", type=Path, default=[])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipelines = {name: load_pipeline(name, "cpu") for name in options.models}
    said: dict[str, list[Said]] = {name: [] for name in pipelines}
    for bleed, volume in drawn(options.each, options.healthy):
        for name, pipeline in pipelines.items():
            said[name].append(Said(bleed, read(volume, pipeline)))
    for name, pipeline in pipelines.items():
        identity = pipeline.identity
        print(f"\n{name}: {identity.name} {identity.version}, threshold {pipeline.thresholds['any']:.2f}")
        tell(said[name])
        for folder in options.heads:
            found = read(load_head(sorted(folder.glob("*.dcm"))), pipeline)
            told = Said("", found)
            verdict = "called" if told.called else "not called"
            probability = found.classes["any"].probability
            print(f"{folder.name}: {probability:.2f}, {verdict}, mask {told.mask_ml:.2f} mL")


def drawn(each: int, healthy: int) -> Iterator[tuple[str, Volume]]:
    """The bleed and the volume of each head."""
    bleeds = [name for name in SUBTYPES for _ in range(each)] + [""] * healthy
    for number, bleed in enumerate(bleeds):
        with tempfile.TemporaryDirectory() as folder:
            files = write_series(Path(folder), FIRST_SEED + number, (bleed,) if bleed else ())
            yield bleed, load_head(files)


def read(volume: Volume, pipeline: Pipeline) -> Findings:
    return analyse(volume, pipeline, series_instance_uid="2.25.1", revision=1).findings


def tell(said: list[Said]) -> None:
    bloody = [one for one in said if one.bleed]
    clear = [one for one in said if not one.bleed]
    print(f"any is called for {sum(one.called for one in bloody)} of {len(bloody)} heads with a bleed")
    for name in SUBTYPES:
        own = [one for one in bloody if one.bleed == name]
        probabilities = " ".join(f"{one.findings.classes['any'].probability:.2f}" for one in own)
        print(f"  {name}: {sum(one.called for one in own)} of {len(own)} ({probabilities})")
    alone = [one for one in bloody if not one.called and one.mask_ml >= MIN_MASK_ML]
    print(f"  of those not called, the mask alone raises {len(alone)}")
    probabilities = " ".join(f"{one.findings.classes['any'].probability:.2f}" for one in clear)
    print(f"any is called for {sum(one.called for one in clear)} of {len(clear)} without ({probabilities})")
    raised = [f"{one.mask_ml:.2f} mL" for one in clear if not one.called and one.mask_ml >= MIN_MASK_ML]
    print(f"  the mask alone raises {len(raised)} of them: {', '.join(raised) or 'none'}")


if __name__ == "__main__":
    main()
