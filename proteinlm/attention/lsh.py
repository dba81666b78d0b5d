"""LSH attention: exact softmax over keys that hash like the query."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from proteinlm.attention.choices import Choices
from proteinlm.attention.interface import Attention
from proteinlm.attention.unread import keep_in_graph
from proteinlm.errors import ShapeError
from proteinlm.ops import lsh_attention as ops
from proteinlm.ops.lsh_attention.hashing import MOST_BUCKETS

# settings that only one of the two forms has
OF_SHARED = ("num_hashes", "num_buckets", "num_chunks_before", "num_chunks_after")
OF_SEPARATE = ("num_sampled_keys",)


@dataclass(frozen=True, kw_only=True, slots=True)
class LshConfig:
    """Settings of LSH attention.

    Raises:
        ValueError: if a setting is out of its range, or has no meaning beside another.
    """

    kind: Literal["lsh"] = "lsh"
    shared_query_key: bool = True  # a position's key is its query, of length 1
    num_hashes: int = 4  # rounds; may change at evaluation, the first rounds stay the same; separate keys: one
    chunk_length: int = 64  # tokens; separate keys: the largest length of a block
    num_buckets: int = 0  # of a segment; 0: about one for each chunk of its visible tokens
    num_chunks_before: int = 1
    num_chunks_after: int = 1  # a causal form looks at none
    num_sampled_keys: int = 256  # of separate queries and keys only
    redraw_interval: int = 1  # optimiser steps; 0 keeps the first rotations

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


class LshAttention(Attention):
    """softmax(q_i·k_j / sqrt(K)) v_j, k_j = q_j / |q_j|, over the keys that share a chunk in some hash round.

    A key that several rounds find counts once. A position sees itself only where it sees nothing else; a hidden
    position sees nothing. Keys are made from the queries: what is handed over as keys is read by nobody.

    Rotations are a pure function of (seed, layer, draw, round), neither parameter nor buffer, and the same for
    all heads. Evaluation uses those of the last step. In the causal form no query sees a later key, but
    which earlier ones it sees depends on where later tokens fall in the order of buckets.

    Attributes:
        draw: which rotations are in use; ``set_step`` sets it and so may you.
    """

    is_exact = False
    shares_query_key = True

    def __init__(self, config: LshConfig, *, head_dim: int, layer: int, seed: int) -> None:
        super().__init__(head_dim)
        assert config.shared_query_key, "separate queries and keys are lsh_separate's"
        self.config = config
        self.layer = layer
        self.seed = seed
        self.draw = 0
        self._drawn: dict[tuple[int, torch.device], Tensor] = {}

    def set_step(self, step: int) -> None:
        """Use the rotations of optimiser step ``step``: draw number step // redraw_interval."""
        self.draw = step // self.config.redraw_interval if self.config.redraw_interval else 0

    def draw_number(self) -> int:
        """Return the number of the draw in use."""
        return self.draw

    def rotations(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the rotations in use as rotations_R2KF, float64."""
        key = (self.draw, torch.device(device))
        if key not in self._drawn:
            self._drawn = {k: drawn for k, drawn in self._drawn.items() if k[0] == self.draw}
            # tensors first drawn in inference mode could not be used in training afterwards
            with torch.inference_mode(False):
                drawn = ops.rotations(
                    self.config.num_hashes, self.head_dim, seed=self.seed, layer=self.layer, draw=self.draw
                )
                self._drawn[key] = drawn.to(device)
        return self._drawn[key]

    def extra_repr(self) -> str:
        """Name the settings that tell one mechanism from another."""
        config = self.config
        buckets = f", {config.num_buckets} buckets" if config.num_buckets else ""
        around = f"{config.num_chunks_before} before, {config.num_chunks_after} after"
        return f"{config.num_hashes} rounds, chunks of {config.chunk_length} ({around}){buckets}, shared query and key"

    def sparse_map(
        self,
        q_BLHK: Tensor,
        *,
        window: int,
        head: int,
        key_mask_BL: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        rows: slice = slice(None),
        is_causal: bool = False,
    ) -> ops.SparseRows:
        """Return some rows of the map of one head in one window, with memory for its few pairs only.

        Args:
            window: which of the B windows.
            head: which of the H heads.
            key_mask_BL: as for ``forward``, as are ``cu_seqlens`` and ``is_causal``.
            rows: the queries wanted, a slice of L with step 1.

        Raises:
            ShapeError: if the arguments do not fit together.
        """
        self._check(q_BLHK, q_BLHK, key_mask_BL)
        windows, length, num_heads, _ = q_BLHK.shape
        if not (0 <= window < windows and 0 <= head < num_heads):
            raise ShapeError(f"window {window}, head {head}; expected one of {windows} windows and {num_heads} heads")
        q_1LHK, mask_1L = q_BLHK[window : window + 1], None if key_mask_BL is None else key_mask_BL[window, None]
        if cu_seqlens is not None:
            inside = (cu_seqlens >= window * length) & (cu_seqlens <= (window + 1) * length)
            cu_seqlens = cu_seqlens[inside] - window * length
        buckets_1LHR = self._hash(q_1LHK[:, :, head : head + 1], mask_1L, cu_seqlens)
        return ops.lsh_sparse_map(
            q_1LHK[0, :, head],
            buckets_1LHR[0, :, 0],
            self._chunking(is_causal),
            is_causal=is_causal,
            key_mask_L=None if mask_1L is None else mask_1L[0],
            cu_seqlens=cu_seqlens,
            rows=rows,
        )

    def _attend_form(
        self,
        q_BLHK: Tensor,
        k_BLHK: Tensor,
        v_BLHK: Tensor,
        key_mask_BL: Tensor | None,
        cu_seqlens: Tensor | None,
        is_causal: bool,
        choices: Choices | None,
    ) -> Tensor:
        def choose() -> Tensor:
            return self._hash(q_BLHK, key_mask_BL, cu_seqlens)

        out_BLHK = ops.lsh_attention(
            q_BLHK,
            v_BLHK,
            choose() if choices is None else choices.make(choose),
            self._chunking(is_causal),
            is_causal=is_causal,
            key_mask_BL=key_mask_BL,
            cu_seqlens=cu_seqlens,
        )
        return out_BLHK if k_BLHK is q_BLHK else keep_in_graph(out_BLHK, k_BLHK)

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        return self._attend_form(q_BLHK, k_BLHK, v_BLHK, key_mask_BL, cu_seqlens, False, None)

    def _map(
        self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None, rows: slice
    ) -> Tensor:
        return self._map_form(q_BLHK, key_mask_BL, cu_seqlens, rows, is_causal=False)

    def _map_causal(
        self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None, rows: slice
    ) -> Tensor:
        return self._map_form(q_BLHK, key_mask_BL, cu_seqlens, rows, is_causal=True)

    def _map_form(
        self, q_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None, rows: slice, *, is_causal: bool
    ) -> Tensor:
        return ops.lsh_map(
            q_BLHK,
            self._hash(q_BLHK, key_mask_BL, cu_seqlens),
            self._chunking(is_causal),
            is_causal=is_causal,
            key_mask_BL=key_mask_BL,
            cu_seqlens=cu_seqlens,
            rows=rows,
        )

    def _hash(self, q_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
        return ops.hash_buckets(
            q_BLHK,
            self.rotations(q_BLHK.device),
            self.config.chunk_length,
            num_buckets=self.config.num_buckets,
            key_mask_BL=key_mask_BL,
            cu_seqlens=cu_seqlens,
        )

    def _chunking(self, is_causal: bool) -> ops.Chunking:
        config = self.config
        return ops.Chunking(config.chunk_length, config.num_chunks_before, 0 if is_causal else config.num_chunks_after)
