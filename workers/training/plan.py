"""What to do with a recipe, and where a run keeps what it made. Trains nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from workers.preprocess import View
from workers.training.cache import cached, key
from workers.training.datasets import Series, phantoms
from workers.training.recipes import Recipe, recipe
from workers.training.sources import Source

PHANTOM_SEEDS = 100_000
"""First seed of the training phantoms; held-out ones start at HELD_OUT_SEEDS."""
HELD_OUT_SEEDS = 900_000
HELD_OUT = 40


@dataclass(frozen=True)
class Plan:
    """A recipe and its circumstances. `data` empty: phantoms only.

    Every recipe has a folder of its own in `out`; recipes that are parts of another are trained in
    theirs, once. `only` are the folds to run, empty for all; `seeds` repetitions of everything after
    the pretraining are averaged; with `soup`, where there was one, not what the networks of all seeds and
    snapshots say is, but their weights (Wortsman et al., ICML 2022), and they take the time of one. Without
    `ship` nothing is trained on all patients in the end. `size`, `steps` and `scanners` are those of every
    recipe taken from the table, instead of its own; so are `phantoms`.
    """

    recipe: Recipe
    out: Path
    version: str = "1.0.0"
    data: tuple[tuple[Source, Path], ...] = ()
    phantoms: int | None = None
    folds: int = 5
    only: tuple[int, ...] = ()
    seeds: int = 1
    seed: int = 1
    soup: bool = False
    ship: bool = True
    size: int | None = None
    steps: int | None = None
    scanners: int | None = None
    init: Path | None = None
    cache: Path | None = None
    workers: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def folder(self) -> Path:
        """Where this recipe's run keeps its checkpoints, predictions and report."""
        return self.out / self.recipe.name

    @property
    def chosen_folds(self) -> tuple[int, ...]:
        return self.only or tuple(range(self.folds))

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.seeds))

    @property
    def souped(self) -> bool:
        """Whether the networks become one: those of one pretraining can, others lie in different valleys."""
        return self.soup and self.recipe.pretrain is not None

    @property
    def soups(self) -> tuple[tuple[int, ...], ...]:
        """The seeds whose networks become one; none where each answers, or there is one seed only."""
        return (self.all_seeds,) if self.souped and self.seeds > 1 else ()

    @property
    def answering(self) -> tuple[tuple[int, ...], ...]:
        """Seeds whose networks answer together; what the groups say is averaged."""
        return self.soups or tuple((seed,) for seed in self.all_seeds)

    @property
    def synthetic(self) -> int:
        """How many phantoms are drawn to learn from."""
        return self.recipe.phantoms if self.phantoms is None else self.phantoms

    @property
    def held_out(self) -> int:
        """How many other phantoms are drawn to judge by, the same for every part of an ensemble."""
        return HELD_OUT if self.phantoms is None else max(4, self.phantoms // 20)

    def of(self, recipe: Recipe) -> Plan:
        """The same for another recipe."""
        return replace(self, recipe=recipe)

    def parts(self) -> tuple[Plan, ...]:
        """The same for each recipe that this one is put together from."""
        given = self.size, self.steps, self.scanners
        return tuple(self.of(recipe(name).adjusted(*given)) for name in self.recipe.parts)

    def whole(self) -> Iterator[Plan]:
        """This one, and all that it is put together from, the parts of its parts among them."""
        yield self
        for part in self.parts():
            yield from part.whole()

    def digest(self) -> str:
        """Of what decides the predictions of a fold, for the names of files."""
        facts = repr(
            (self.recipe.told, self.folds, self.phantoms, [(s.kind, str(p)) for s, p in self.data], self.init)
        )
        found = hashlib.sha256(facts.encode()).hexdigest()[:8]
        return f"{found}-soup" if any(one.souped for one in self.whole()) else found

    def real(self, view: View) -> list[Series]:
        """Every series of the data, prepared once for each view."""
        return [one for source, folder in self.data for one in self.of_set(source, folder, view)]

    def of_set(self, source: Source, folder: Path, view: View) -> list[Series]:
        """Those of one set."""
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:6]
        return cached(self._cache / key(f"{source.cache_name}-{place}", view), source.read(folder, view))

    def read(self, view: View) -> Iterator[Series]:
        """The same in the same order, read anew and kept nowhere."""
        for source, folder in self.data:
            yield from source.read(folder, view)

    def drawn(self, view: View, first: int = PHANTOM_SEEDS, count: int | None = None) -> list[Series]:
        """Phantom series of `count` seeds from `first`, drawn once for each view."""
        wanted = self.synthetic if count is None else count
        if not wanted:
            return []
        seeds = range(first, first + wanted)
        return cached(
            self._cache / key(f"phantoms-{first}-{wanted}", view), phantoms(seeds, self.workers, view=view)
        )

    @property
    def _cache(self) -> Path:
        return self.cache or self.out / "cache"
