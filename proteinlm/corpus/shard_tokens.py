"""The residues of a shard, on their way into its file while the shard grows.

A contiguous dataset must know its size before HDF5 can lay it out, but where the first one begins
depends on nothing. So residues are written to their place as they come and all the rest when the
shard is full: nobody holds them in memory, and all that is counted and hashed is so while it is in a
core's cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from proteinlm.corpus import layout
from proteinlm.corpus.ordered_threads import Worker
from proteinlm.corpus.room_ahead import RoomAhead
from proteinlm.corpus.shard_file import (
    Datasets,
    Layout,
    block_digest,
    lay_out,
    write_at,
    write_shard,
    writing,
)
from proteinlm.corpus.work_folder import UnusableWorkError
from proteinlm.sequence.timings import Timings, measured

if TYPE_CHECKING:
    from numpy.typing import NDArray

# residues that are read at once where a shard is gone on with
_PIECE = 1 << 20


class Records(Protocol):
    """Records in flat arrays: what a block and a shard have in common."""

    @property
    def tokens(self) -> NDArray[np.uint8]:
        """The residues, one record after the other."""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """int64 (N + 1), where the records begin in ``tokens``, and the end."""

    @property
    def identifiers(self) -> NDArray[np.uint8]:
        """The UTF-8 bytes of the identifiers, one after the other."""

    @property
    def identifier_offsets(self) -> NDArray[np.int64]:
        """int64 (N + 1) into ``identifiers``."""


class ShardTokens:
    """The growing file of a shard.

    Args:
        path: the file, made anew; the shard's name with another ending behind it.
        start: bytes of it before the residues; where HDF5 puts them otherwise, they are moved at the end.
        worker: writes to the file; others may share it.
        timings: takes the seconds of the stages ``gather`` and ``write``.
    """

    def __init__(
        self, path: Path, *, start: int, worker: Worker, timings: Timings | None = None, is_new: bool = True
    ) -> None:
        from proteinlm.corpus.token_account import TokenAccount

        self._path, self._start = path, start
        self._worker, self.timings = worker, timings
        self._account = TokenAccount(start)
        with writing(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if is_new else 0), 0o666)
        self._room = RoomAhead(self._descriptor)

    @classmethod
    def resumed(
        cls, path: Path, size: int, digest: str, *, start: int, worker: Worker, timings: Timings | None = None
    ) -> ShardTokens:
        """Return what it was when it held ``size`` residues whose digest was ``digest``.

        Raises:
            UnusableWorkError: if the file does not hold them.
        """
        tokens = cls(path, start=start, worker=worker, timings=timings, is_new=False)
        try:
            for piece in tokens._read(size):
                tokens._account.add(piece)
            if len(tokens) < size or tokens.digest != digest:
                raise UnusableWorkError(f"{path}: is damaged; begin anew with --restart")
            os.ftruncate(tokens._descriptor, start + size)
        except BaseException:
            tokens.close()
            raise
        return tokens

    def __len__(self) -> int:
        return len(self._account)

    @property
    def digest(self) -> str:
        """The xxh3_128 of the residues so far."""
        return self._account.digest

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each token occurs so far, int64[33]."""
        return self._account.counts

    def append(self, records: Records, numbers: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """Write the residues of more records.

        Args:
            records: where they are.
            numbers: int64 (M,), which ones, rising.
            ends: int64 (M,), filled with where each record ends among all residues.

        Raises:
            OutputError: if the disk is full or the file cannot be written for another reason; where the worker
                is a thread, for earlier records.
        """
        from proteinlm.corpus.record_gathering import gather_tokens

        place = self._start + len(self)
        with measured(self.timings, "gather"):
            tokens = gather_tokens(records.tokens, records.offsets, numbers, ends, self._account)

        def write() -> None:
            with measured(self.timings, "write"), writing(self._path):
                self._room.reach(place, place + len(tokens))
                write_at(self._descriptor, tokens, place)

        self._worker.submit(write)

    def finish(self, path: Path, others: Datasets) -> tuple[str, str]:
        """Write the other datasets and make the file the shard ``path``.

        Args:
            path: the shard.
            others: all datasets but the tokens, in the order of the format.

        Returns:
            the ``content_digest`` of the shard and the ``block_digests`` of the file, joined.

        Raises:
            OutputError: as ``append``.
        """
        try:
            self._worker.wait()
            with writing(path):
                return self._finished(path, others)
        finally:
            self.close()

    def _finished(self, path: Path, others: Datasets) -> tuple[str, str]:
        for values in others.values():
            self._account.add_to_digest(values)
        digest = self.digest
        sizes = {layout.TOKENS_DATASET: len(self)} | {name: len(values) for name, values in others.items()}
        plan = self._path.with_name(f"{path.name}.plan")
        planned = lay_out(plan, sizes, digest)
        if planned.positions[layout.TOKENS_DATASET] == self._start:
            plan.unlink()
            blocks = self._completed(planned, others)
            self._room.give_back()
            os.replace(self._path, path)
        else:
            tokens = np.concatenate([*self._read(len(self))])
            blocks = write_shard(plan, {layout.TOKENS_DATASET: tokens, **others}, digest=digest)
            os.replace(plan, path)
        return digest, blocks

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _completed(self, planned: Layout, others: Datasets) -> str:
        """Write all but the tokens and return the digests of the blocks."""
        for position, content in planned.frame:
            write_at(self._descriptor, np.frombuffer(content, dtype=np.uint8), position)
        for name, values in others.items():
            write_at(self._descriptor, values, planned.positions[name])
        num_blocks = -(-os.fstat(self._descriptor).st_size // layout.BLOCK_BYTES)
        first, whole = self._account.first_block, self._account.blocks
        # the others lie partly or wholly in what was written just now
        before = [self._block(number) for number in range(min(first, num_blocks))]
        return "".join([*before, *whole, *(self._block(number) for number in range(first + len(whole), num_blocks))])

    def _block(self, number: int) -> str:
        return block_digest(os.pread(self._descriptor, layout.BLOCK_BYTES, number * layout.BLOCK_BYTES))

    def _read(self, size: int) -> Iterator[NDArray[np.uint8]]:
        for place in range(0, size, _PIECE):
            piece = os.pread(self._descriptor, min(_PIECE, size - place), self._start + place)
            yield np.frombuffer(piece, dtype=np.uint8)
