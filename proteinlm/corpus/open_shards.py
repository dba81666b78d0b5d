"""The open shards of all splits, and how work that breaks off goes on with them.

All of it lies in one folder. Residues are in the file that becomes the shard. Every other dataset
has a file of its own, to which what is new is appended whenever a state is made: what was written
after a state is cut off again by who goes on from it. A shard that begins has files of its own, so
those that a state names stay until the next state is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from proteinlm.corpus import layout
from proteinlm.corpus.ingestion_state import OpenShardState
from proteinlm.corpus.open_shard import OpenShard
from proteinlm.corpus.ordered_threads import Worker
from proteinlm.corpus.shard_file import start_of_tokens
from proteinlm.corpus.shard_tokens import ShardTokens
from proteinlm.corpus.work_folder import UnusableWorkError, WorkFolder
from proteinlm.corpus.written_shard import WrittenShard
from proteinlm.sequence.timings import Timings

if TYPE_CHECKING:
    from numpy.typing import NDArray


class OpenShards:
    """At most one open shard for each split, and their files; one object for one run of the work.

    Args:
        folder: where the work is.
        has_clusters: whether clusters are known.
        writer: writes residues.
        timings: takes the seconds of the stages ``gather`` and ``write``.
    """

    def __init__(self, folder: WorkFolder, *, has_clusters: bool, writer: Worker, timings: Timings) -> None:
        self._folder, self._has_clusters = folder, has_clusters
        self._writer, self._timings = writer, timings
        self._shards: dict[str, OpenShard] = {}
        # by file: what has been written of it, and its digest
        self._lengths: dict[Path, int] = {}
        self._digests: dict[Path, Any] = {}
        self._start: int | None = None

    def get(self, split: str, number: int) -> OpenShard:
        """Return the open shard of a split, which has this number; it begins here if there is none."""
        shard = self._shards.get(split)
        if shard is None:
            file = layout.shard_file(split, number)
            path, start = self._path(file, layout.TOKENS_DATASET), self._start_of_tokens(file)
            tokens = ShardTokens(path, start=start, worker=self._writer, timings=self._timings)
            shard = self._shards[split] = OpenShard(split, number, tokens, has_clusters=self._has_clusters)
        assert shard.number == number, "a shard is finished before the next begins"
        return shard

    def finish_before(self, split: str, number: int | None = None) -> WrittenShard | None:
        """Finish the open shard of a split unless it has this number; return it if there was one."""
        shard = self._shards.get(split)
        if shard is None or shard.number == number:
            return None
        del self._shards[split]
        return shard.finish(self._folder.corpus)

    def save(self) -> tuple[OpenShardState, ...]:
        """Bring the files to what the shards are now, and return their states."""
        self._writer.wait()
        return tuple(self._saved(shard) for shard in self._shards.values())

    def _saved(self, shard: OpenShard) -> OpenShardState:
        lengths = {layout.TOKENS_DATASET: len(shard.tokens)}
        digests = {layout.TOKENS_DATASET: shard.tokens.digest}
        for name, column in shard.columns.items():
            path = self._path(shard.file, name)
            new: NDArray[Any] = column.values[self._lengths.get(path, 0) :]
            digest = self._digests.setdefault(path, xxhash.xxh3_64())
            digest.update(new.data)
            with path.open("ab") as file:
                file.write(new.data)
            self._lengths[path] = len(column)
            lengths[name], digests[name] = len(column), digest.hexdigest()
        return OpenShardState(
            split=shard.split,
            number=shard.number,
            lengths=lengths,
            digests=digests,
        )

    def keep_only(self, states: Iterable[OpenShardState]) -> None:
        """Remove the files of all shards but these."""
        kept = {self._path(state.file, name) for state in states for name in state.lengths}
        for path in self._folder.open_shards.iterdir():
            if path not in kept:
                path.unlink()
                self._lengths.pop(path, None)
                self._digests.pop(path, None)

    def load(self, state: OpenShardState) -> None:
        """Bring files and the shard of a split back to what they were at a state.

        Raises:
            UnusableWorkError: if the files do not hold what was written.
        """
        path = self._path(state.file, layout.TOKENS_DATASET)
        finished = self._folder.corpus / state.file
        if not path.exists() and finished.exists():
            # it was finished after the state
            os.replace(finished, path)
        size, digest = state.lengths[layout.TOKENS_DATASET], state.digests[layout.TOKENS_DATASET]
        tokens = ShardTokens.resumed(
            path, size, digest, start=self._start_of_tokens(state.file), worker=self._writer, timings=self._timings
        )
        shard = OpenShard(state.split, state.number, tokens, has_clusters=self._has_clusters)
        # from here on its file is closed with the others, whatever comes
        self._shards[state.split] = shard
        for name, column in shard.columns.items():
            column.extend(state.lengths[name] - len(column))
            self._load_column(column.values, state, name)

    def _load_column(self, values: NDArray[Any], state: OpenShardState, name: str) -> None:
        path = self._path(state.file, name)
        found = np.fromfile(path, dtype=values.dtype, count=len(values)) if path.exists() else values[:0]
        digest = xxhash.xxh3_64(found.data)
        if len(found) < len(values) or digest.hexdigest() != state.digests[name]:
            raise UnusableWorkError(f"{path}: is damaged; begin anew with --restart")
        os.truncate(path, found.nbytes)
        values[:] = found
        self._lengths[path], self._digests[path] = len(values), digest

    def close(self) -> None:
        """Close the files, whatever is in them."""
        for shard in self._shards.values():
            shard.tokens.close()
        self._shards.clear()

    def _path(self, file: str, dataset: str) -> Path:
        return self._folder.open_shards / f"{file}.{dataset}"

    def _start_of_tokens(self, file: str) -> int:
        if self._start is None:
            self._start = start_of_tokens(self._path(file, "plan"))
        return self._start
