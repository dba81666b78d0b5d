"""The cluster of every protein, looked up for many at a time in sorted arrays on disk."""

from __future__ import annotations

import heapq
import json
import mmap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from proteinlm.corpus.name_tables import NameRows, TableKind, read_name_rows
from proteinlm.corpus.partitioned_rows import PartitionedRows
from proteinlm.errors import ManifestError
from proteinlm.outputs import file_beside
from proteinlm.sequence.compression import SourceDigest, can_be_read_again
from proteinlm.sequence.fasta import accession

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MEMBERS_FILE = "members.u64"
_CLUSTERS_FILE = "clusters.u64"
_NUMBERS_FILE = "numbers.u64"
_ABOUT_FILE = "clusters.json"
_PLAIN = ("representative", "member")
_OPENINGS = frozenset({"representative", "cluster", "uniref50", "uniref90", "uniref100"})
# a fault brings in up to 16 pages of 4 KiB, of each of the two arrays
_BYTES_OF_A_QUERY = 2 << 16
# names of equally large clusters that may be held beside those that come first
_TIED_NAMES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterTableConfig:
    """What is asked of a table of clusters, and the file that it was made of."""

    seed: int  # of the hash that numbers the clusters
    columns: tuple[str, ...] = ()  # representative and member by name; the first two if empty
    num_largest: int = 0  # largest clusters to find


@dataclass(frozen=True, kw_only=True, slots=True)
class _About:
    """What is known of a finished table."""

    config: ClusterTableConfig
    size: int
    modified: int  # nanoseconds
    num_bytes: int
    sha256: str
    num_members: int
    num_clusters: int
    largest: tuple[int, ...]


