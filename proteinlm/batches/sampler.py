"""Which windows a step trains on: a pure function of the seed and of how many were taken before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from proteinlm.batches.epochs import ClusterDraw
from proteinlm.batches.packing import Numbers, PackingConfig, WindowPlan, number_type, plan_windows
from proteinlm.randomness import stream


@dataclass(frozen=True, slots=True)
class WindowKey:
    """Names a window of a run: the epoch and the number of the window in its plan."""

    epoch: int
    window: int


class WindowSampler:
    """Takes windows in random order, epoch after epoch.

    Proteins are shuffled and packed anew in every epoch, by the stream (seed, epoch): all of them, or the
    members of clusters that the epoch draws.

    Args:
        lengths: int64 (N,), residues of each protein.
        config: window length and context.
        seed: of the run.
        start: the first window to take.
        clusters: draws the proteins of an epoch; it takes all if None.
    """

    def __init__(
        self,
        lengths: NDArray[numpy.int64],
        config: PackingConfig,
        *,
        seed: int,
        start: WindowKey = WindowKey(0, 0),
        clusters: ClusterDraw | None = None,
    ) -> None:
        self._lengths = lengths
        self._config = config
        self._seed = seed
        self._clusters = clusters
        self.next = start
        self.plan, self._windows = self._plan(start.epoch)

    def take(self, count: int) -> list[tuple[WindowKey, WindowPlan]]:
        """Return the next windows with the plans they belong to, and move on."""
        taken = []
        for _ in range(count):
            if self.next.window >= self.plan.num_windows:
                self.next = WindowKey(self.next.epoch + 1, 0)
                self.plan, self._windows = self._plan(self.next.epoch)
            window = int(self._windows[self.next.window])
            taken.append((WindowKey(self.next.epoch, window), self.plan))
            self.next = WindowKey(self.next.epoch, self.next.window + 1)
        return taken

    def _plan(self, epoch: int) -> tuple[WindowPlan, NDArray[numpy.int64]]:
        generator = stream(self._seed, "windows", epoch)
        plan = plan_windows(self._lengths, self._config, order=self._shuffled(epoch, generator))
        # first fit leaves the least filled windows at the end: take them in another order
        return plan, generator.permutation(plan.num_windows)

    def _shuffled(self, epoch: int, generator: numpy.random.Generator) -> Numbers:
        if self._clusters is None:
            proteins: Numbers = numpy.arange(len(self._lengths), dtype=number_type(len(self._lengths)))
        else:
            proteins = self._clusters.members(epoch)
        generator.shuffle(proteins)
        return proteins
