"""What a corpus or a FASTA file holds: lengths, composition, ambiguity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from proteinlm.corpus.layout import LeakEntry
from proteinlm.corpus.shard_reader import Corpus, SequenceSet
from proteinlm.progress import SILENT, Progress
from proteinlm.sequence import (
    STANDARD,
    TOKENS,
    VOCAB_SIZE,
    FastaConfig,
    ReadingTally,
    Screen,
    ScreeningConfig,
    ScreeningReport,
    encode,
    read_records,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# where ESM-2 cuts a protein, 1,024 positions less two special tokens, and where windows of a long context end
LENGTH_CUTS = (1022, 8192)
# steps of a histogram in each doubling of the length
STEPS_IN_DOUBLING = 4
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True, slots=True)
class LengthCut:
    """What a cut after so many residues would touch.

    ``share_longer`` is the share of the sequences that are longer, ``share_beyond`` that of all
    residues that stand after the cut.
    """

    num_longer: int
    share_longer: float
    share_beyond: float


@dataclass(frozen=True, slots=True)
class LengthHistogram:
    """Sequences by length: ``counts[i]`` have ``edges[i]`` residues or more, and fewer than ``edges[i + 1]``."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClusterCount:
    """The clusters that sequences belong to."""

    num_clusters: int
    largest: int  # sequences


@dataclass(frozen=True, slots=True)
class SequenceSummary:
    """Sequences in numbers; lengths in residues.

    ``cuts`` are by length; ``ambiguous`` is the share of the residues that is none of the 20 standard
    ones; ``composition`` gives each letter's share, the commonest first.
    """

    num_sequences: int
    num_residues: int
    shortest: int
    longest: int
    percentiles: Mapping[str, float]
    histogram: LengthHistogram
    cuts: Mapping[str, LengthCut]
    ambiguous: float
    composition: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CorpusSummary:
    """A corpus in numbers."""

    path: str
    digest: str
    format_version: int
    num_shards: int
    num_bytes: int
    manifest: Mapping[str, str]
    splits: Mapping[str, SequenceSummary]
    clusters: Mapping[str, ClusterCount]  # of the splits whose shards know them
    leaks: Mapping[str, LeakEntry]
    dropped: Mapping[str, int]
    noted: Mapping[str, int]
    substitutions: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class FastaSummary:
    """A FASTA file in numbers; sequences and substitutions are those that ``ingest`` would keep by default."""

    path: str
    sequences: SequenceSummary
    screening: ScreeningReport
    reading: Mapping[str, int]
    substitutions: Mapping[str, int]


def summarise_corpus(corpus: Corpus) -> CorpusSummary:
    """Return what a corpus holds; opens every shard.

    Raises:
        ShardError: if a shard is missing or damaged.
    """
    index = corpus.index
    files = [corpus.path / shard.file for split in index.splits.values() for shard in split.shards]
    sequences = {name: corpus.sequences(name) for name in index.splits}
    splits = {
        name: summarise_sequences(sequences[name].lengths, split.token_counts) for name, split in corpus.splits.items()
    }
    return CorpusSummary(
        path=str(corpus.path),
        digest=corpus.digest,
        format_version=index.format_version,
        num_shards=len(files),
        num_bytes=sum(file.stat().st_size for file in files),
        manifest=index.manifest,
        splits=splits,
        clusters={name: _clusters(found) for name, found in sequences.items() if len(found) and found.has_clusters},
        leaks=index.leaks,
        dropped=index.screening.dropped,
        noted=index.screening.noted,
        substitutions=index.substitutions,
    )


def summarise_fasta(paths: Iterable[Path | str], *, progress: Progress = SILENT) -> FastaSummary:
    """Return what FASTA files hold.

    Raises:
        FastaError: if a file cannot be read with certainty.
    """
    paths = list(paths)
    tally, screen = ReadingTally(), Screen(ScreeningConfig())
    lengths: list[int] = []
    token_counts = np.zeros(VOCAB_SIZE, dtype=np.int64)
    substitutions: Counter[str] = Counter()
    for record in read_records(paths, config=FastaConfig(), tally=tally, progress=progress):
        encoded = encode(record.residues)
        if screen.judge(record, encoded.tokens).dropped:
            continue
        lengths.append(len(encoded.tokens))
        token_counts += np.bincount(encoded.tokens, minlength=VOCAB_SIZE)
        substitutions.update(encoded.substitutions)
    return FastaSummary(
        path=" ".join(str(path) for path in paths),
        sequences=summarise_sequences(np.array(lengths, dtype=np.int64), token_counts),
        screening=screen.report(),
        reading=dict(sorted(tally.treatments.items())),
        substitutions=dict(sorted(substitutions.items())),
    )


def summarise_sequences(lengths: NDArray[np.int64], token_counts: NDArray[np.int64]) -> SequenceSummary:
    """Return the numbers of sequences of ``lengths``, int64[N], with ``token_counts``, int64[33]."""
    total = int(lengths.sum())
    share = 1 / max(total, 1)
    quantiles = np.percentile(lengths, PERCENTILES) if len(lengths) else np.zeros(len(PERCENTILES))
    order = np.argsort(-token_counts, kind="stable").tolist()
    return SequenceSummary(
        num_sequences=len(lengths),
        num_residues=total,
        shortest=int(lengths.min(initial=total)),
        longest=int(lengths.max(initial=0)),
        percentiles={str(name): float(value) for name, value in zip(PERCENTILES, quantiles, strict=True)},
        histogram=_histogram(lengths),
        cuts={str(cut): _cut(lengths, cut, share) for cut in LENGTH_CUTS},
        ambiguous=float((total - int(token_counts[STANDARD].sum())) * share),
        composition={TOKENS[token]: float(token_counts[token] * share) for token in order if token_counts[token]},
    )


def _histogram(lengths: NDArray[np.int64]) -> LengthHistogram:
    """Return the histogram up to the first edge beyond the longest."""
    num_doublings = int(lengths.max(initial=1)).bit_length()
    edges = np.unique(np.ceil(2 ** (np.arange(STEPS_IN_DOUBLING * num_doublings + 1) / STEPS_IN_DOUBLING)))
    counts, _ = np.histogram(lengths, edges)
    return LengthHistogram(tuple(edges.astype(int).tolist()), tuple(counts.tolist()))


def _cut(lengths: NDArray[np.int64], cut: int, share_of_residue: float) -> LengthCut:
    num_longer = int((lengths > cut).sum())
    num_beyond = int(np.maximum(lengths - cut, 0).sum())
    return LengthCut(num_longer, num_longer / max(len(lengths), 1), num_beyond * share_of_residue)


def _clusters(sequences: SequenceSet) -> ClusterCount:
    _, counts = np.unique(sequences.clusters, return_counts=True)
    return ClusterCount(len(counts), int(counts.max()))
