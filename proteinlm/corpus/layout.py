"""What a corpus folder holds: the names, the versions and the index ``corpus.json``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proteinlm import config
from proteinlm.errors import ConfigError, ShardError
from proteinlm.sequence import VOCAB_SIZE, alphabet_digest

FORMAT_VERSION = 2
INDEX_FILE = "corpus.json"
SCREENING_FILE = "screening.tsv"

TRAIN = "train"
VALIDATION_IID = "validation_iid"
VALIDATION_OOD = "validation_ood"
# while a corpus is built, splits go by their place here
SPLITS = (TRAIN, VALIDATION_IID, VALIDATION_OOD)

# datasets of a shard: tokens uint8 (R), offsets int64 (N + 1) into them, and the UTF-8 bytes of
# the identifiers uint8 with their int64 (N + 1) offsets; where clusters are known, their numbers
TOKENS_DATASET = "tokens"
OFFSETS_DATASET = "offsets"
IDENTIFIERS_DATASET = "identifiers"
IDENTIFIER_OFFSETS_DATASET = "identifier_offsets"
CLUSTERS_DATASET = "clusters"
# dataset -> its type, in the order in which a digest takes them in; the last may be absent
DTYPES = {
    TOKENS_DATASET: "|u1",
    OFFSETS_DATASET: "<i8",
    IDENTIFIERS_DATASET: "|u1",
    IDENTIFIER_OFFSETS_DATASET: "<i8",
    CLUSTERS_DATASET: "<u8",
}

# a shard file has a digest for each of its blocks, which tell where in a damaged file the damage is
BLOCK_BYTES = 1 << 20


def shard_file(split: str, number: int) -> str:
    """Return the file name of a shard, such as ``train-00000.h5``."""
    return f"{split}-{number:05d}.h5"


def shard_number(file: str) -> int:
    """Return the number in the file name of a shard."""
    return int(file.removesuffix(".h5").rpartition("-")[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One shard file; ``digest`` is the xxh3_128 of its datasets' bytes, one after the other.

    ``block_digests`` holds the xxh3_64 of every block of the file, each 16 hex digits, joined.
    """

    file: str
    num_sequences: int
    num_residues: int
    digest: str
    block_digests: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitEntry:
    """One split; ``token_counts`` has one number for every token of the alphabet."""

    num_sequences: int
    num_residues: int
    longest: int  # residues
    token_counts: tuple[int, ...]
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceEntry:
    """A file that was read; its name without folders, its size and digests as it lay on disk.

    ``sha256`` is empty where nobody asked for it: it takes a quarter of the time.
    """

    name: str
    num_bytes: int
    xxh3_128: str
    sha256: str
    num_records: int
    num_residues: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ScreeningEntry:
    """Counts of records: read = kept + dropped for each reason; noted ones were kept."""

    num_read: int
    num_kept: int
    dropped: Mapping[str, int]
    noted: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClustersEntry:
    """The clusters that held proteins out; ``num_unclustered`` proteins, dropped duplicates too, are in none.

    Where the identifiers tell the clusters there is no file: its size and digest are 0 and empty, and
    ``num_clusters`` counts the proteins whose identifier tells one.
    """

    num_bytes: int
    sha256: str
    num_clusters: int
    num_unclustered: int


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutFileEntry:
    """A file that says what is held out by name, as it lay on disk."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutEntry:
    """What was held out by name, and why: each protein is counted at the first rule that holds it out.

    Proteins are those that screening keeps, with those that are dropped afterwards as duplicates.
    """

    files: Mapping[str, HeldOutFileEntry]  # by role: held_out, held_out_families, families
    num_names: int  # on the list, each once
    num_unmatched: int  # of them, those that no protein has
    families: Mapping[str, int]  # proteins of each held-out family in the table of families
    num_listed: int  # proteins held out by the list
    num_of_families: int  # by their family
    num_relatives: int  # because their cluster has a member that is to be held out by name


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakEntry:
    """What a validation split shares with ``train``, in proteins of the validation split."""

    equal_sequences: int
    same_cluster: int | None  # None where no clusters are known


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusIndex:
    """All of ``corpus.json``; nothing in it depends on when or where the corpus was built."""

    format_version: int
    alphabet: str
    digest: str
    splits: Mapping[str, SplitEntry]
    sources: tuple[SourceEntry, ...]
    clusters: ClustersEntry | None
    manifest: Mapping[str, str]
    settings: Mapping[str, Any]
    reading: Mapping[str, int]
    substitutions: Mapping[str, int]
    screening: ScreeningEntry
    leaks: Mapping[str, LeakEntry]
    held_out: HeldOutEntry | None = None


def corpus_digest(splits: Mapping[str, SplitEntry]) -> str:
    """Return the sha256 that tells a corpus by its content: alphabet, splits and their shards."""
    content = [FORMAT_VERSION, alphabet_digest()]
    parts = [[name, [shard.digest for shard in split.shards]] for name, split in sorted(splits.items())]
    return hashlib.sha256(json.dumps([content, parts]).encode()).hexdigest()


def write_index(folder: Path, index: CorpusIndex) -> None:
    """Write ``corpus.json``."""
    text = json.dumps(config.to_table(index), indent=1, ensure_ascii=False)
    (folder / INDEX_FILE).write_text(text + "\n", encoding="utf-8")


def read_index(folder: Path) -> CorpusIndex:
    """Read ``corpus.json`` and check that it agrees with itself.

    Raises:
        ShardError: if there is none, it is damaged, or it is of another version or alphabet.
    """
    path = folder / INDEX_FILE
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except NotADirectoryError as error:
        raise ShardError(
            f"{folder}: is a file and no corpus; build a corpus of it with 'proteinlm ingest {folder} -o corpus/'"
        ) from error
    except FileNotFoundError as error:
        # a folder that holds something is no place for a corpus
        reason, place = (f"holds no {INDEX_FILE}", "corpus/") if os.path.exists(folder) else ("no such folder", folder)
        raise ShardError(
            f"{folder}: is no corpus ({reason}); build one with 'proteinlm ingest FILES -o {place}'"
        ) from error
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ShardError(f"{path}: is damaged ({error}); ingest again") from error
    _check_versions(path, table)
    try:
        index = config.parse(CorpusIndex, table, source=str(path))
    except ConfigError as error:
        raise ShardError(f"{error}; ingest again") from error
    for name, split in index.splits.items():
        _check_split(f"{path}: splits.{name}", split)
    _expect(f"{path}: digest", index.digest, corpus_digest(index.splits), "its shards give")
    return index


def _check_split(subject: str, split: SplitEntry) -> None:
    _expect(f"{subject}.token_counts", len(split.token_counts), VOCAB_SIZE, "the alphabet has")
    _expect(f"{subject}.token_counts", sum(split.token_counts), split.num_residues, "num_residues is")
    for name in ("num_sequences", "num_residues"):
        total = sum(getattr(shard, name) for shard in split.shards)
        _expect(f"{subject}.{name}", getattr(split, name), total, "its shards have")


def _expect(subject: str, found: int | str, expected: int | str, reason: str) -> None:
    if found != expected:
        raise ShardError(f"{subject}: is damaged (found {found} where {reason} {expected}); ingest again")


def _check_versions(path: Path, table: Any) -> None:
    version = table.get("format_version") if isinstance(table, dict) else None
    if version != FORMAT_VERSION:
        raise ShardError(f"{path}: has format version {version} but this program reads {FORMAT_VERSION}; ingest again")
    if table.get("alphabet") != alphabet_digest():
        raise ShardError(
            f"{path}: was written with alphabet {table.get('alphabet')} but this program uses {alphabet_digest()}; "
            "ingest again"
        )
