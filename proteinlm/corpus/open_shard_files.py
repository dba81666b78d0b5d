"""What is in open shards, kept on disk so that work that breaks off can go on.

One file for each dataset of an open shard; only what is new is appended. A shard that begins has
files of its own, so those that a state names stay until the next state is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from proteinlm.corpus import layout
from proteinlm.corpus.ingestion_state import OpenShardState
from proteinlm.corpus.open_shard import OpenShard
from proteinlm.corpus.work_folder import UnusableWorkError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class OpenShardFiles:
    """Writes and reads the content of open shards; one object for one run of the work."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # by file: what has been written of it, and its digest
        self._lengths: dict[Path, int] = {}
        self._digests: dict[Path, Any] = {}

    def snapshot(self, shard: OpenShard, num_sequences: int) -> tuple[OpenShardState, Callable[[], None]]:
        """Return the state of an open shard, and the job that brings the files to it.

        The job may be done later in another thread, in the order of the snapshots: what a shard
        holds does not change while it grows.
        """
        news: list[tuple[Path, NDArray[Any]]] = []
        lengths, digests = {}, {}
        for name, values in shard.datasets.items():
            path = self._path(shard.split, shard.number, name)
            new = values[self._lengths.get(path, 0) :]
            digest = self._digests.setdefault(path, xxhash.xxh3_64())
            digest.update(new.data)
            self._lengths[path] = len(values)
            lengths[name], digests[name] = len(values), digest.hexdigest()
            news.append((path, new))
        state = OpenShardState(
            split=shard.split,
            num_sequences=num_sequences,
            number=shard.number,
            longest=shard.longest,
            lengths=lengths,
            digests=digests,
        )
        return state, lambda: _append_all(news)

    def keep_only(self, states: Iterable[OpenShardState]) -> None:
        """Remove the files of all shards but these."""
        kept = {self._path(state.split, state.number, name) for state in states for name in state.lengths}
        for path in self._folder.iterdir():
            if path not in kept:
                path.unlink()
                self._lengths.pop(path, None)
                self._digests.pop(path, None)

    def load(self, state: OpenShardState, shard: OpenShard) -> None:
        """Bring files and ``shard`` back to what they were at a state.

        Raises:
            UnusableWorkError: if the files do not hold what was written.
        """
        shard.begin(state.split, state.number)
        shard.longest = state.longest
        for name, length in state.lengths.items():
            path = self._path(state.split, state.number, name)
            column = shard.columns[name]
            found = np.fromfile(path, dtype=layout.DTYPES[name], count=length) if path.exists() else np.empty(0)
            digest = xxhash.xxh3_64(found.data)
            if len(found) < length or digest.hexdigest() != state.digests[name]:
                raise UnusableWorkError(f"{path}: is damaged; begin anew with --restart")
            os.truncate(path, found.nbytes)
            column.clear()
            column.extend(length)[:] = found
            self._lengths[path], self._digests[path] = length, digest

    def _path(self, split: str, number: int, dataset: str) -> Path:
        return self._folder / f"{split}-{number:05d}.{dataset}"


def _append_all(news: list[tuple[Path, NDArray[Any]]]) -> None:
    for path, new in news:
        with path.open("ab") as file:
            file.write(new.data)
