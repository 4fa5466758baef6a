"""How much of a core one study needs at a worker: CPU seconds from the files to findings and masks.

`python -m tests.bench.service [--studies 12]` reads phantom heads of 28 to 40 slices with the default model
on one thread. CPU time is counted, not wall time, so that other work disturbs less. Prints a JSON list, which
`tests.bench.simulation --service FILE` takes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(measured(options.studies, options.seed)))


def measured(studies: int, seed: int = 1) -> list[float]:
    """CPU seconds of each study on one core. To be asked before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        return [round(one, 3) for one in measure(Path(folder), studies, seed)]


def measure(folder: Path, studies: int, seed: int) -> list[float]:
    """CPU seconds of each study; a first one, which also warms everything up, is not counted."""
    import torch

    from workers.analyse import analyse
    from workers.load import load_head
    from workers.models.runtime import load_pipeline
    from workers.phantom_series import write_series

    torch.set_num_threads(1)
    pipeline = load_pipeline("default")
    chance = random.Random(seed)
    times = []

    for number in range(studies + 1):
        slices, bleeds = chance.randint(28, 40), ("intraparenchymal",) if number % 2 else ()
        files = write_series(folder / str(number), number, bleeds, slices=slices)
        began = time.process_time()
        volume = load_head(files)
        analyse(volume, pipeline, series_instance_uid="1.2", revision=1)
        times.append(time.process_time() - began)
        print(f"{slices} slices: {times[-1]:.2f} s of a core", file=sys.stderr, flush=True)
    return times[1:]


if __name__ == "__main__":
    main()
