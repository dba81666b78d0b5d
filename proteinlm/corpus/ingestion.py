"""Sequence files in, a corpus folder out: one pass, in constant memory, and resumable at any moment."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from proteinlm import config as configuration
from proteinlm.corpus import layout, manifest
from proteinlm.corpus.corpus_builder import CorpusBuilder, check_shards
from proteinlm.corpus.digest_spool import MAX_SOURCES
from proteinlm.corpus.held_out import HeldOutFiles
from proteinlm.corpus.ingestion_state import (
    STATE_VERSION,
    IngestionState,
    Repeats,
    Request,
    check_request,
    described,
    read_shards,
    read_state,
    write_state,
)
from proteinlm.corpus.layout import CorpusIndex
from proteinlm.corpus.ordered_threads import Worker
from proteinlm.corpus.repeat_finder import RepeatFinder
from proteinlm.corpus.shard_rewriting import rewrite_shards, settle_rewritten
from proteinlm.corpus.source_reading import SourceReading
from proteinlm.corpus.splitting import Splitter, SplittingConfig, prepare_splitter
from proteinlm.corpus.work_folder import UnusableWorkError, WorkFolder, work_folder
from proteinlm.corpus.written_shard import WrittenShard, split_entry
from proteinlm.errors import FastaError
from proteinlm.progress import SILENT, Progress
from proteinlm.sequence import FastaConfig, ScreeningConfig, ScreeningReport, alphabet_digest
from proteinlm.sequence.compiling import compiling_told
from proteinlm.sequence.compression import name_in_folder, source_name
from proteinlm.sequence.screening import DUPLICATE, DUPLICATE_IDENTIFIER
from proteinlm.sequence.text_blocks import BLOCK_BYTES
from proteinlm.sequence.timings import Timings
from proteinlm.sequence.wording import listed

MEMORY_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestionConfig:
    """All settings of a corpus."""

    reading: FastaConfig = field(default_factory=FastaConfig)
    screening: ScreeningConfig = field(default_factory=ScreeningConfig)
    splitting: SplittingConfig = field(default_factory=SplittingConfig)
    shard_residues: int = 1 << 26  # upper size of a shard, except for one sequence that is longer
    source_sha256: bool = False  # takes a quarter of all the time of plain FASTA

    def __post_init__(self) -> None:
        if self.shard_residues < 1:
            raise ValueError(f"shard_residues is {self.shard_residues}; expected at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How the work is done; nothing in a corpus depends on it.

    Attributes:
        jobs: how many processors to use; None: those that this process may use.
        memory_bytes: for finding duplicates and for tables of clusters, roughly.
        resume: go on with what broke off, if anything did.
        restart: throw away what broke off.
        block_bytes: text that goes through the work as one.
    """

    jobs: int | None = None
    memory_bytes: int = MEMORY_BYTES
    resume: bool = False
    restart: bool = False
    block_bytes: int = BLOCK_BYTES

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"jobs is {self.jobs}; expected at least 1")
        if self.resume and self.restart:
            raise ValueError("resume and restart exclude each other")

    @property
    def num_jobs(self) -> int:
        """The number of processors."""
        return self.jobs or len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class IngestionReport:
    """Where the corpus is, everything that was counted on the way, and where the time went.

    ``timings`` are seconds by stage, summed over all threads, and ``num_bytes`` those read, both of
    this run only: one that went on did not do what was done before.
    """

    path: Path
    index: CorpusIndex
    timings: Mapping[str, float]
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Order:
    """What is to be built."""

    paths: Sequence[Path | str]
    config: IngestionConfig
    clusters: Path | None
    held_out: HeldOutFiles | None
    provenance: Mapping[str, str]
    needs_sha256: bool

    def __post_init__(self) -> None:
        if len(self.paths) > MAX_SOURCES:
            raise FastaError(f"{len(self.paths):,} files; expected at most {MAX_SOURCES:,}, so join some of them")


