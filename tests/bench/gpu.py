"""Images a second of each family on the device at hand, beside its bare backbones on random data.

`python -m tests.bench.gpu [--device auto] [--precision auto] [--compile] [--families …] [--heads 4]` gives
each family, with random weights, phantom heads of 32 slices of 512 × 512: prepared, read by the networks and
judged, all heads at once as under backlog (*classified*); and prepared beforehand (*networks*). Beside it
stands the rate of the family's networks alone, on random pictures on the device, in the same precision and
batches (*bare*), and the share of *classified* in it; on a GPU the goal is 60 % for the sequence pair. An
image is a slice; a pair of networks reads each twice. The same on a CPU, where `--size 64` is quick.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from node.domain.findings import ModelIdentity
from tests.bench.report import spread
from workers.models.device import Wish, choose_runtime
from workers.models.engine import Engine
from workers.models.families import FAMILIES, Family, family
from workers.models.picture import Operating, PicturePipeline
from workers.models.slicewise import SlicePipeline, UNetPipeline
from workers.phantom import PhantomVolume, volume

SLICES, SIZE = 32, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--families", nargs="+", default=[one.name for one in FAMILIES])
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=4, help="that prepare")
    parser.add_argument("--size", type=int, default=0, help="side of the pictures; 0: the family's own")
    options = parser.parse_args()
    runtime = choose_runtime(Wish(options.device, options.precision, options.compile))
    heads = [volume(number, ("epidural",), slices=SLICES, size=SIZE) for number in range(options.heads)]
    given = f"{options.heads} heads of {SLICES} slices of {SIZE} x {SIZE}, {options.rounds} rounds"
    print(f"{given}; {runtime.words}\n")
    print("| family | classified, images/s | networks, images/s | bare, images/s | classified / bare |")
    print("|---|---|---|---|---|", flush=True)
    for name in options.families:
        one, engine = family(name), runtime.engine()
        pipeline = _pipeline(one, engine, options.size or one.size)
        whole, read, bare = measure(pipeline, heads, options)
        shares = [mine / alone for mine, alone in zip(whole, bare, strict=True)]
        cells = " | ".join(spread(rates) for rates in (whole, read, bare))
        print(f"| {name} | {cells} | {spread(shares)} |", flush=True)


def _pipeline(one: Family, engine: Engine, size: int) -> PicturePipeline:
    torch.manual_seed(1)
    identity = ModelIdentity(one.name, "random", "00")
    pipeline = one.assemble(identity, one.networks(size), Operating.plain(), engine.device, size)
    pipeline.run_on(engine)
    return pipeline


Rates = tuple[list[float], list[float], list[float]]


def measure(pipeline: PicturePipeline, heads: Sequence[PhantomVolume], options: argparse.Namespace) -> Rates:
    """Images a second, round by round; a first round, which warms everything up, is not counted."""
    images = SLICES * len(heads)
    rates: Rates = ([], [], [])
    bare = _bare(pipeline, images)
    with ThreadPoolExecutor(options.threads) as pool:

        def prepared() -> list[object]:
            return list(pool.map(lambda head: pipeline.prepare(head.hu, head.spacing_mm), heads))

        beforehand = prepared()
        steps: list[Callable[[], object]] = [
            lambda: pipeline.classify_all(prepared()),  # type: ignore[arg-type]
            lambda: pipeline.classify_all(beforehand),  # type: ignore[arg-type]
            bare,
        ]
        for number in range(options.rounds + 1):
            for kept, step in zip(rates, steps, strict=True):
                took_s = _timed(step, pipeline.device)
                if number:
                    kept.append(images / took_s)
    return rates


def _bare(pipeline: PicturePipeline, images: int) -> Callable[[], object]:
    """The networks as the engine runs them, on random pictures that lie on the device already."""
    engine, size = pipeline.engine, pipeline.view.size
    if isinstance(pipeline, SlicePipeline):
        trunks = [
            (trunk, network.spec.channels)
            for network, trunk in zip(pipeline.networks, pipeline.trunks, strict=True)
        ]
    else:
        assert isinstance(pipeline, UNetPipeline)
        trunks = [(forward, len(pipeline.view.windows)) for forward in pipeline.forwards]
    batch = min(engine.largest_batch, images)
    inputs = [
        torch.rand(batch, channels, size, size, device=engine.device).contiguous(
            memory_format=torch.channels_last
        )
        for _, channels in trunks
    ]

    @torch.no_grad()
    def run() -> None:
        lower = engine.precision is not torch.float32
        with torch.autocast(engine.device.type, engine.precision, enabled=lower):
            for _ in range(-(-images // batch)):
                for (trunk, _), pictures in zip(trunks, inputs, strict=True):
                    trunk(pictures)

    return run


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device is done."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
