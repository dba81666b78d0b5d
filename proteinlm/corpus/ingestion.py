"""Sequence files in, a corpus folder out: one pass, constant memory beside hashes and the shards at hand."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from proteinlm import config as configuration
from proteinlm.corpus import layout, manifest
from proteinlm.corpus.held_out import HeldOutFiles
from proteinlm.corpus.layout import SPLITS, TRAIN, CorpusIndex
from proteinlm.corpus.shard_writer import ShardWriter
from proteinlm.corpus.splitting import LeakCheck, Splitter, SplittingConfig, prepare_splitter
from proteinlm.errors import FastaError
from proteinlm.outputs import folder_beside
from proteinlm.progress import SILENT, Progress
from proteinlm.sequence import (
    FastaConfig,
    FastaRecord,
    ReadingTally,
    Screen,
    ScreeningConfig,
    alphabet_digest,
    encode,
    read_records,
)
from proteinlm.sequence.fasta import SourceTally
from proteinlm.sequence.record_blocks import ReadingPosition, block_of
from proteinlm.sequence.wording import listed, on_one_line

# records that are split together
_BATCH = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestionConfig:
    """All settings of a corpus."""

    reading: FastaConfig = field(default_factory=FastaConfig)
    screening: ScreeningConfig = field(default_factory=ScreeningConfig)
    splitting: SplittingConfig = field(default_factory=SplittingConfig)
    shard_residues: int = 1 << 26  # upper size of a shard, except for one sequence that is longer

    def __post_init__(self) -> None:
        if self.shard_residues < 1:
            raise ValueError(f"shard_residues is {self.shard_residues}; expected at least 1")


@dataclass(frozen=True, slots=True)
class IngestionReport:
    """Where the corpus is and everything that was counted on the way."""

    path: Path
    index: CorpusIndex


def ingest(
    paths: Iterable[Path | str],
    output: Path,
    *,
    config: IngestionConfig | None = None,
    clusters: Path | None = None,
    held_out: HeldOutFiles | None = None,
    progress: Progress = SILENT,
) -> IngestionReport:
    """Build a corpus from FASTA files, or others that ``read_records`` reads.

    The same files and settings give the same bytes. The folder appears when all is written.

    Args:
        paths: files, plain or compressed, or ``-`` for standard input, in the order to keep.
        output: the folder to make.
        clusters: a table ``representative<TAB>member`` or another that docs/splits.md describes; with it,
            whole clusters are held out as the split ``validation_ood``.
        held_out: files that say what else is held out there, by name.

    Raises:
        FastaError: if a file cannot be read with certainty, or no record can be kept.
        ManifestError: if the table of clusters is faulty.
        OutputError: if ``output`` exists or cannot be written.
    """
    with folder_beside(output) as folder:
        index = _build(folder, paths, config or IngestionConfig(), clusters, held_out, {}, progress)
        layout.write_index(folder, index)
    return IngestionReport(output, index)


def ingest_manifest(
    path: Path,
    output: Path,
    *,
    config: IngestionConfig | None = None,
    held_out: HeldOutFiles | None = None,
    progress: Progress = SILENT,
) -> IngestionReport:
    """Build a corpus from the files that a manifest names, and check that they are what it says.

    Args:
        path: the manifest; its files are looked for beside it.
        output: the folder to make.
        config: other settings than the manifest's; its expected splits are then not asked for.
        held_out: files that say what is held out by name; nor are they then.

    Raises:
        ManifestError: if the manifest is faulty or a file, a count or a digest is not what it says.
        FastaError, OutputError: as ``ingest``.
    """
    found = manifest.read_manifest(path)
    manifest.check_sizes(path, found)
    own = IngestionConfig(splitting=found.splitting)
    files = [path.parent / file.path for file in found.files]
    clusters = path.parent / found.clusters.path if found.clusters else None
    with folder_beside(output) as folder:
        index = _build(folder, files, config or own, clusters, held_out, found.provenance, progress)
        manifest.check_sources(path, found, index)
        if held_out is None and config in {None, own}:
            manifest.check_splits(path, found, index.splits)
        layout.write_index(folder, index)
    return IngestionReport(output, index)


def _build(
    folder: Path,
    paths: Iterable[Path | str],
    config: IngestionConfig,
    clusters: Path | None,
    held_out: HeldOutFiles | None,
    provenance: dict[str, str],
    progress: Progress,
) -> CorpusIndex:
    arrays = folder / "clusters"
    splitter = prepare_splitter(config.splitting, arrays, clusters=clusters, held_out=held_out)
    builder = _Builder(folder, config, splitter)
    tally = ReadingTally()
    with (folder / layout.SCREENING_FILE).open("w", encoding="utf-8", newline="\n") as table:
        table.write("outcome\treason\tfile\tline\tidentifier\n")
        records = read_records(paths, config=config.reading, tally=tally, progress=progress)
        while batch := list(islice(records, _BATCH)):
            builder.add(batch, table)
    shutil.rmtree(arrays, ignore_errors=True)
    return builder.index(tally, provenance)


class _Builder:
    """Takes records and hands each to the writer of its split."""

    def __init__(self, folder: Path, config: IngestionConfig, splitter: Splitter) -> None:
        self._config = config
        self._screen = Screen(config.screening)
        self._splitter = splitter
        self._leaks = LeakCheck()
        self._substitutions: Counter[str] = Counter()
        self._writers = {
            split: ShardWriter(folder, split, shard_residues=config.shard_residues) for split in splitter.splits
        }

    def add(self, records: list[FastaRecord], table: IO[str]) -> None:
        kept = [self._is_kept(record, table) for record in records]
        block = block_of(records, ReadingPosition(0, 0, 1, 0, 0))
        splits, clusters = self._splitter.splits_of(block, np.array(kept))
        for place, number in enumerate(np.flatnonzero(kept).tolist()):
            split = SPLITS[splits[place]]
            cluster = None if clusters is None else int(clusters[place])
            self._leaks.watch(block.digests[number].tobytes(), cluster, split)
            tokens = block.tokens[block.offsets[number] : block.offsets[number + 1]]
            self._writers[split].add(records[number].identifier, tokens)

    def _is_kept(self, record: FastaRecord, table: IO[str]) -> bool:
        encoded = encode(record.residues)
        verdict = self._screen.judge(record, encoded.tokens)
        if verdict.dropped:
            table.write(_row("dropped", verdict.dropped, record))
            return False
        for note in verdict.noted:
            table.write(_row("noted", note, record))
        if encoded.substitutions:
            self._substitutions.update(encoded.substitutions)
        return True

    def index(self, tally: ReadingTally, provenance: dict[str, str]) -> CorpusIndex:
        splits = {split: writer.close() for split, writer in self._writers.items()}
        screening = self._screen.report()
        if not screening.num_kept:
            raise FastaError(f"none of {screening.num_read:,} records can be kept: {listed(screening.dropped)}")
        return CorpusIndex(
            format_version=layout.FORMAT_VERSION,
            alphabet=alphabet_digest(),
            digest=layout.corpus_digest(splits),
            splits=splits,
            sources=tuple(_source(source) for source in tally.sources),
            clusters=self._splitter.clusters_entry(),
            held_out=self._splitter.held_out_entry(),
            manifest=provenance,
            settings=configuration.to_table(self._config),
            reading=dict(sorted(tally.treatments.items())),
            substitutions=dict(sorted(self._substitutions.items())),
            screening=layout.ScreeningEntry(
                num_read=screening.num_read,
                num_kept=screening.num_kept,
                dropped=screening.dropped,
                noted=screening.noted,
            ),
            leaks={split: self._leaks.report(split) for split in splits if split != TRAIN},
        )


def _row(outcome: str, reason: str, record: FastaRecord) -> str:
    source, identifier = on_one_line(os.path.basename(record.source)), on_one_line(record.identifier)
    return f"{outcome}\t{reason}\t{source}\t{record.line}\t{identifier}\n"


def _source(source: SourceTally) -> layout.SourceEntry:
    return layout.SourceEntry(
        name=Path(source.name).name,
        num_bytes=source.digest.num_bytes,
        sha256=source.digest.sha256,
        num_records=source.num_records,
        num_residues=source.num_residues,
    )