def ingest(
    paths: Iterable[Path | str],
    output: Path,
    *,
    config: IngestionConfig | None = None,
    clusters: Path | None = None,
    held_out: HeldOutFiles | None = None,
    effort: Effort | None = None,
    progress: Progress = SILENT,
) -> IngestionReport:
    """Build a corpus from FASTA files, or others that ``read_records`` reads.

    The same files and settings give the same bytes, however the work is done and however often it
    broke off. The folder appears when all is written; until then the work lies beside it.

    Args:
        paths: files, plain or compressed, or ``-`` for standard input, in the order to keep.
        output: the folder to make.
        config: the settings.
        clusters: a table ``representative<TAB>member`` or another that docs/splits.md describes; with it,
            whole clusters are held out as the split ``validation_ood``.
        held_out: files that say what else is held out there, by name.
        effort: how the work is done.
        progress: hears of bytes read.

    Raises:
        FastaError: if a file cannot be read with certainty, no record can be kept, or there are more
            than 65,536 files.
        ManifestError: if the table of clusters is faulty.
        OutputError: if ``output`` exists or cannot be written, or what broke off is in the way.
    """
    config = config or IngestionConfig()
    order = _Order(
        paths=list(paths),
        config=config,
        clusters=clusters,
        held_out=held_out,
        provenance={},
        needs_sha256=config.source_sha256,
    )
    with work_folder(output) as folder:
        work = _Work(folder, output, order, effort or Effort(), progress)
        index = work.done()
        layout.write_index(folder.corpus, index)
    return IngestionReport(output, index, work.timings.seconds, work.num_bytes)


def ingest_manifest(
    path: Path,
    output: Path,
    *,
    config: IngestionConfig | None = None,
    held_out: HeldOutFiles | None = None,
    effort: Effort | None = None,
    progress: Progress = SILENT,
) -> IngestionReport:
    """Build a corpus from the files that a manifest names, and check that they are what it says.

    Args:
        path: the manifest; its files are looked for beside it.
        output: the folder to make.
        config: other settings than the manifest's; its expected splits are then not asked for.
        held_out: files that say what is held out by name; nor are they then.
        effort: how the work is done.
        progress: hears of bytes read.

    Raises:
        ManifestError: if the manifest is faulty or a file, a count or a digest is not what it says.
        FastaError, OutputError: as ``ingest``.
    """
    found = manifest.read_manifest(path)
    manifest.check_sizes(path, found)
    own = IngestionConfig(splitting=found.splitting)
    config = config or own
    order = _Order(
        paths=[path.parent / file.path for file in found.files],
        config=config,
        clusters=path.parent / found.clusters.path if found.clusters else None,
        held_out=held_out,
        provenance=found.provenance,
        needs_sha256=config.source_sha256 or any(file.sha256 for file in found.files),
    )
    with work_folder(output) as folder:
        work = _Work(folder, output, order, effort or Effort(), progress)
        index = work.done()
        manifest.check_sources(path, found, index)
        # how a source is read and hashed changes nothing in the splits
        if held_out is None and replace(config, source_sha256=own.source_sha256) == own:
            manifest.check_splits(path, found, index.splits)
        layout.write_index(folder.corpus, index)
    return IngestionReport(output, index, work.timings.seconds, work.num_bytes)


