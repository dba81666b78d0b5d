"""Proteins held out by name: those of a list, and the members of whole families."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from proteinlm import config
from proteinlm.corpus.cluster_table import is_in
from proteinlm.corpus.layout import HeldOutFileEntry
from proteinlm.corpus.name_tables import TableKind, read_name_rows
from proteinlm.errors import ConfigError, ManifestError
from proteinlm.sequence.compression import SourceDigest, read_decompressed
from proteinlm.sequence.fasta import accession

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIST, FAMILIES, MEMBERSHIP = "held_out", "held_out_families", "families"
_LOW_HALF = (1 << 64) - 1
# columns (family, protein) of a table with a header line; the first are those of Pfam-A.regions.tsv
_MEMBERSHIP = TableKind(
    plain=("identifier", "family"),
    group=1,
    headers=(("pfamA_acc", "pfamseq_acc"), ("family", "identifier"), ("family", "accession")),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A family of proteins, by its accession in its database; the name is for people."""

    accession: str
    name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyList:
    """Families that are held out together: what data_manifests/README.md says of every field."""

    name: str
    description: str
    database: str
    source: str
    families: tuple[Family, ...]

    def __post_init__(self) -> None:
        counts = Counter(family.accession for family in self.families)
        if not counts:
            raise ValueError("names no families; expected at least one [[families]]")
        if twice := [name for name, count in counts.items() if count > 1 or not name]:
            raise ValueError(f"names family '{twice[0]}' more than once, or with an empty accession")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutFiles:
    """The files that say what is to be held out by name, each where there is one."""

    names: Path | None = None  # one identifier or accession a line
    families: Path | None = None  # TOML, or one accession of a family a line
    membership: Path | None = None  # table identifier<TAB>family, or Pfam-A.regions.tsv


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Proteins to hold out by name.

    Attributes:
        listed: uint64, low half of the xxh3_128 of each accession on the list, in rising order.
        list_names: the names on the list.
        members: uint64, the same of the proteins of held-out families.
        families: proteins of each held-out family in the table, by its accession.
        files: the files that say so, by role.
    """

    listed: NDArray[np.uint64]
    list_names: frozenset[str]
    members: NDArray[np.uint64]
    families: dict[str, int]
    files: dict[str, HeldOutFileEntry]


def read_held_out(files: HeldOutFiles) -> HeldOut:
    """Read what is to be held out by name.

    Raises:
        ConfigError: if there are families without their members, or members without families.
        ManifestError: if a file does not hold what it must.
        FastaError: if one cannot be read or decompressed.
    """
    if (files.families is None) != (files.membership is None):
        raise ConfigError("held_out_families and families, the table of who is in one, need each other")
    entries: dict[str, HeldOutFileEntry] = {}
    listed = read_names(files.names, LIST, entries) if files.names is not None else []
    members = np.zeros(0, dtype=np.uint64)
    counts: dict[str, int] = {}
    if files.families is not None and files.membership is not None:
        members, counts = _members(files.membership, read_families(files.families, entries), entries)
    return HeldOut(name_hashes(listed), frozenset(listed), members, counts, entries)


def name_hashes(names: list[str]) -> NDArray[np.uint64]:
    """Return the hashes by which the proteins of these names are known, each once, in rising order."""
    hashes = {xxhash.xxh3_128_intdigest(accession(name).encode()) & _LOW_HALF for name in names}
    return np.array(sorted(hashes), dtype=np.uint64)


def own_clusters(names: Iterable[str], seed: int) -> NDArray[np.uint64]:
    """Return the number of the cluster that each protein is for itself, and that it represents."""
    return np.array([xxhash.xxh3_64_intdigest(accession(name).encode(), seed) for name in names], dtype=np.uint64)


def read_names(path: Path, role: str, files: dict[str, HeldOutFileEntry]) -> list[str]:
    """Return the names in a file, one a line; what follows ``#`` is a comment.

    Raises:
        ManifestError: if a line has more than one word, or no line has any.
    """
    digest = SourceDigest()
    # with the mark that editors may put first, which is no part of a name
    text = b"".join(read_decompressed(path, digest=digest)).decode("utf-8-sig", errors="replace")
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].split()
        if len(words) > 1:
            raise ManifestError(f"{path}:{number}: expected one name a line, found {line[:60]!r}")
        found += words
    if not found:
        raise ManifestError(f"{path}: names nothing; expected one name a line")
    files[role] = HeldOutFileEntry(num_bytes=digest.num_bytes, sha256=digest.sha256)
    return found


def read_families(path: Path, files: dict[str, HeldOutFileEntry]) -> list[str]:
    """Return the accessions of the families that a file names.

    Raises:
        ManifestError: lists every field of a TOML file that is missing, unknown or wrong.
    """
    if path.suffix != ".toml":
        return read_names(path, FAMILIES, files)
    found = read_family_list(path)
    digest = SourceDigest()
    for _ in read_decompressed(path, digest=digest):
        pass
    files[FAMILIES] = HeldOutFileEntry(num_bytes=digest.num_bytes, sha256=digest.sha256)
    return [family.accession for family in found.families]


def read_family_list(path: Path) -> FamilyList:
    """Read a list of families in TOML.

    Raises:
        ManifestError: lists every field that is missing, unknown or wrong.
    """
    try:
        return config.parse(FamilyList, config.read_table(path), source=str(path))
    except ConfigError as error:
        raise ManifestError(str(error)) from error


def _members(
    path: Path, families: list[str], files: dict[str, HeldOutFileEntry]
) -> tuple[NDArray[np.uint64], dict[str, int]]:
    """Return the proteins of these families and how many each has, holding no others."""
    digest = SourceDigest()
    family_of = {xxhash.xxh3_64_intdigest(name.encode()): name for name in families}
    asked = np.array(sorted(family_of), dtype=np.uint64)
    held: list[NDArray[np.uint64]] = []
    for rows in read_name_rows(path, _MEMBERSHIP, digest=digest):
        wanted = is_in(rows.groups, asked)
        if wanted.any():
            held.append(np.stack([rows.groups[wanted], rows.members[wanted]], axis=1))
    files[MEMBERSHIP] = HeldOutFileEntry(num_bytes=digest.num_bytes, sha256=digest.sha256)
    # a protein may have a domain twice
    pairs = np.unique(np.concatenate([np.zeros((0, 2), dtype=np.uint64), *held]), axis=0)
    counts = Counter(pairs[:, 0].tolist())
    return np.unique(pairs[:, 1]), {name: counts[number] for number, name in sorted(family_of.items(), key=_by_name)}


def _by_name(item: tuple[int, str]) -> str:
    return item[1]
