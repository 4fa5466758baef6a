"""How long studies of a large site wait, by the number of workers: a seeded simulation on measured times.

`python -m tests.bench.simulation [--studies 6] [--service FILE] [--plot FILE]`. Ten hospitals send 2,000 head
CTs a day, more of them at some hours (HOURS, an assumption). A study waits `quiet_s` until it is complete,
then for a worker, first come first served; one process composes, and its report is sent. Service times are
drawn from those that tests.bench.service measured on one core, with `--studies` here and now. What it leaves
out: that analyses slow each other on one memory bus, failures, studies of several candidates, a slow PACS.
Nothing here touches a node.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import service

HOUR_S, DAY_S = 3600.0, 86400.0
HOURS = (26, 22, 19, 17, 16, 17, 22, 32, 46, 56, 62, 63, 61, 60, 60, 61, 62, 63, 64, 62, 57, 49, 41, 33)
"""How studies are spread over the hours of a day, as weights: assumed, two peaks and a quiet night."""
SERVICE_S = (3.05, 3.10, 3.41, 2.03, 2.40, 2.08)
"""CPU seconds of a study on one core, as tests.bench.service printed them."""
COMPOSE_S = 0.65
"""CPU seconds to build SR, SEG and SC of 32 slices, as tests.bench.outputs printed them, rounded up."""
QUIET_S = 10.5
"""`completeness.quiet_s` and a tick of the clock."""
SEND_S = 0.5
"""To bring the report into the PACS, once it is composed."""
TICKS_S = (15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)


@dataclass(frozen=True)
class Site:
    studies_a_day: int = 2000
    days: int = 28
    backlog_after_h: float = 0.0
    """Each day nothing comes from noon on for so long, and then all at once: a network that was away."""


@dataclass(frozen=True)
class Outcome:
    """Seconds from the last slice to the report, and how busy the workers were."""

    workers: int
    busy: float
    busiest_hour: float
    waits_s: tuple[float, ...]
    """Sorted."""
    by_hour: tuple[tuple[float, ...], ...]

    def quantile(self, part: float) -> float:
        return quantile(self.waits_s, part)


def quantile(ordered: Sequence[float], part: float) -> float:
    """The nearest-rank quantile of an ordered sequence; NaN of none."""
    if not ordered:
        return math.nan
    return ordered[min(max(math.ceil(part * len(ordered)), 1), len(ordered)) - 1]


def arrivals(site: Site, chance: random.Random) -> Iterator[float]:
    """When the last slice of each study comes, in order: Poisson, with a rate that changes by the hour."""
    most, whole = max(HOURS), sum(HOURS)
    rate = site.studies_a_day * most / whole / HOUR_S
    now, held = 0.0, []
    noon, over = 12 * HOUR_S, (12 + site.backlog_after_h) * HOUR_S
    while (now := now + chance.expovariate(rate)) < site.days * DAY_S:
        if chance.random() * most > HOURS[int(now % DAY_S // HOUR_S)]:
            continue
        if noon <= now % DAY_S < over:
            held.append(now - now % DAY_S + over)
            continue
        yield from held
        held.clear()
        yield now


def simulate(workers: int, site: Site, service_s: Sequence[float], seed: int) -> Outcome:
    """Run the site with so many workers of one core each."""
    chance = random.Random(seed)
    free, composer_free = [0.0] * workers, 0.0
    work, at_peak = 0.0, [0.0] * 24
    waits: list[float] = []
    by_hour: list[list[float]] = [[] for _ in HOURS]
    analysed: list[tuple[float, float]] = []
    for came in arrivals(site, chance):
        takes = chance.choice(service_s)
        begins = max(came + QUIET_S, heapq.heappop(free))
        heapq.heappush(free, begins + takes)
        analysed.append((begins + takes, came))
        hour = int(came % DAY_S // HOUR_S)
        work += takes
        at_peak[hour] += takes
    for done, came in sorted(analysed):
        composer_free = max(done, composer_free) + COMPOSE_S
        wait = composer_free + SEND_S - came
        waits.append(wait)
        by_hour[int(came % DAY_S // HOUR_S)].append(wait)
    capacity = workers * site.days * DAY_S
    return Outcome(
        workers,
        work / capacity,
        max(at_peak) / (workers * site.days * HOUR_S),
        tuple(sorted(waits)),
        tuple(tuple(sorted(hour)) for hour in by_hour),
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown."""
    head = "| workers (cores) | busy | busiest hour | median | 95 % | 99 % | longest |\n" + "|---" * 7 + "|"
    rows = [
        f"| {o.workers} | {o.busy:.0%} | {o.busiest_hour:.0%} | "
        + " | ".join(span(o.quantile(part)) for part in (0.5, 0.95, 0.99, 1.0))
        + " |"
        for o in outcomes
    ]
    return "\n".join([head, *rows])