class _Work:
    """One run, from the beginning or from where an earlier one broke off."""

    def __init__(self, folder: WorkFolder, output: Path, order: _Order, effort: Effort, progress: Progress) -> None:
        self._folder, self._order, self._effort, self._progress = folder, order, effort, progress
        self.timings = Timings()
        state = _to_go_on_with(folder, output, effort)
        self._splitter = prepare_splitter(
            order.config.splitting,
            folder.clusters,
            clusters=order.clusters,
            held_out=order.held_out,
            memory_bytes=effort.memory_bytes,
        )
        self._request = _request(order, self._splitter)
        if state is not None:
            check_request(folder, state.request, self._request)
        self._state = state
        self._reading = SourceReading(
            self._order.paths,
            order.config.reading,
            None if state is None else state.reading,
            needs_sha256=order.needs_sha256,
            jobs=effort.num_jobs,
            timings=self.timings,
            progress=progress,
            block_bytes=effort.block_bytes,
        )
        if state is not None:
            self._reading.check_unchanged()

    @property
    def num_bytes(self) -> int:
        """Bytes of sources that this run has read."""
        return self._reading.num_bytes

    def done(self) -> CorpusIndex:
        """Do what is left and return the index."""
        with compiling_told(self._progress, self.timings), self._builder() as builder:
            self._read(builder)
            if not builder.screening.num_kept:
                screening = builder.screening
                raise FastaError(f"none of {screening.num_read:,} records can be kept: {listed(screening.dropped)}")
            with self.timings.measure("finish"):
                repeats = self._repeats(builder)
                shards = builder.shards
                if self._duplicates == "drop":
                    shards = rewrite_shards(self._folder, shards)
            return self._index(builder, shards, repeats)

    @property
    def _duplicates(self) -> str:
        return self._order.config.screening.duplicates

    @contextmanager
    def _builder(self) -> Iterator[CorpusBuilder]:
        """Yield a builder that is where the work broke off; end its threads and close its files."""
        jobs = self._effort.num_jobs
        worker, writer = Worker(is_threaded=jobs > 1), Worker(is_threaded=jobs > 2)
        builder = CorpusBuilder(
            self._folder,
            self._request,
            self._order.config.screening,
            self._splitter,
            shard_residues=self._order.config.shard_residues,
            worker=worker,
            writer=writer,
            timings=self.timings,
        )
        try:
            try:
                self._prepare(builder)
                yield builder
            finally:
                # before the files that they write to are closed
                worker.stop()
                writer.stop()
        except BaseException:
            # what cannot be flushed to a full disk is not worth another message
            with suppress(OSError):
                builder.close_files()
            raise
        builder.close_files()

    def _prepare(self, builder: CorpusBuilder) -> None:
        if self._state is None:
            builder.begin()
        else:
            shards = read_shards(self._folder.shards, self._state.num_shards)
            check_shards(self._folder, settle_rewritten(self._folder, shards))
            builder.resume(self._state, shards)

    def _read(self, builder: CorpusBuilder) -> None:
        if self._state is None or not self._state.is_read:
            for block in self._reading.blocks():
                builder.add(block)
                builder.checkpoint(self._reading.state)
            builder.close(self._reading.state())

    def _repeats(self, builder: CorpusBuilder) -> Repeats:
        """Find and list repeats, unless that was done before the work broke off."""
        if self._state is not None and self._state.repeats is not None:
            return self._state.repeats
        finder = RepeatFinder(
            self._folder,
            builder.spool,
            splits=self._splitter.splits,
            sources=[source_name(path) for path in self._order.paths],
            shards=builder.shards,
            memory_bytes=self._effort.memory_bytes,
        )
        repeats = finder.find(builder.table, duplicates=self._duplicates)
        write_state(self._folder, builder.state(self._reading.state(), repeats))
        return repeats

    def _index(self, builder: CorpusBuilder, shards: list[WrittenShard], repeats: Repeats) -> CorpusIndex:
        splits = {
            split: split_entry([shard for shard in shards if shard.split == split]) for split in self._splitter.splits
        }
        return CorpusIndex(
            format_version=layout.FORMAT_VERSION,
            alphabet=alphabet_digest(),
            digest=layout.corpus_digest(splits),
            splits=splits,
            sources=self._reading.sources,
            clusters=self._splitter.clusters_entry(),
            held_out=self._splitter.held_out_entry(),
            manifest=dict(self._order.provenance),
            settings=configuration.to_table(self._order.config),
            reading=self._reading.treatments,
            substitutions=builder.substitutions,
            screening=_screening(builder.screening, repeats, self._duplicates),
            leaks=repeats.leaks,
        )


def _to_go_on_with(folder: WorkFolder, output: Path, effort: Effort) -> IngestionState | None:
    """Return the state of what broke off, or None and an empty folder to begin with."""
    state = None if effort.restart else read_state(folder)
    if state is not None and not effort.resume:
        raise UnusableWorkError(
            f"{output}: an ingestion that broke off lies in {folder.path} ({described(state)}); "
            "go on with it by --resume, or throw it away by --restart"
        )
    if state is None:
        folder.clear()
        folder.begin()
    return state


def _request(order: _Order, splitter: Splitter) -> Request:
    clusters, held_out = splitter.clusters_entry(), splitter.held_out_entry()
    return Request(
        state_version=STATE_VERSION,
        format_version=layout.FORMAT_VERSION,
        alphabet=alphabet_digest(),
        inputs=tuple(name_in_folder(path) for path in order.paths),
        clusters="" if clusters is None else clusters.sha256,
        held_out={} if held_out is None else {role: file.sha256 for role, file in held_out.files.items()},
        manifest=dict(order.provenance),
        settings=configuration.to_table(order.config),
    )


def _screening(found: ScreeningReport, repeats: Repeats, duplicates: str) -> layout.ScreeningEntry:
    dropped, noted = dict(found.dropped), dict(found.noted)
    if repeats.num_sequences:
        (dropped if duplicates == "drop" else noted)[DUPLICATE] = repeats.num_sequences
    if repeats.num_names:
        noted[DUPLICATE_IDENTIFIER] = repeats.num_names
    return layout.ScreeningEntry(
        num_read=found.num_read,
        num_kept=found.num_read - sum(dropped.values()),
        dropped=dict(sorted(dropped.items())),
        noted=dict(sorted(noted.items())),
    )
