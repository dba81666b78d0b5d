"""Files of embeddings, in the layouts that other programs read.

HDF5 and .npz hold one kind of one layer a file: either one array a protein under its identifier
(layout "uniprot"), or all rows in one array beside the places where proteins end (layout "flat",
which scikit-bio reads). A folder of .pt files holds everything about a protein in one file, as
esm-extract writes it; a single .pt file holds a dict of all these, by identifier.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, cast
from urllib.parse import quote

import numpy
from numpy.typing import NDArray

from proteinlm.errors import ConfigError
from proteinlm.inference.disk_file import DiskFile, disk_file
from proteinlm.inference.partial_results import Column, Entry, PartialResults
from proteinlm.outputs import file_beside, folder_beside

Container: TypeAlias = Literal["h5", "npz", "pt"]
Layout: TypeAlias = Literal["uniprot", "flat"]
Attributes: TypeAlias = Mapping[str, str | int]

SUFFIXES: Mapping[str, Container] = {".h5": "h5", ".hdf5": "h5", ".npz": "npz", ".pt": "pt"}
# bytes of a file name; most file systems end at 255
LONGEST_NAME = 200


@dataclass(frozen=True)
class Output:
    """Where embeddings go and in which form.

    Attributes:
        path: the file or the folder.
        is_folder: whether each protein has a file of its own, as only "pt" allows.
    """

    path: Path
    container: Container
    layout: Layout = "uniprot"
    is_folder: bool = False

    @property
    def partial_path(self) -> Path:
        """The folder of the unfinished run, beside the result."""
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def failed_path(self) -> Path:
        """The table of the sequences that have no embedding, beside the result."""
        return self.path.with_name(f"{self.path.name}.failed.tsv")

    def file(self, column: Column, columns: Iterable[Column]) -> Path:
        """Return the file of one of several kinds and layers.

        A single kind goes to ``path`` itself; among several the mean does and the others are
        named after themselves (out.per_tok.h5). Layers are named where there are several (out.layer3.h5).
        """
        kinds, layers = {other.kind for other in columns}, {other.layer for other in columns}
        layer = f".layer{column.layer}" if len(layers) > 1 else ""
        kind = f".{column.kind}" if len(kinds) > 1 and column.kind != "mean" else ""
        return self.path.with_name(f"{self.path.stem}{layer}{kind}{self.path.suffix}")


@dataclass(frozen=True)
class WrittenFile:
    """A file of embeddings.

    Attributes:
        kinds: what it holds.
        num_rows: arrays or rows of the hidden width in it.
    """

    path: Path
    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    num_rows: int


def output_of(path: str, layout: Layout = "uniprot") -> Output:
    """Return where and how to write, from a path as people type it.

    Raises:
        ConfigError: if the name does not say which format.
    """
    place = Path(path)
    # os.path says no where a Path raises, of folders that may not be looked into
    is_folder = path.endswith("/") or os.path.isdir(path)
    container: Container | None = "pt" if is_folder else SUFFIXES.get(place.suffix.lower())
    if container is None or place.name in ("", ".."):
        name = place.name.strip(".") or "NAME"
        raise ConfigError(
            f"{path}: does not say which format; expected {name}.h5, {name}.npz, {name}.pt, or {name}/ for a folder of "
            ".pt files"
        )
    return Output(place, container, layout, is_folder)


def write_files(output: Output, results: PartialResults, attributes: Attributes) -> list[WrittenFile]:
    """Write finished results in the form asked for; each file is whole or not there.

    Raises:
        OutputError: if a file cannot be written.
    """
    if output.container == "pt":
        return [_write_pt_folder(output.path, results) if output.is_folder else _write_pt_file(output.path, results)]
    write = _WRITERS[output.container, output.layout]
    written = []
    for column in results.columns:
        path = output.file(column, results.columns)
        about = {**attributes, "kind": column.kind, "layer": column.layer}
        with file_beside(path) as partial:
            write(partial, results, column, about)
        written.append(WrittenFile(path, (column.kind,), (column.layer,), len(results.array(column))))
    return written


def unique_names(identifiers: Iterable[str], escape: Callable[[str], str]) -> Iterator[str]:
    """Yield a name for each identifier: escaped, and ``#2``, ``#3`` … behind one that is taken."""
    uses: dict[str, int] = {}
    for identifier in identifiers:
        name = plain = escape(identifier)
        while name in uses:
            uses[plain] += 1
            name = f"{plain}#{uses[plain]}"
        uses[name] = 1
        yield name


def dataset_name(identifier: str) -> str:
    """Return ``identifier`` as a name inside an HDF5 or .npz file; ``urllib.parse.unquote`` undoes it.

    ``/`` would make a group, so it becomes ``%2F``, and ``%`` becomes ``%25``; so are NUL, a name of
    only a dot, and no name at all, which becomes ``%``.
    """
    name = identifier.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
    return {"": "%", ".": "%2E"}.get(name, name)


