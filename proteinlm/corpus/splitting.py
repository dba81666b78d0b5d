"""Which split a protein belongs to: a pure function of its sequence, its cluster and the seed.

Neither the order of the files nor the presence of other proteins matters, so a corpus that grows
keeps its splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from proteinlm.corpus.layout import TRAIN, VALIDATION_IID, VALIDATION_OOD, LeakEntry
from proteinlm.errors import ManifestError
from proteinlm.randomness import stream_key
from proteinlm.sequence.compression import SourceDigest, read_decompressed

# how many values a 64-bit hash has
_HASHES = 2.0**64
_hash = xxhash.xxh3_64_intdigest
_HEADER = ["representative", "member"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SplittingConfig:
    """How large the validation splits are, and the seed of the hash that fills them."""

    validation_share: float = 0.02  # share of the proteins, drawn at random
    ood_share: float = 0.05  # share of the clusters, held out whole; without clusters it is not used
    seed: int = 0

    def __post_init__(self) -> None:
        for name, share in (("validation_share", self.validation_share), ("ood_share", self.ood_share)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} is {share}; expected a share from 0 up to below 1")


@dataclass(frozen=True, slots=True)
class Clusters:
    """The cluster of every protein: accession -> accession of its representative."""

    representatives: Mapping[str, str]
    digest: SourceDigest

    @property
    def num_clusters(self) -> int:
        """How many clusters there are."""
        return len(set(self.representatives.values()))


def read_clusters(path: Path) -> Clusters:
    """Read a table ``representative<TAB>member`` as MMseqs2 writes it, with or without a header line.

    Raises:
        ManifestError: if a line has not two words, or a protein is in two clusters.
        FastaError: if the file cannot be read or decompressed.
    """
    digest = SourceDigest()
    representatives: dict[str, str] = {}
    # one string for each representative, however many members it has
    known: dict[str, str] = {}
    for number, line in enumerate(_lines(path, digest), 1):
        words = line.split("\t")
        if len(words) != len(_HEADER) or not all(words):
            raise ManifestError(f"{path}:{number}: expected representative<TAB>member, found {line[:60]!r}")
        if number == 1 and words == _HEADER:
            continue
        representative, member = known.setdefault(words[0], words[0]), words[1]
        if representatives.setdefault(member, representative) != representative:
            raise ManifestError(f"{path}:{number}: '{member}' is in the clusters of two representatives")
    return Clusters(representatives, digest)


def _lines(path: Path, digest: SourceDigest) -> Iterator[str]:
    """Yield the lines of a text file without their ends, LF or CR LF, holding one piece of it."""
    unfinished = b""
    for piece in read_decompressed(path, digest=digest):
        *lines, unfinished = (unfinished + piece).split(b"\n")
        yield from (_text(line) for line in lines)
    if unfinished:
        yield _text(unfinished)


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", errors="replace")


class Splitter:
    """Tells the split of a protein by keyed 64-bit hashes.

    Whole clusters go to ``validation_ood`` by the hash of their representative; of the others,
    proteins go to ``validation_iid`` by the hash of their sequence, so that equal sequences stay
    together.
    """

    def __init__(self, config: SplittingConfig) -> None:
        self._ood_seed = stream_key(config.seed, "split", VALIDATION_OOD)
        self._iid_seed = stream_key(config.seed, "split", VALIDATION_IID)
        self._ood_below = config.ood_share * _HASHES
        self._iid_below = config.validation_share * _HASHES

    def split_of(self, digest: bytes, representative: str | None) -> str:
        """Return the split of a protein.

        Args:
            digest: of the tokens of its sequence.
            representative: of its cluster, or None where that is not known.
        """
        if representative is not None and _hash(representative.encode(), self._ood_seed) < self._ood_below:
            return VALIDATION_OOD
        return VALIDATION_IID if _hash(digest, self._iid_seed) < self._iid_below else TRAIN


@dataclass(slots=True)
class LeakCheck:
    """Watches what goes into which split, and counts what validation shares with training."""

    _train_sequences: set[bytes] = field(default_factory=set)
    _train_clusters: set[str] = field(default_factory=set)
    _validation: dict[str, list[tuple[bytes, str | None]]] = field(default_factory=dict)

    def watch(self, digest: bytes, representative: str | None, split: str) -> None:
        """Remember a protein that has gone into ``split``."""
        if split != TRAIN:
            self._validation.setdefault(split, []).append((digest, representative))
            return
        self._train_sequences.add(digest)
        if representative is not None:
            self._train_clusters.add(representative)

    def report(self, split: str) -> LeakEntry:
        """Return how many proteins of ``split`` have an equal, or a member of their cluster, in ``train``."""
        proteins = self._validation.get(split, [])
        return LeakEntry(
            equal_sequences=sum(digest in self._train_sequences for digest, _ in proteins),
            same_cluster=sum(representative in self._train_clusters for _, representative in proteins)
            if self._train_clusters
            else None,
        )
