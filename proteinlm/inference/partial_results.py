"""Embeddings of an unfinished run: a folder that survives being killed.

Arrays are appended to flat files, one a kind and layer; then a line of the journal commits the
batch. What lies behind the last whole line is cut off when a run goes on, so the folder always
holds whole batches, and the results made from it are those of an uninterrupted run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy
from numpy.typing import NDArray

from proteinlm.errors import OutputError
from proteinlm.inference.embeddings import Kind
from proteinlm.locks import LOCK_FILE, locked
from proteinlm.outputs import file_beside, parents_made

JOURNAL_FILE = "journal.jsonl"
SETTINGS_FILE = "settings.json"
RESIDUES_FILE = "residues.bin"


@dataclass(frozen=True)
class Entry:
    """What the journal says about one sequence.

    Attributes:
        identifier: as results will name it.
        index: place in the input, from 0.
        length: residues embedded.
        digest: of the residues, to see that a run goes on with the same input.
        num_cut: residues cut away.
        substitutions: what was replaced, by kind.
        failure: why there is no embedding; None if there is one.
    """

    identifier: str
    index: int
    length: int
    digest: str
    num_cut: int = 0
    substitutions: Mapping[str, int] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True)
class Column:
    """One kind of one layer: a flat file of rows of the hidden width."""

    kind: Kind
    layer: int

    @property
    def file_name(self) -> str:
        """Its file inside the folder."""
        return f"{self.kind}.layer{self.layer}.bin"

    def num_rows(self, length: int) -> int:
        """Return the rows of a protein of ``length`` residues."""
        return length if self.kind == "per_tok" else 1


class PartialResults:
    """The folder of an unfinished run, opened for appending.

    Attributes:
        path: the folder.
        columns: kinds and layers, in the order of the results.
        dtype: of every array.
        width: hidden width D.
        num_batches: batches committed so far, those of earlier runs included.

    Raises:
        InUseError: if another process writes it.
        OutputError: if the folder is there and is not to be resumed, or belongs to another run.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[Column],
        *,
        dtype: str,
        width: int,
        settings: Mapping[str, Any],
        resume: bool,
    ) -> None:
        self.path = path
        self.columns = tuple(columns)
        self.dtype = numpy.dtype(dtype)
        self.width = width
        # os.path says no where a Path raises, of folders that may not be looked into
        self._made = [folder for folder in path.parents if not os.path.exists(folder)]
        self._open_files: dict[str, BinaryIO] = {}
        with ExitStack() as stack:
            stack.enter_context(parents_made(path / LOCK_FILE))
            stack.enter_context(locked(path, path, "written"))
            with _errors_of(path):
                self.num_batches = self._recover(settings) if self._exists(resume) else self._begin(settings)
                self._journal = (path / JOURNAL_FILE).open("ab")
            self._lock = stack.pop_all()

    def append(
        self, entries: Sequence[Entry], residues: bytes, arrays: Mapping[Column, Sequence[NDArray[Any]]]
    ) -> None:
        """Commit a batch.

        Args:
            entries: one a sequence, failed ones included.
            residues: letters of the embedded sequences, one behind the other.
            arrays: of the embedded sequences, in order.

        Raises:
            OutputError: if they cannot be written.
        """
        line = json.dumps([asdict(entry) for entry in entries]).encode() + b"\n"
        with _errors_of(self.path):
            self._write(RESIDUES_FILE, [residues])
            for column in self.columns:
                self._write(column.file_name, [numpy.ascontiguousarray(array).tobytes() for array in arrays[column]])
            self._journal.write(line)
            self._journal.flush()
        self.num_batches += 1

    def batches(self) -> Iterator[list[Entry]]:
        """Yield the entries of each committed batch."""
        with _errors_of(self.path, "read"), (self.path / JOURNAL_FILE).open("rb") as journal:
            for line in journal:
                yield [Entry(**entry) for entry in json.loads(line)]

    def embedded(self) -> Iterator[Entry]:
        """Yield the entries that have embeddings, in input order."""
        for batch in self.batches():
            yield from (entry for entry in batch if entry.failure is None)

    def array(self, column: Column) -> NDArray[Any]:
        """Return all rows of a column as a memory map, (rows, D)."""
        return _memory_map(self.path / column.file_name, self.dtype).reshape(-1, self.width)

    def residues(self) -> NDArray[numpy.uint8]:
        """Return the letters of all embedded proteins, one behind the other, as a memory map."""
        return _memory_map(self.path / RESIDUES_FILE, numpy.dtype(numpy.uint8))

    def close(self) -> None:
        """Close the files; the folder stays, for others too."""
        self._close_files()
        self._lock.close()

    def _close_files(self) -> None:
        for file in (*self._open_files.values(), self._journal):
            # what is committed was flushed; what was not fails once more
            with suppress(OSError):
                file.close()

    def remove(self) -> None:
        """Close the files and remove the folder, and the folders made for it that hold nothing else."""
        self._close_files()
        with _errors_of(self.path, "removed"):
            shutil.rmtree(self.path)
        self._lock.close()
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    def _exists(self, resume: bool) -> bool:
        is_there = (self.path / SETTINGS_FILE).is_file()
        if is_there and not resume:
            raise OutputError(f"{self.path}: holds an interrupted run; add --resume to go on with it, or remove it")
        return is_there

    def _begin(self, settings: Mapping[str, Any]) -> int:
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (JOURNAL_FILE, RESIDUES_FILE, *(column.file_name for column in self.columns)):
            (self.path / name).write_bytes(b"")
        # last: a folder without settings has nothing worth keeping
        with file_beside(self.path / SETTINGS_FILE) as partial:
            partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return 0

    def _recover(self, settings: Mapping[str, Any]) -> int:
        """Cut off what is not committed and return the number of batches that are."""
        self._check_settings(settings)
        num_batches = journal_end = num_residues = 0
        rows = dict.fromkeys(self.columns, 0)
        for end, entries in _whole_lines(self.path / JOURNAL_FILE):
            lengths = [entry.length for entry in entries if entry.failure is None]
            grown = {column: rows[column] + sum(map(column.num_rows, lengths)) for column in self.columns}
            if not self._holds(grown, num_residues + sum(lengths)):
                break
            num_batches, journal_end = num_batches + 1, end
            rows, num_residues = grown, num_residues + sum(lengths)
        _shorten(self.path / JOURNAL_FILE, journal_end)
        _shorten(self.path / RESIDUES_FILE, num_residues)
        for column in self.columns:
            _shorten(self.path / column.file_name, self._num_bytes(rows[column]))
        return num_batches

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        found = json.loads((self.path / SETTINGS_FILE).read_text(encoding="utf-8"))
        expected = json.loads(json.dumps(settings))
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                raise OutputError(
                    f"{self.path}: was begun with {name} = {found.get(name)!r}, now it is {expected.get(name)!r}; "
                    "use the same, or remove the folder to start again"
                )

    def _holds(self, rows: Mapping[Column, int], num_residues: int) -> bool:
        sizes = {RESIDUES_FILE: num_residues}
        sizes |= {column.file_name: self._num_bytes(number) for column, number in rows.items()}
        return all((self.path / name).stat().st_size >= size for name, size in sizes.items())

    def _num_bytes(self, rows: int) -> int:
        return rows * self.width * self.dtype.itemsize

    def _write(self, name: str, parts: Sequence[bytes]) -> None:
        if name not in self._open_files:
            self._open_files[name] = (self.path / name).open("ab")
        file = self._open_files[name]
        file.writelines(parts)
        file.flush()


@contextmanager
def _errors_of(path: Path, deed: str = "written") -> Iterator[None]:
    """Raise an OutputError that names ``path`` for whatever the system refuses."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be {deed} ({error.strerror or error})") from error


def _whole_lines(journal: Path) -> Iterator[tuple[int, list[Entry]]]:
    """Yield the end of each whole line and its entries, up to the first that is damaged."""
    end = 0
    with journal.open("rb") as lines:
        for line in lines:
            end += len(line)
            try:
                entries = [Entry(**entry) for entry in json.loads(line)]
            except (ValueError, TypeError):
                return
            if not line.endswith(b"\n"):
                return
            yield end, entries


def _memory_map(path: Path, dtype: numpy.dtype[Any]) -> NDArray[Any]:
    if path.stat().st_size == 0:
        return numpy.empty(0, dtype=dtype)
    # copied on writing: torch warns of what it may not write to
    return numpy.memmap(path, dtype=dtype, mode="c")


def _shorten(path: Path, size: int) -> None:
    with path.open("ab") as file:
        file.truncate(size)
