"""Which split a protein belongs to: a pure function of the protein, its cluster and the seed.

Neither the order of the files nor the presence of other proteins matters, so a corpus that grows
keeps its splits.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from proteinlm.corpus.cluster_table import ClusterTable, ClusterTableConfig, cluster_table, is_in
from proteinlm.corpus.held_out import HeldOut, HeldOutFiles, own_clusters, read_held_out
from proteinlm.corpus.layout import (
    SPLITS,
    VALIDATION_IID,
    VALIDATION_OOD,
    ClustersEntry,
    HeldOutEntry,
)
from proteinlm.errors import ConfigError
from proteinlm.randomness import stream_key
from proteinlm.sequence.record_blocks import RecordBlock

if TYPE_CHECKING:
    from numpy.typing import NDArray

_IID, _OOD = (SPLITS.index(name) for name in (VALIDATION_IID, VALIDATION_OOD))
# what reading and looking up clusters may hold where nothing else is said
MEMORY_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True, slots=True)
class SplittingConfig:
    """How the validation splits are filled, and the seed of the hashes."""

    validation_share: float = 0.02  # share of what validation_by says, drawn at random
    ood_share: float = 0.05  # share of the clusters, held out whole; without clusters it is not used
    seed: int = 0
    validation_by: Literal["sequence", "identifier", "cluster"] = "sequence"
    largest_clusters: int = 0  # hold out so many of the largest clusters, and not a share
    cluster_source: Literal["file", "header"] = "file"  # header: a UniRef identifier is its own cluster
    cluster_columns: tuple[str, ...] = ()  # columns of the clusters and of their members; the first two if empty

    def __post_init__(self) -> None:
        for name, share in (("validation_share", self.validation_share), ("ood_share", self.ood_share)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} is {share}; expected a share from 0 up to below 1")
        if self.largest_clusters < 0:
            raise ValueError(f"largest_clusters is {self.largest_clusters}; expected 0 or more")
        if len(self.cluster_columns) not in {0, 2} or len(set(self.cluster_columns)) != len(self.cluster_columns):
            shown = ",".join(self.cluster_columns)
            raise ValueError(f"cluster_columns is {shown}; expected two names, of the clusters and of their members")
        if self.cluster_source == "header" and (self.largest_clusters or self.cluster_columns):
            raise ValueError("cluster_source is header, which knows neither sizes of clusters nor columns")


def prepare_splitter(
    config: SplittingConfig,
    folder: Path,
    *,
    clusters: Path | None = None,
    held_out: HeldOutFiles | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> Splitter:
    """Read what tells the splits, and return who applies it.

    Args:
        config: the settings.
        folder: for the arrays of the clusters, which the splitter maps. What is there of the same file
            and settings is taken as it is. Remove it when the corpus is complete.
        clusters: a table ``representative<TAB>member``, one with a header line, or UniRef's XML.
        held_out: the files that say what to hold out by name.
        memory_bytes: what reading and looking up the clusters may hold.

    Raises:
        ConfigError: if files and settings cannot go together.
        ManifestError: if a file is faulty.
        FastaError: if one cannot be read or decompressed.
    """
    _check(config, clusters)
    names = read_held_out(held_out) if held_out is not None else None
    if clusters is None:
        return Splitter(config, held_out=names)
    asked = ClusterTableConfig(
        seed=_seed(config, VALIDATION_OOD), columns=config.cluster_columns, num_largest=config.largest_clusters
    )
    return Splitter(config, clusters=cluster_table(clusters, folder, asked, memory_bytes=memory_bytes), held_out=names)


def _check(config: SplittingConfig, clusters: Path | None) -> None:
    """Refuse settings that need a table of clusters where there is none, and a table that has no use."""
    if clusters is not None and config.cluster_source == "header":
        raise ConfigError(f"{clusters}: has no use, for cluster_source is header; leave one of the two out")
    needs = {
        "largest_clusters": config.largest_clusters > 0,
        "cluster_columns": bool(config.cluster_columns),
        "validation_by cluster": config.validation_by == "cluster" and config.cluster_source == "file",
    }
    for name, is_needed in needs.items():
        if is_needed and clusters is None:
            raise ConfigError(f"{name} needs a table of clusters, and there is none")


def _seed(config: SplittingConfig, split: str) -> int:
    return stream_key(config.seed, "split", split)


def _below(share: float) -> np.uint64:
    """Return the number below which a share of all 64-bit hashes lies."""
    # a hash is below the product if and only if it is below the whole number that follows
    return np.uint64(math.ceil(share * 2.0**64))


@dataclass(slots=True)
class _Counts:
    """What the splitter has met so far."""

    num_clustered: int = 0
    num_unclustered: int = 0
    num_listed: int = 0
    num_of_families: int = 0
    num_relatives: int = 0


class Splitter:
    """Tells the splits of the proteins of a block.

    ``validation_ood`` takes, by the first rule that applies: proteins on the list, proteins of held-out
    families, proteins whose cluster has a member of either, and whole clusters, the largest or those
    with a low hash. Of the others, those with a low hash go to ``validation_iid``.

    One thread calls it, with the blocks in any order.

    Attributes:
        splits: the splits that it may fill.
    """

    def __init__(
        self, config: SplittingConfig, *, clusters: ClusterTable | None = None, held_out: HeldOut | None = None
    ) -> None:
        self._config = config
        self._table = clusters
        self._held_out = held_out
        self._ood_seed, self._iid_seed = (_seed(config, split) for split in (VALIDATION_OOD, VALIDATION_IID))
        self._knows_clusters = clusters is not None or config.cluster_source == "header"
        may_hold_out = self._knows_clusters or held_out is not None
        self.splits = SPLITS if may_hold_out else tuple(name for name in SPLITS if name != VALIDATION_OOD)
        self._validation_below = _below(config.validation_share)
        self._related = self._clusters_of_held_out()
        self._counts = _Counts()
        self._is_matched = np.zeros(0 if held_out is None else len(held_out.listed), dtype=np.bool_)

    @property
    def may_part_equals(self) -> bool:
        """Whether equal sequences can come to be in two splits."""
        return self._knows_clusters or self._held_out is not None or self._config.validation_by != "sequence"

    def splits_of(
        self, block: RecordBlock, kept: NDArray[np.bool_]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint64] | None]:
        """Return the splits and the clusters of the K records of a block that are kept.

        Args:
            block: N records.
            kept: (N,), which of them go into the corpus.

        Returns:
            uint8 (K,), places in ``SPLITS``, and uint64 (K,), numbers of the clusters, or None where no
            clusters are known. A protein that is in none has a cluster of its own.
        """
        from proteinlm.corpus.row_hashes import hash_pairs

        rows = np.flatnonzero(kept)
        # a gathering of its own, in vain where nothing is told by name
        is_named = self._table is not None or self._held_out is not None
        names = block.name_digests[rows, 0] if is_named else np.zeros(len(rows), dtype=np.uint64)
        clusters, is_clustered = self._clusters_of(block, rows, names)
        is_low = hash_pairs(*self._validation_pairs(block, rows, clusters), self._iid_seed) < self._validation_below
        splits = np.multiply(is_low, _IID, dtype=np.uint8)
        if self._held_out is not None:
            splits[self._held_out_by_name(self._held_out, names, clusters)] = _OOD
        if clusters is not None:
            splits[self._held_out_by_size_or_hash(clusters) & is_clustered] = _OOD
        return splits, clusters

    def _clusters_of(
        self, block: RecordBlock, rows: NDArray[np.int64], names: NDArray[np.uint64]
    ) -> tuple[NDArray[np.uint64] | None, NDArray[np.bool_]]:
        """Return the clusters of records (K,), and which of them the table or the identifier tells."""
        from proteinlm.corpus.row_hashes import are_of_uniref, hash_accessions

        if not self._knows_clusters:
            return None, np.zeros(len(rows), dtype=np.bool_)
        identifiers, offsets = block.identifiers, block.identifier_offsets
        if self._table is None:
            clusters = hash_accessions(identifiers, offsets, rows, self._ood_seed)
            is_clustered = are_of_uniref(identifiers, offsets, rows)
        else:
            clusters, is_clustered = self._table.lookup(names)
            others = np.flatnonzero(~is_clustered)
            clusters[others] = hash_accessions(identifiers, offsets, rows[others], self._ood_seed)
            # a representative need not be among the members
            is_clustered[others] = self._table.is_cluster(clusters[others])
        num_clustered = int(np.count_nonzero(is_clustered))
        self._counts.num_clustered += num_clustered
        self._counts.num_unclustered += len(rows) - num_clustered
        return clusters, is_clustered

    def _held_out_by_name(
        self, held_out: HeldOut, names: NDArray[np.uint64], clusters: NDArray[np.uint64] | None
    ) -> NDArray[np.bool_]:
        is_listed = is_in(names, held_out.listed)
        self._is_matched[np.searchsorted(held_out.listed, names[is_listed])] = True
        is_of_family = is_in(names, held_out.members) & ~is_listed
        is_held_out = is_listed | is_of_family
        if clusters is not None:
            is_related = is_in(clusters, self._related) & ~is_held_out
            is_held_out |= is_related
            self._counts.num_relatives += int(np.count_nonzero(is_related))
        self._counts.num_listed += int(np.count_nonzero(is_listed))
        self._counts.num_of_families += int(np.count_nonzero(is_of_family))
        return is_held_out

    def _clusters_of_held_out(self) -> NDArray[np.uint64]:
        """Return the clusters, in rising order, that have a member which is held out by name."""
        if self._held_out is None or not self._knows_clusters:
            return np.zeros(0, dtype=np.uint64)
        # a name on the list may be a representative that is no member of the table
        found = [own_clusters(self._held_out.list_names, self._ood_seed)]
        if self._table is not None:
            for names in (self._held_out.listed, self._held_out.members):
                clusters, is_known = self._table.lookup(names)
                found.append(clusters[is_known])
        return np.unique(np.concatenate(found))

    def _held_out_by_size_or_hash(self, clusters: NDArray[np.uint64]) -> NDArray[np.bool_]:
        if self._config.largest_clusters and self._table is not None:
            return is_in(clusters, self._table.largest)
        is_low: NDArray[np.bool_] = clusters < _below(self._config.ood_share)
        return is_low

    def _validation_pairs(
        self, block: RecordBlock, rows: NDArray[np.int64], clusters: NDArray[np.uint64] | None
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return 128 bits (N, 2), low half and high half, and those rows (K,) whose hash fills ``validation_iid``."""
        if self._config.validation_by == "cluster":
            assert clusters is not None
            return np.stack([clusters, np.zeros_like(clusters)], axis=1), np.arange(len(rows))
        return (block.digests if self._config.validation_by == "sequence" else block.name_digests), rows

    def state(self) -> dict[str, Any]:
        """Return what has been counted, for ``restore`` after an interruption; JSON can hold it."""
        matched = base64.b85encode(np.packbits(self._is_matched).tobytes()).decode()
        return asdict(self._counts) | {"matched": matched}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned, with the same settings and files."""
        counts = dict(state)
        bits = np.frombuffer(base64.b85decode(counts.pop("matched")), dtype=np.uint8)
        self._is_matched = np.unpackbits(bits, count=len(self._is_matched)).astype(np.bool_)
        self._counts = _Counts(**counts)

    def clusters_entry(self) -> ClustersEntry | None:
        """Return what the index says of the clusters, or None where none are known."""
        if not self._knows_clusters:
            return None
        table = self._table
        return ClustersEntry(
            num_bytes=table.num_bytes if table else 0,
            sha256=table.sha256 if table else "",
            num_clusters=table.num_clusters if table else self._counts.num_clustered,
            num_unclustered=self._counts.num_unclustered,
        )

    def held_out_entry(self) -> HeldOutEntry | None:
        """Return what the index says of proteins held out by name, or None where none were to be."""
        if self._held_out is None:
            return None
        return HeldOutEntry(
            files=self._held_out.files,
            num_names=len(self._held_out.listed),
            num_unmatched=int(np.count_nonzero(~self._is_matched)),
            families=self._held_out.families,
            num_listed=self._counts.num_listed,
            num_of_families=self._counts.num_of_families,
            num_relatives=self._counts.num_relatives,
        )