def file_name(identifier: str) -> str:
    """Return ``identifier`` as a file name without suffix that stays in its folder everywhere.

    Letters, digits and ``._-+=,@#`` stay, other bytes become ``%`` and two hex digits, as does a leading
    dot; a name over 200 bytes is cut and ends in a digest of the whole.
    """
    name = quote(identifier, safe="._-+=,@#") or "%"
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(identifier.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        name = f"{name[: LONGEST_NAME - 17]}~{digest}"
    return name


def _named_arrays(results: PartialResults, column: Column) -> Iterator[tuple[Entry, str, NDArray[Any]]]:
    """Yield each embedded protein with its name and its array, (D,) or (L, D)."""
    rows = results.array(column)
    names = unique_names((entry.identifier for entry in results.embedded()), dataset_name)
    start = 0
    for entry, name in zip(results.embedded(), names, strict=True):
        end = start + column.num_rows(entry.length)
        yield entry, name, rows[start:end] if column.kind == "per_tok" else rows[start]
        start = end


def _write_uniprot_h5(path: Path, results: PartialResults, column: Column, attributes: Attributes) -> None:
    with _new_hdf5(path) as (file, disk):
        file.attrs.update(attributes)
        for entry, name, array in _named_arrays(results, column):
            dataset = file.create_dataset(name, data=array)
            if name != entry.identifier:
                dataset.attrs["identifier"] = entry.identifier
            disk.check()


def _write_flat_h5(path: Path, results: PartialResults, column: Column, attributes: Attributes) -> None:
    import h5py

    with _new_hdf5(path) as (file, disk):
        about = {"format": "embedding", "format-version": "1.0", "dtype": results.dtype.name, "dim": results.width}
        file.attrs.update({**attributes, **about})
        for name, array in _flat_arrays(results, column).items():
            file.create_dataset(name, data=array)
            disk.check()
        identifiers = [entry.identifier for entry in results.embedded()]
        file.create_dataset("identifiers", data=identifiers, dtype=h5py.string_dtype())
        # scikit-bio's documentation says "embeddings", its program reads "embedding": the same data under both
        file["embeddings"] = file["embedding"]


@contextmanager
def _new_hdf5(path: Path) -> Iterator[tuple[Any, DiskFile]]:
    """Yield a new HDF5 file that keeps its order, and the bytes below it, which know of failed writes."""
    import h5py

    with disk_file(path) as disk, h5py.File(disk, "w", track_order=True) as file:
        yield file, disk


def _flat_arrays(results: PartialResults, column: Column) -> dict[str, NDArray[Any]]:
    """Return the arrays of scikit-bio's format: rows, letters, and where each protein ends in both."""
    lengths = numpy.array([entry.length for entry in results.embedded()], dtype=numpy.int64)
    rows = numpy.array([column.num_rows(length) for length in lengths.tolist()], dtype=numpy.int64)
    return {
        "embedding": results.array(column),
        "embedding_ptr": numpy.cumsum(rows),
        "id": results.residues(),
        "idptr": numpy.cumsum(lengths),
    }


def _write_uniprot_npz(path: Path, results: PartialResults, column: Column, attributes: Attributes) -> None:
    _write_npz(path, ((name, array) for _, name, array in _named_arrays(results, column)))


def _write_flat_npz(path: Path, results: PartialResults, column: Column, attributes: Attributes) -> None:
    identifiers = numpy.array([entry.identifier for entry in results.embedded()], dtype=numpy.str_)
    _write_npz(path, [*_flat_arrays(results, column).items(), ("identifiers", identifiers)])


def _write_npz(path: Path, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
    """Write what ``numpy.savez`` would, one array at a time and without the time of day."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays:
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                numpy.lib.format.write_array(file, numpy.asarray(array), allow_pickle=False)


def _write_pt_folder(path: Path, results: PartialResults) -> WrittenFile:
    entries = (entry.identifier for entry in results.embedded())
    with folder_beside(path) as folder:
        for name, content in zip(unique_names(entries, file_name), _pt_contents(results), strict=True):
            _save(content, folder / f"{name}.pt")
    return _written_pt(path, results)


def _write_pt_file(path: Path, results: PartialResults) -> WrittenFile:
    names = unique_names((entry.identifier for entry in results.embedded()), str)
    with file_beside(path) as partial:
        _save(dict(zip(names, _pt_contents(results), strict=True)), partial)
    return _written_pt(path, results)


def _pt_contents(results: PartialResults) -> Iterator[dict[str, Any]]:
    """Yield what esm-extract writes of each embedded protein; arrays stay on disk until they are read."""
    import torch

    arrays = {column: results.array(column) for column in results.columns}
    start = dict.fromkeys(results.columns, 0)
    for entry in results.embedded():
        content: dict[str, Any] = {"label": entry.identifier}
        for column in results.columns:
            end = start[column] + column.num_rows(entry.length)
            rows = torch.from_numpy(arrays[column][start[column] : end])
            content.setdefault(_PT_KEYS[column.kind], {})[column.layer] = rows if column.kind == "per_tok" else rows[0]
            start[column] = end
        yield content


def _save(content: dict[str, Any], path: Path) -> None:
    import torch

    with disk_file(path) as file:
        torch.save(content, cast(IO[bytes], file))


def _written_pt(path: Path, results: PartialResults) -> WrittenFile:
    kinds = tuple(dict.fromkeys(column.kind for column in results.columns))
    layers = tuple(dict.fromkeys(column.layer for column in results.columns))
    return WrittenFile(path, kinds, layers, sum(1 for _ in results.embedded()))


_PT_KEYS = {"per_tok": "representations", "mean": "mean_representations", "bos": "bos_representations"}

_Writer: TypeAlias = Callable[[Path, PartialResults, Column, Attributes], None]
_WRITERS: Mapping[tuple[Container, Layout], _Writer] = {
    ("h5", "uniprot"): _write_uniprot_h5,
    ("h5", "flat"): _write_flat_h5,
    ("npz", "uniprot"): _write_uniprot_npz,
    ("npz", "flat"): _write_flat_npz,
}