def span(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def studies_a_day(service_s: Sequence[float], busy: float = 0.7) -> float:
    """What one core takes in a day whose busiest hour keeps it so busy."""
    mean = sum(service_s) / len(service_s)
    return busy * HOUR_S / mean * sum(HOURS) / max(HOURS)


def counts(service_s: Sequence[float]) -> list[int]:
    """Numbers of workers worth a look: from hardly enough for the busiest hour to far more."""
    mean = sum(service_s) / len(service_s)
    needed = Site().studies_a_day * max(HOURS) / sum(HOURS) * mean / HOUR_S
    enough = {max(1, math.ceil(needed * factor)) for factor in (0.9, 1.0, 1.2, 1.5, 2.0, 3.0)}
    return sorted(enough | {min(enough) + 1})


Family = tuple[float, list[Outcome], list[Outcome]]
"""How many times the work of the default model; outcomes of usual days, and of days with a backlog."""


def plot(file: Path, families: Sequence[Family]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for (times, calm, after), colour in zip(families, ("tab:blue", "tab:orange", "tab:red"), strict=False):
        for outcomes, style, words in ((calm, "-", "usual days"), (after, "--", "an hour's backlog at 13 h")):
            name = "the default model" if times == 1 else f"{times:.0f} times its work"
            left.plot(
                [o.workers for o in outcomes],
                [o.quantile(0.95) for o in outcomes],
                style,
                marker="o",
                ms=3,
                color=colour,
                label=f"{name}, {words}",
            )
    left.set(xlabel="workers of one core each", ylabel="last slice to report, 95 %", yscale="log")
    left.legend(fontsize=7)
    left.grid(alpha=0.3)
    times, calm, _ = families[-1]
    right.step(range(25), [*HOURS, HOURS[-1]], where="post", color="0.7", label="studies, by weight")
    right.set(xlabel="hour of the day", ylabel="weight of the hour", xlim=(0, 24), ylim=(0, 1.4 * max(HOURS)))
    other = right.twinx()
    for outcome, colour in zip(calm[:3], ("tab:red", "tab:orange", "tab:blue"), strict=False):
        values = [quantile(hour, 0.95) for hour in outcome.by_hour]
        hours = [hour + 0.5 for hour in range(24)]
        other.plot(
            hours, values, color=colour, label=f"{outcome.workers} workers, {times:.0f} times the work"
        )
    other.set(ylabel="last slice to report, 95 %", yscale="log")
    other.margins(y=0.25)
    for axis in (left.yaxis, other.yaxis):
        axis.set_major_locator(FixedLocator(TICKS_S))
        axis.set_major_formatter(lambda seconds, _: span(seconds))
        axis.set_minor_locator(NullLocator())
    other.legend(fontsize=7, loc="upper left")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--service", type=Path, help="JSON of tests.bench.service, in place of SERVICE_S")
    parser.add_argument("--studies", type=int, default=0, help="measure so many first, in place of either")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    measured = json.loads(options.service.read_text()) if options.service else SERVICE_S
    if options.studies:
        measured = service.measured(options.studies)
        print(f"Core seconds of a study, measured here: {measured}")
    families: list[Family] = []
    for times in (1.0, 20.0, 100.0):
        service_s = [times * one for one in measured]
        mean = sum(service_s) / len(service_s)
        print(f"\n{mean:.1f} s of a core a study, {times:.0f} times the default model:")
        print(f"{studies_a_day(service_s):.0f} studies a day and core at 70 % in the busiest hour")
        calm = [simulate(n, Site(), service_s, options.seed) for n in counts(service_s)]
        after = [simulate(n, Site(backlog_after_h=1), service_s, options.seed) for n in counts(service_s)]
        print(table(calm), "with a backlog of an hour each day:", table(after), sep="\n\n")
        families.append((times, calm, after))
    if options.plot:
        plot(options.plot, families)


if __name__ == "__main__":
    main()