class ClusterTable:
    """Clusters by number: the number of a cluster is the seeded xxh3_64 of its representative's accession.

    Attributes:
        num_bytes: size of the file that it was made of.
        sha256: of that file as it lay on disk.
        num_members: names that are in a cluster.
        num_clusters: how many clusters there are.
        largest: uint64, numbers of the largest clusters, as many as were asked for, in rising order.
    """

    def __init__(self, folder: Path, about: _About, *, memory_bytes: int) -> None:
        self.num_bytes = about.num_bytes
        self.sha256 = about.sha256
        self.num_members = about.num_members
        self.num_clusters = about.num_clusters
        self.largest = np.array(about.largest, dtype=np.uint64)
        files = (_MEMBERS_FILE, _CLUSTERS_FILE, _NUMBERS_FILE)
        self._members, self._clusters, self._numbers = (_Column(folder / name) for name in files)
        # a table within the budget may stay mapped; of a larger one, pages are let go after so many queries
        self._is_large = 16 * about.num_members > memory_bytes
        self._most_queries = memory_bytes // _BYTES_OF_A_QUERY
        self._num_queries = 0

    def lookup(self, names: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Return the clusters of proteins, and which proteins are in one.

        Args:
            names: (K,), low half of the xxh3_128 of each accession.

        Returns:
            uint64 (K,), 0 where there is none, and bool (K,).
        """
        clusters = np.zeros(len(names), dtype=np.uint64)
        is_known = np.zeros(len(names), dtype=np.bool_)
        if self.num_members and len(names):
            # neighbours in the table one after the other, or each query would wait for memory
            order = np.argsort(names)
            queries = names[order]
            places = np.searchsorted(self._members.values, queries)
            places[places == self.num_members] = 0
            found = self._members.values[places] == queries
            is_known[order] = found
            clusters[order[found]] = self._clusters.values[places[found]]
            self._let_go(len(names))
        return clusters, is_known

    def is_cluster(self, numbers: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Say which numbers (K,) are those of clusters of the table."""
        order = np.argsort(numbers)
        found = np.empty(len(numbers), dtype=np.bool_)
        found[order] = is_in(numbers[order], self._numbers.values)
        self._let_go(len(numbers))
        return found

    def _let_go(self, num_queries: int) -> None:
        self._num_queries += num_queries
        if self._is_large and self._num_queries > self._most_queries:
            self._num_queries = 0
            self._members.let_go()
            self._clusters.let_go()
            self._numbers.let_go()


class _Column:
    """A file of numbers, mapped."""

    def __init__(self, path: Path) -> None:
        self._map: mmap.mmap | None = None
        self.values: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        if path.stat().st_size:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.values = np.frombuffer(self._map, dtype=np.uint64)

    def let_go(self) -> None:
        """Give back the memory of the pages that were read; they stay in the system's cache."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


def cluster_table(path: Path, folder: Path, config: ClusterTableConfig, *, memory_bytes: int) -> ClusterTable:
    """Return the table of clusters in ``folder``, made from a file if it is not there yet.

    Args:
        path: a table ``representative<TAB>member``, one with a header line, or UniRef's XML.
        folder: where the arrays are to lie; it is made.
        config: which columns, and how clusters are numbered.
        memory_bytes: what making it and looking up may hold.

    Raises:
        ManifestError: if a line is faulty or a member is in two clusters.
        FastaError: if the file cannot be read or decompressed.
    """
    if not can_be_read_again(path):
        raise ManifestError(f"{path}: is no regular file; expected one, for a table of clusters may be read twice")
    folder.mkdir(parents=True, exist_ok=True)
    about = _finished(path, folder, config)
    if about is None:
        about = _build(path, folder, config, memory_bytes)
        with file_beside(folder / _ABOUT_FILE) as beside:
            beside.write_text(json.dumps(asdict(about)))
    return ClusterTable(folder, about, memory_bytes=memory_bytes)


def _finished(path: Path, folder: Path, config: ClusterTableConfig) -> _About | None:
    """Return what is known of the table in ``folder``, if it is of the same file and settings."""
    if not (folder / _NUMBERS_FILE).exists():
        # of an earlier version
        return None
    try:
        table = json.loads((folder / _ABOUT_FILE).read_text())
        state = path.stat()
    except (OSError, ValueError):
        return None
    settings = table.pop("config")
    found = ClusterTableConfig(**(settings | {"columns": tuple(settings["columns"])}))
    about = _About(config=found, **(table | {"largest": tuple(table["largest"])}))
    is_same = (about.config, about.size, about.modified) == (config, state.st_size, state.st_mtime_ns)
    return about if is_same else None


def _build(path: Path, folder: Path, config: ClusterTableConfig, memory_bytes: int) -> _About:
    for left in folder.iterdir():
        left.unlink()
    digest = SourceDigest()
    rows = PartitionedRows(folder, "rows", 2, memory_bytes=memory_bytes)
    for batch in _read(path, config, digest):
        rows.add(batch.members, batch.groups)
    # after reading, which says what is wrong where there is no such file
    state = path.stat()
    numbers = PartitionedRows(folder, "numbers", 1, memory_bytes=memory_bytes)
    num_members, doubtful = _write_columns(folder, rows, numbers)
    if len(doubtful):
        _refuse_two_clusters(path, config, doubtful)
    num_clusters, sure, tied = _largest(folder, numbers, config.num_largest)
    largest = np.concatenate([sure, _first_by_name(path, config, tied, config.num_largest - len(sure))])
    return _About(
        config=config,
        size=state.st_size,
        modified=state.st_mtime_ns,
        num_bytes=digest.num_bytes,
        sha256=digest.sha256,
        num_members=num_members,
        num_clusters=num_clusters,
        largest=tuple(sorted(largest.tolist())),
    )


def _read(path: Path, config: ClusterTableConfig, digest: SourceDigest | None = None) -> Iterator[NameRows]:
    asked = (config.columns[0], config.columns[1]) if config.columns else _PLAIN
    kind = TableKind(plain=_PLAIN, headers=(asked,), openings=_OPENINGS, is_asked=bool(config.columns))
    return read_name_rows(path, kind, seed=config.seed, digest=digest)


def _write_columns(folder: Path, rows: PartitionedRows, numbers: PartitionedRows) -> tuple[int, NDArray[np.uint64]]:
    """Write members and clusters in order; return how many, and the members with two clusters."""
    num_members = 0
    doubtful = []
    with (folder / _MEMBERS_FILE).open("wb") as members, (folder / _CLUSTERS_FILE).open("wb") as clusters:
        for part in rows.partitions():
            # stable, so that the first row of the file prevails in whatever parts the rows come
            ordered = part[np.argsort(part[:, 0], kind="stable")]
            is_again = np.zeros(len(part), dtype=np.bool_)
            is_again[1:] = ordered[1:, 0] == ordered[:-1, 0]
            is_other = is_again[1:] & (ordered[1:, 1] != ordered[:-1, 1])
            doubtful.append(np.unique(ordered[1:, 0][is_other]))
            found = ordered[~is_again]
            num_members += len(found)
            for column, file in enumerate((members, clusters)):
                np.ascontiguousarray(found[:, column]).tofile(file)
            numbers.add(found[:, 1])
    return num_members, np.concatenate(doubtful)


def _refuse_two_clusters(path: Path, config: ClusterTableConfig, members: NDArray[np.uint64]) -> None:
    """Raise an error that names the line, unless only hashes are equal and not the names."""
    first: dict[str, str] = {}
    for batch in _read(path, config):
        rows = np.flatnonzero(is_in(batch.members, members))
        for row, (group, member) in zip(rows.tolist(), batch.names(rows), strict=True):
            if first.setdefault(accession(member), accession(group)) != accession(group):
                raise ManifestError(f"{path}:{batch.line(row)}: '{member}' is in the clusters of two representatives")


def _largest(folder: Path, numbers: PartitionedRows, most: int) -> tuple[int, NDArray[np.uint64], NDArray[np.uint64]]:
    """Write the numbers of the clusters in order, and look for the largest.

    Returns:
        how many clusters there are, those surely among the ``most`` largest, and those as large as the last.
    """
    num_clusters = 0
    clusters, sizes = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    with (folder / _NUMBERS_FILE).open("wb") as file:
        for part in numbers.partitions():
            found, counts = np.unique(part[:, 0], return_counts=True)
            found.tofile(file)
            num_clusters += len(found)
            if most:
                clusters, sizes = np.concatenate([clusters, found]), np.concatenate([sizes, counts])
                if len(sizes) > most:
                    last = np.partition(sizes, -most)[-most]
                    clusters, sizes = clusters[sizes >= last], sizes[sizes >= last]
    if len(sizes) <= most:
        return num_clusters, clusters, clusters[:0]
    is_sure = sizes > sizes.min()
    return num_clusters, clusters[is_sure], clusters[~is_sure]


def _first_by_name(path: Path, config: ClusterTableConfig, tied: NDArray[np.uint64], most: int) -> NDArray[np.uint64]:
    """Return those of equally large clusters whose representatives' names come first."""
    if not len(tied):
        return tied
    tied = np.sort(tied)
    number_of: dict[str, int] = {}
    for batch in _read(path, config):
        rows = np.flatnonzero(is_in(batch.groups, tied))
        numbers, places = np.unique(batch.groups[rows], return_index=True)
        groups = (accession(group) for group, _ in batch.names(rows[places]))
        number_of.update(zip(groups, numbers.tolist(), strict=True))
        if len(number_of) > 2 * most + _TIED_NAMES:
            number_of = {name: number_of[name] for name in heapq.nsmallest(most, number_of)}
    return np.array([number_of[name] for name in heapq.nsmallest(most, number_of)], dtype=np.uint64)


def is_in(values: NDArray[np.uint64], among: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Say which values are among sorted ones."""
    if not len(among):
        return np.zeros(len(values), dtype=np.bool_)
    places = np.searchsorted(among, values)
    places[places == len(among)] = 0
    found: NDArray[np.bool_] = among[places] == values
    return found
