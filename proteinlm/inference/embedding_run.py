"""A run that embeds sequences into files, and goes on where an earlier one was interrupted."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch

import proteinlm
from proteinlm.config import to_table
from proteinlm.errors import ConfigError, FastaError, OutputError
from proteinlm.inference.embedding_files import Output, WrittenFile, write_files
from proteinlm.inference.embeddings import (
    Embedder,
    EmbeddingConfig,
    EncodedSequence,
    FailedSequence,
    Outcome,
    SequenceEmbedding,
    encode_sequences,
)
from proteinlm.inference.partial_results import Column, Entry, PartialResults
from proteinlm.inference.pretrained import PretrainedModel
from proteinlm.model.checkpoint import weights_digest
from proteinlm.outputs import file_beside, refuse_full
from proteinlm.progress import SILENT, Progress
from proteinlm.sequence.compression import can_be_read_again
from proteinlm.sequence.fasta import FastaRecord, ReadingTally, accession, read_fasta
from proteinlm.sequence.screening import looks_like_nucleotides
from proteinlm.sequence.wording import on_one_line

Naming: TypeAlias = Literal["first-word", "accession", "full"]
OnError: TypeAlias = Literal["stop", "skip"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How results are named, and what happens when a sequence fails or a run was interrupted."""

    naming: Naming = "accession"
    on_error: OnError = "stop"
    resume: bool = False

    def __post_init__(self) -> None:
        if self.naming not in get_args(Naming):
            raise ConfigError(f"naming is '{self.naming}'; expected one of {', '.join(get_args(Naming))}")
        if self.on_error not in get_args(OnError):
            raise ConfigError(f"on_error is '{self.on_error}'; expected one of {', '.join(get_args(OnError))}")


@dataclass(frozen=True)
class InputSurvey:
    """What the input holds; ``treatments`` counts what reading took away, by kind.

    num_nucleotides: sequences that look like nucleotides, not like a protein.
    """

    num_sequences: int
    num_residues: int
    num_nucleotides: int
    treatments: Mapping[str, int]


@dataclass(frozen=True)
class EmbeddingReport:
    """What a run did, the part done before an interruption included.

    Attributes:
        num_resumed: sequences taken over from an interrupted run, of ``num_residues_resumed``.
        num_failed: sequences without an embedding, listed in ``failed_path``.
        num_cut: sequences shortened, by ``num_cut_residues`` together.
        num_repeated: sequences whose identifier had occurred before.
        num_beyond_window: proteins longer than the windows the model was trained on.
        num_nucleotides: sequences that look like nucleotides, not like a protein.
        substitutions: what was replaced, by kind.
        seconds: of this run, from the first batch to the last.
        device: where the model ran.
    """

    num_sequences: int
    num_residues: int
    num_resumed: int
    num_residues_resumed: int
    num_failed: int
    num_cut: int
    num_cut_residues: int
    num_repeated: int
    num_beyond_window: int
    num_nucleotides: int
    substitutions: dict[str, int]
    seconds: float
    device: str
    files: list[WrittenFile]
    failed_path: Path | None


def can_be_surveyed(paths: Sequence[str | Path]) -> bool:
    """Say whether all files can be read twice; what comes through a pipe is gone once it was read."""
    return all(can_be_read_again(path) for path in paths)


def survey(paths: Sequence[str | Path], *, on_error: OnError = "stop", progress: Progress = SILENT) -> InputSurvey:
    """Read FASTA files once, so that bad input is found before the work and its size is known.

    Raises:
        FastaError: if a file cannot be read, or a record has no residues and ``on_error`` is "stop".
    """
    tally = ReadingTally()
    num_nucleotides = 0
    try:
        for record in read_fasta(paths, tally=tally, progress=progress):
            if not record.residues and on_error == "stop":
                raise FastaError(
                    f"{record.source}:{record.line}: '{record.identifier}' has no residues; "
                    "skip such records with --on-error skip"
                )
            num_nucleotides += looks_like_nucleotides(record.residues)
    finally:
        progress.finish()
    return InputSurvey(
        sum(source.num_records for source in tally.sources),
        sum(source.num_residues for source in tally.sources),
        num_nucleotides,
        dict(tally.treatments),
    )


