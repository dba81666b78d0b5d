"""Which proteins an epoch consists of: every one, or one member of every cluster.

ESM-2 draws clusters of UniRef50 and trains on one UniRef90 member of each: a large family then weighs
no more than a small one, and yet all its members are seen in the course of the epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy
from numpy.typing import NDArray

from proteinlm.batches.packing import Numbers, number_type
from proteinlm.randomness import stream

# so that what is needed only for a moment takes a few megabytes, not eight bytes for each of all proteins
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochConfig:
    """What an epoch takes once."""

    # what an epoch takes once: every training sequence, or one member of each cluster of a corpus that knows them
    # when: large families should weigh no more than small ones; ingest with --clusters
    draw: Literal["sequences", "clusters"] = "sequences"


class ClusterDraw:
    """Draws one member of every cluster, each with the same probability.

    What an epoch draws depends on the clusters, the seed and the epoch only: it is the same on every
    process, and after a resume. Making it takes 20 bytes for each protein at its peak (those of
    ``clusters`` included); it keeps 4 for each protein and 4 for each cluster.

    Args:
        clusters: uint64 (N,), the cluster of each protein; equal numbers are one cluster.
        seed: of the run.

    Source: Lin et al., Science 379 (2023), doi:10.1126/science.ade2574, materials and methods.
    """

    def __init__(self, clusters: NDArray[numpy.uint64], *, seed: int) -> None:
        self._seed = seed
        dtype = number_type(len(clusters))
        # stable, or which member a draw means would depend on the processor's way of sorting
        self._members: Numbers = clusters.argsort(kind="stable").astype(dtype)
        self._bounds: Numbers = numpy.append(_starts(clusters, self._members), len(clusters)).astype(dtype)

    @property
    def num_clusters(self) -> int:
        """Number of clusters, which is the number of proteins in an epoch."""
        return len(self._bounds) - 1

    def members(self, epoch: int) -> Numbers:
        """Return the number of the protein that is drawn from each cluster, (C,)."""
        generator = stream(self._seed, "clusters", epoch)
        drawn = numpy.empty(self.num_clusters, self._members.dtype)
        for start in range(0, len(drawn), _BLOCK):
            bounds = self._bounds[start : start + _BLOCK + 1]
            # random() is at most 1 - 2**-53, so the product stays below the size
            places = bounds[:-1] + (generator.random(len(bounds) - 1) * numpy.diff(bounds)).astype(numpy.int64)
            drawn[start : start + _BLOCK] = self._members[places]
        return drawn


def _starts(clusters: NDArray[numpy.uint64], members: Numbers) -> Numbers:
    """Return at which places of ``members``, ordered by cluster, another cluster begins."""
    found = []
    for start in range(0, len(members), _BLOCK):
        # with the last one of the block before, which is not there for the first
        values = clusters[members[max(0, start - 1) : start + _BLOCK]]
        begins = numpy.flatnonzero(values[1:] != values[:-1]) + max(1, start)
        found.append(numpy.append(0, begins) if start == 0 else begins)
    return numpy.concatenate(found).astype(members.dtype) if found else members
