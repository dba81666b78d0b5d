"""A corpus as FASTA again: the residues of the shards, one sequence in memory at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from proteinlm.corpus.shard_reader import Corpus, SequenceSet
from proteinlm.errors import OutputError, ShardError
from proteinlm.outputs import file_beside
from proteinlm.progress import SILENT, Progress
from proteinlm.sequence import TOKENS
from proteinlm.sequence.compressed_output import compressing

STDOUT = "-"
# what no residue is written as, so that one search finds a token that is none
_NO_RESIDUE = 0
_LETTERS = bytes(
    ord(TOKENS[token]) if token < len(TOKENS) and len(TOKENS[token]) == 1 else _NO_RESIDUE for token in range(256)
)
_WRITTEN_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written."""

    splits: tuple[str, ...]
    num_sequences: int
    num_residues: int


def export_fasta(
    corpus: Corpus,
    output: Path | str,
    *,
    splits: Iterable[str] | None = None,
    line_width: int = 60,
    progress: Progress = SILENT,
) -> ExportReport:
    """Write the sequences of a corpus as FASTA, split after split, in the order of the shards.

    Args:
        corpus: an open corpus; its residues are written as the letters of their tokens.
        output: a file, compressed if its name ends in .gz, .xz, .bz2 or .zst, that appears when all
            is written; or ``-`` for standard output.
        splits: names of the splits to write; None for all.
        line_width: residues in a line; 0 writes each sequence in one line.

    Raises:
        ShardError: if there is no such split, or a shard is missing or damaged.
        OutputError: if the file cannot be written.
    """
    names = tuple(dict.fromkeys(splits)) if splits is not None else tuple(corpus.index.splits)
    sequences = [corpus.sequences(name) for name in names]
    num_residues = sum(corpus.index.splits[name].num_residues for name in names)
    progress.start("exporting", num_residues, "residue")
    try:
        with _opened(output) as file:
            for name, split in zip(names, sequences, strict=True):
                _write(file, _records(split, f"{corpus.path}: {name}", line_width, progress))
    finally:
        progress.finish()
    return ExportReport(names, sum(len(split) for split in sequences), num_residues)


@contextmanager
def _opened(output: Path | str) -> Iterator[IO[bytes]]:
    if str(output) == STDOUT:
        if sys.stdout is None:
            raise OutputError("standard output: is closed; name a file to write")
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            # shards that cannot be read have errors of their own, and the system has no name for this file
            raise OSError(error.errno, error.strerror, "standard output") from error
        return
    path = Path(output)
    with file_beside(path) as partial, partial.open("wb") as plain, compressing(plain, path.suffix) as file:
        yield file


def _write(file: IO[bytes], pieces: Iterator[bytes]) -> None:
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        if len(waiting) >= _WRITTEN_AT_ONCE:
            file.write(waiting)
            waiting.clear()
    file.write(waiting)


def _records(sequences: SequenceSet, source: str, line_width: int, progress: Progress) -> Iterator[bytes]:
    for number in range(len(sequences)):
        residues = sequences.tokens(number).tobytes().translate(_LETTERS)
        if _NO_RESIDUE in residues:
            raise ShardError(f"{source}: sequence {number:,} holds a token that is no residue; run proteinlm verify")
        yield f">{sequences.identifier(number)}\n".encode()
        width = line_width or len(residues) or 1
        yield b"".join([residues[start : start + width] + b"\n" for start in range(0, len(residues), width)])
        progress.advance(len(residues))
