"""How far an ingestion is: enough to go on as if it had never broken off.

The state names lengths of files that only grow, so what was appended after it is cut off again. It
is replaced by rename, when all that it names has been written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proteinlm import config as configuration
from proteinlm.corpus import layout
from proteinlm.corpus.layout import LeakEntry
from proteinlm.corpus.source_reading import ReadingState
from proteinlm.corpus.work_folder import UnusableWorkError, WorkFolder, work_folder_of
from proteinlm.corpus.written_shard import WrittenShard
from proteinlm.errors import ConfigError

# changes when an older state would be gone on with wrongly
STATE_VERSION = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What was asked for, all of which decides about the bytes of the corpus.

    Attributes:
        state_version, format_version, alphabet: of the program.
        inputs: names of the sources in their order, without folders.
        clusters: digest of the table of clusters, or "".
        held_out: digests of the files that say what is held out by name, by role.
        manifest: what the corpus remembers of its manifest.
        settings: all settings, resolved.
    """

    state_version: int
    format_version: int
    alphabet: str
    inputs: tuple[str, ...]
    clusters: str
    held_out: Mapping[str, str]
    manifest: Mapping[str, str]
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenShardState:
    """The shard of a split that is not yet full.

    Attributes:
        split: its name.
        number: of the shard.
        lengths: elements on disk, by dataset.
        digests: xxh3_128 of the tokens and xxh3_64 of all else.
    """

    split: str
    number: int
    lengths: Mapping[str, int]
    digests: Mapping[str, str]

    @property
    def num_sequences(self) -> int:
        """How many records it holds."""
        return self.lengths[layout.OFFSETS_DATASET] - 1

    @property
    def file(self) -> str:
        """The name of the file that it will be."""
        return layout.shard_file(self.split, self.number)


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """What showed when all records had been read.

    Attributes:
        num_sequences: kept records whose sequence is that of an earlier one.
        num_names: kept records whose accession is that of an earlier one.
        leaks: what each validation split shares with ``train``.
    """

    num_sequences: int
    num_names: int
    leaks: Mapping[str, LeakEntry]


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestionState:
    """How far the work is.

    Attributes:
        request: what was asked for.
        is_read: whether all sources have been read and all shards written.
        reading: where the reader is and what it has met.
        screening: the counts of the screen.
        substitutions: residues replaced in kept records, by kind.
        splitting: the counts of the splitter.
        open_shards: one for each split that has one, while there is more to read.
        num_shards: shards written.
        screening_bytes: length of the list of what was dropped or noted.
        num_spooled: records whose digests are on disk.
        repeats: what was found when all had been read.
    """

    request: Request
    is_read: bool
    reading: ReadingState
    screening: Mapping[str, Any]
    substitutions: Mapping[str, int]
    splitting: Mapping[str, Any]
    open_shards: tuple[OpenShardState, ...]
    num_shards: int
    screening_bytes: int
    num_spooled: int
    repeats: Repeats | None = None


def write_state(folder: WorkFolder, state: IngestionState) -> None:
    """Replace the state by a new one."""
    partial = folder.state.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(configuration.to_table(state), file)
    os.replace(partial, folder.state)


def read_state(folder: WorkFolder) -> IngestionState | None:
    """Read the state, if there is something to go on with.

    Raises:
        UnusableWorkError: if it is damaged.
    """
    if not folder.corpus.is_dir():
        return None
    try:
        table = json.loads(folder.state.read_text(encoding="utf-8"))
        return configuration.parse(IngestionState, table, source=str(folder.state))
    except FileNotFoundError:
        return None
    except (ValueError, ConfigError) as error:
        raise UnusableWorkError(
            f"{folder.state}: is damaged or was written by another version; begin anew with --restart"
        ) from error


def described(state: IngestionState) -> str:
    """Return how far the work is, as people say it."""
    num_read = sum(state.screening["counts"].values())
    stage = ", all that there are" if state.is_read else ""
    return f"{num_read:,} records read{stage}, {state.num_shards:,} shards written"


def unfinished(output: Path) -> str | None:
    """Say what an ingestion that broke off has left for ``output``, or None if nothing."""
    folder = work_folder_of(output)
    state = read_state(folder)
    return None if state is None else f"{folder.path} ({described(state)})"


def check_request(folder: WorkFolder, found: Request, asked: Request) -> None:
    """Refuse to go on with something else than what was begun.

    Raises:
        UnusableWorkError: names each setting that differs, with both values.
    """
    if found == asked:
        return
    before, now = (dict(_flat(configuration.to_table(request))) for request in (found, asked))
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    differences = "; ".join(f"{name} was {before.get(name)!r} and is now {now.get(name)!r}" for name in names)
    raise UnusableWorkError(
        f"{folder.path}: was begun with something else: {differences}; "
        "ask for the same again, or begin anew with --restart"
    )


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def append_shard(path: Path, shard: WrittenShard) -> None:
    """Append a line for a shard that was written."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(configuration.to_table(shard)) + "\n")


def read_shards(path: Path, num_shards: int | None = None) -> list[WrittenShard]:
    """Read the first lines of a list of shards, all whole ones by default, and cut off the others.

    Raises:
        UnusableWorkError: if it is damaged.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")][:num_shards]
    if num_shards is not None and len(whole) < num_shards:
        raise UnusableWorkError(f"{path}: lists {len(whole)} shards of {num_shards}; begin anew with --restart")
    try:
        shards = [configuration.parse(WrittenShard, json.loads(line), source=str(path)) for line in whole]
    except (ValueError, ConfigError) as error:
        raise UnusableWorkError(f"{path}: is damaged; begin anew with --restart") from error
    if path.exists():
        os.truncate(path, sum(map(len, whole)))
    return shards
