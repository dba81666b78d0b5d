"""LSH attention: exact softmax over keys that hash like the query."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, Unpack

import torch
from torch import Tensor

from proteinlm.attention.choices import Choices
from proteinlm.attention.redrawn import RedrawnAttention
from proteinlm.attention.unread import keep_in_graph
from proteinlm.errors import ShapeError
from proteinlm.ops import lsh_attention as ops
from proteinlm.ops.lsh_attention.hashing import MOST_BUCKETS
from proteinlm.ops.visibility import Seen, Visibility

# settings that only one of the two forms has
OF_SHARED = ("num_hashes", "num_buckets", "num_chunks_before", "num_chunks_after")
OF_SEPARATE = ("num_sampled_keys",)


@dataclass(frozen=True, kw_only=True, slots=True)
class LshConfig:
    """Settings of LSH attention.

    Raises:
        ValueError: if a setting is out of its range, or has no meaning beside another.
    """

    # attention within buckets of a hash
    # when: attention is sharp and proteins are long
    kind: Literal["lsh"] = "lsh"
    # a position's key is its query, of length 1
    # when: weights trained with separate keys are hashed (false)
    shared_query_key: bool = True
    # rounds of hashing; may change at evaluation, the first rounds stay the same; separate keys: one
    # when: near keys fall apart (more, in proportion slower)
    num_hashes: int = 4
    # tokens of a chunk; separate keys: the largest length of a block
    # when: memory is short (less), or keys are missed (more)
    chunk_length: int = 64
    # buckets of a segment, even; 0: about one for each chunk of its visible tokens
    # when: a paper is repeated that fixes it
    num_buckets: int = 0
    # chunks before its own that a query also sees
    # when: keys of its bucket lie outside (more)
    num_chunks_before: int = 1
    # chunks behind its own that a query also sees; a causal form looks at none
    # when: keys of its bucket lie outside (more)
    num_chunks_after: int = 1
    # keys drawn from outside the blocks, of separate queries and keys only
    # when: the estimate varies too much (more)
    num_sampled_keys: int = 256
    # optimiser steps between two draws of the rotations; 0 keeps the first
    # when: the loss jumps at every redraw (more)
    redraw_interval: int = 1

    def __post_init__(self) -> None:
        for name in ("num_hashes", "chunk_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        for name in ("num_chunks_before", "num_chunks_after", "num_sampled_keys"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.redraw_interval < 0:
            raise ValueError(f"redraw_interval is {self.redraw_interval}; expected 1 or more, or 0 for never")
        if not 0 <= self.num_buckets <= MOST_BUCKETS**2 or self.num_buckets % 2:
            raise ValueError(
                f"num_buckets is {self.num_buckets}; expected an even number up to {MOST_BUCKETS**2}, or 0 for that "
                "of the length"
            )
        for name in OF_SEPARATE if self.shared_query_key else OF_SHARED:
            if getattr(self, name) != _default(name):
                shared = str(self.shared_query_key).lower()
                raise ValueError(f"{name} is {getattr(self, name)}; with shared_query_key = {shared} it has no meaning")


def _default(name: str) -> object:
    return next(field.default for field in dataclasses.fields(LshConfig) if field.name == name)


class LshAttention(RedrawnAttention):
    """softmax(q_i·k_j / sqrt(K)) v_j, k_j = q_j / |q_j|, over the keys that share a chunk in some hash round.

    A key that several rounds find counts once. A position sees itself only where it sees nothing else; a hidden
    position sees nothing. Keys are made from the queries: what is handed over as keys is read by nobody.

    Rotations are a pure function of (seed, layer, draw, round), neither parameter nor buffer, and the same for
    all heads. Evaluation uses those of the last step. In the causal form no query sees a later key, but
    which earlier ones it sees depends on where later tokens fall in the order of buckets.
    """

    shares_query_key = True
    has_causal_form = True

    def __init__(self, config: LshConfig, *, head_dim: int, layer: int, seed: int) -> None:
        super().__init__(head_dim=head_dim, layer=layer, seed=seed, redraw_interval=config.redraw_interval)
        assert config.shared_query_key, "separate queries and keys are lsh_separate's"
        self.config = config

    def rotations(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the rotations in use as rotations_R2KF, float64."""

        def draw() -> Tensor:
            return ops.rotations(
                self.config.num_hashes, self.head_dim, seed=self.seed, layer=self.layer, draw=self.draw
            )

        return self.drawn("rotations", draw, device)

    def extra_repr(self) -> str:
        """Name the settings that tell one mechanism from another."""
        config = self.config
        buckets = f", {config.num_buckets} buckets" if config.num_buckets else ""
        around = f"{config.num_chunks_before} before, {config.num_chunks_after} after"
        rounds = f"{config.num_hashes} rounds, chunks of {config.chunk_length} ({around}){buckets}"
        return f"{rounds}, shared query and key, {self.redrawing}"

    def sparse_map(
        self, q_BLHK: Tensor, *, window: int, head: int, rows: slice = slice(None), **seen: Unpack[Seen]
    ) -> ops.SparseRows:
        """Return some rows of the map of one head in one window, with memory for its few pairs only.

        Args:
            window: which of the B windows.
            head: which of the H heads.
            rows: the queries wanted, a slice of L with step 1.
            seen: as for ``forward``.

        Raises:
            ShapeError: if the arguments do not fit together.
        """
        visibility = self._check(q_BLHK, q_BLHK, **seen).of_window(window)
        if not 0 <= head < q_BLHK.shape[2]:
            raise ShapeError(f"head {head}; expected one of {q_BLHK.shape[2]} heads")
        q_1L1K = q_BLHK[window : window + 1, :, head : head + 1]
        buckets_1L1R = self._hash(q_1L1K, visibility)
        return ops.lsh_sparse_map(q_1L1K, buckets_1L1R, self._chunking(visibility), rows=rows, visibility=visibility)

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, visibility: Visibility, choices: Choices | None
    ) -> Tensor:
        def choose() -> Tensor:
            return self._hash(q_BLHK, visibility)

        buckets_BLHR = choose() if choices is None else choices.make(choose)
        out_BLHK = ops.lsh_attention(q_BLHK, v_BLHK, buckets_BLHR, self._chunking(visibility), visibility=visibility)
        return out_BLHK if k_BLHK is q_BLHK else keep_in_graph(out_BLHK, k_BLHK)

    def _map(self, q_BLHK: Tensor, k_BLHK: Tensor, visibility: Visibility, rows: slice, heads: slice) -> Tensor:
        q_BLhK = q_BLHK[:, :, heads]
        buckets_BLhR = self._hash(q_BLhK, visibility)
        return ops.lsh_map(q_BLhK, buckets_BLhR, self._chunking(visibility), rows=rows, visibility=visibility)

    def _hash(self, q_BLHK: Tensor, visibility: Visibility) -> Tensor:
        config, rotations_R2KF = self.config, self.rotations(q_BLHK.device)
        return ops.hash_buckets(
            q_BLHK, rotations_R2KF, config.chunk_length, num_buckets=config.num_buckets, visibility=visibility
        )

    def _chunking(self, visibility: Visibility) -> ops.Chunking:
        num_after = 0 if visibility.is_causal else self.config.num_chunks_after
        return ops.Chunking(self.config.chunk_length, self.config.num_chunks_before, num_after)