def embed_to_files(
    pretrained: PretrainedModel,
    records: Iterable[FastaRecord],
    output: Output,
    config: EmbeddingConfig,
    run: RunConfig,
    *,
    num_residues: int | None = None,
    progress: Progress = SILENT,
) -> EmbeddingReport:
    """Embed records and write the results, in the order given.

    Until the end everything is kept in ``output.partial_path``, which stays if the run breaks off
    after its first batch, except by faulty input; with ``run.resume`` a later run goes on there and
    writes the same bytes as an uninterrupted one.

    Args:
        num_residues: of all records, for the progress; None if not known.

    Raises:
        OutputError: if results cannot be written, or a partial result belongs to another run.
        ConfigError, FastaError, UnavailableError: as ``embed_records``, if ``run.on_error`` is "stop".
    """
    if output.is_folder:
        refuse_full(output.path)
    embedder = Embedder(pretrained, config)
    settings = _settings(pretrained, embedder, run)
    columns = [Column(kind, layer) for layer in embedder.layers for kind in dict.fromkeys(config.include)]
    results = PartialResults(
        output.partial_path,
        columns,
        dtype=config.dtype,
        width=pretrained.model.config.hidden_size,
        settings=settings,
        resume=run.resume,
    )
    about = {
        "checkpoint": str(pretrained.path),
        "weights_sha256": settings["weights_sha256"],
        "step": pretrained.step,
        "attention": json.dumps(settings["model"]["attention"]),
        "proteinlm_version": proteinlm.__version__,
    }
    with closing(results):
        sequences = encode_sequences(_named(records, run.naming), config)
        start = time.perf_counter()
        resumed = _fill_or_remove(results, embedder, sequences, run, num_residues, progress)
        seconds = time.perf_counter() - start
        files = write_files(output, results, about)
        report = _report(pretrained, results, output, files, resumed=resumed, seconds=seconds)
    results.remove()
    return report


def _fill_or_remove(
    results: PartialResults,
    embedder: Embedder,
    sequences: Iterable[EncodedSequence],
    run: RunConfig,
    num_residues: int | None,
    progress: Progress,
) -> Counter[str]:
    is_new = not results.num_batches
    try:
        return _fill(results, embedder, sequences, num_residues, run, progress)
    except FastaError:
        # faulty input leaves no output; what an earlier run has done is not its fault
        if is_new:
            _remove_if_possible(results)
        raise
    except BaseException:
        # whole batches are worth keeping, an empty folder is not
        if not results.num_batches:
            _remove_if_possible(results)
        raise
    finally:
        progress.finish()


def _remove_if_possible(results: PartialResults) -> None:
    # a folder that stays is no reason to hide what went wrong before
    with suppress(OutputError):
        results.remove()


def _fill(
    results: PartialResults,
    embedder: Embedder,
    sequences: Iterable[EncodedSequence],
    num_residues: int | None,
    run: RunConfig,
    progress: Progress,
) -> Counter[str]:
    """Embed what is not committed yet and count the sequences and residues that were."""
    batches = embedder.batches(sequences)
    resumed: Counter[str] = Counter()
    for batch in _committed(results, batches):
        resumed["sequences"] += len(batch)
        resumed["residues"] += sum(len(sequence.tokens) for sequence in batch)
    progress.start("embed", num_residues, "residue", done=resumed["residues"])
    for batch in batches:
        outcomes = embedder.embed(batch)
        for outcome in outcomes:
            if isinstance(outcome, FailedSequence) and run.on_error == "stop":
                raise outcome.error
        _commit(results, batch, outcomes)
        progress.advance(sum(len(sequence.tokens) for sequence in batch))
    return resumed


def _committed(results: PartialResults, batches: Iterator[list[EncodedSequence]]) -> Iterator[list[EncodedSequence]]:
    """Yield the batches that an earlier run committed, having seen that they are the same."""
    for entries in islice(results.batches(), results.num_batches):
        batch = next(batches, [])
        for sequence, entry in zip(batch, entries, strict=False):
            if (sequence.identifier, _digest(sequence)) != (entry.identifier, entry.digest):
                raise OutputError(
                    f"{results.path}: was begun with '{entry.identifier}' as sequence {entry.index}, but the input "
                    f"now has '{sequence.identifier}' or other residues; use the same input, or remove the folder"
                )
        if len(batch) != len(entries):
            raise OutputError(
                f"{results.path}: was begun with more sequences than the input has; "
                "use the same input, or remove the folder"
            )
        yield batch


def _commit(results: PartialResults, batch: Sequence[EncodedSequence], outcomes: Sequence[Outcome]) -> None:
    embedded = [outcome for outcome in outcomes if isinstance(outcome, SequenceEmbedding)]
    reasons = {outcome.index: str(outcome.error) for outcome in outcomes if isinstance(outcome, FailedSequence)}
    entries = [
        Entry(
            identifier=sequence.identifier,
            index=sequence.index,
            length=len(sequence.tokens),
            digest=_digest(sequence),
            num_cut=sequence.num_cut,
            substitutions=sequence.substitutions,
            failure=reasons.get(sequence.index),
        )
        for sequence in batch
    ]
    residues = b"".join(sequence.residues for sequence in batch if sequence.index not in reasons)
    arrays = {column: [getattr(done, column.kind)[column.layer] for done in embedded] for column in results.columns}
    results.append(entries, residues, arrays)


def _named(records: Iterable[FastaRecord], naming: Naming) -> Iterator[FastaRecord]:
    """Yield the records under the names that results will have."""
    for record in records:
        match naming:
            case "first-word":
                yield record
            case "accession":
                yield record._replace(identifier=accession(record.identifier))
            case "full":
                yield record._replace(identifier=f"{record.identifier} {record.description}".rstrip())


def _settings(pretrained: PretrainedModel, embedder: Embedder, run: RunConfig) -> dict[str, Any]:
    """Return all that decides the values and names of the results, apart from the input."""
    config = embedder.config
    return {
        "proteinlm": proteinlm.__version__,
        "torch": torch.__version__,
        "device": pretrained.device.type,
        "weights_sha256": weights_digest(pretrained.path),
        "weights_dtype": str(next(pretrained.model.parameters()).dtype),
        "step": pretrained.step,
        "seed": pretrained.model.seed,
        "model": to_table(pretrained.model.config),
        "include": list(config.include),
        "repr_layers": list(embedder.layers),
        "toks_per_batch": config.toks_per_batch,
        "truncation_seq_length": config.truncation_seq_length,
        "dtype": config.dtype,
        "id": run.naming,
    }


def _report(
    pretrained: PretrainedModel,
    results: PartialResults,
    output: Output,
    files: list[WrittenFile],
    *,
    resumed: Counter[str],
    seconds: float,
) -> EmbeddingReport:
    counts: Counter[str] = Counter()
    substitutions: Counter[str] = Counter()
    names: set[str] = set()
    window = pretrained.window_length
    for entry in results.embedded():
        counts["sequences"] += 1
        counts["residues"] += entry.length
        counts["cut"] += entry.num_cut > 0
        counts["cut residues"] += entry.num_cut
        counts["repeated"] += entry.identifier in names
        counts["beyond window"] += window is not None and entry.length + 2 > window
        substitutions.update(entry.substitutions)
        names.add(entry.identifier)
    counts["nucleotides"] = sum(map(looks_like_nucleotides, _embedded_residues(results)))
    num_failed = _write_failed(output.failed_path, results)
    return EmbeddingReport(
        num_sequences=counts["sequences"],
        num_residues=counts["residues"],
        num_resumed=resumed["sequences"],
        num_residues_resumed=resumed["residues"],
        num_failed=num_failed,
        num_cut=counts["cut"],
        num_cut_residues=counts["cut residues"],
        num_repeated=counts["repeated"],
        num_beyond_window=counts["beyond window"],
        num_nucleotides=counts["nucleotides"],
        substitutions=dict(substitutions),
        seconds=seconds,
        device=str(pretrained.device),
        files=files,
        failed_path=output.failed_path if num_failed else None,
    )


def _embedded_residues(results: PartialResults) -> Iterator[bytes]:
    """Yield the residues of each embedded sequence, those of an earlier run included."""
    residues, start = results.residues(), 0
    for entry in results.embedded():
        end = start + entry.length
        yield residues[start:end].tobytes()
        start = end


def _write_failed(path: Path, results: PartialResults) -> int:
    """Write the table of failed sequences, or remove an older one when none failed; return how many."""
    failed = [entry for batch in results.batches() for entry in batch if entry.failure is not None]
    if not failed:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{path}: cannot be removed ({error.strerror or error})") from error
        return 0
    with file_beside(path) as partial, partial.open("w", encoding="utf-8") as table:
        table.write("index\tidentifier\tresidues\treason\n")
        for entry in failed:
            identifier, reason = on_one_line(entry.identifier), on_one_line(entry.failure or "")
            table.write(f"{entry.index}\t{identifier}\t{entry.length}\t{reason}\n")
    return len(failed)


def _digest(sequence: EncodedSequence) -> str:
    return hashlib.blake2b(sequence.residues, digest_size=8).hexdigest()
