"""What every attention mechanism offers the model."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from proteinlm.errors import ShapeError


class Attention(nn.Module, ABC):
    """One layer's attention mechanism: no parameters, and no state that a checkpoint would hold.

    Queries attend to the visible keys of their own segment. Without ``cu_seqlens`` each of the B
    windows is one segment. A query that sees no key gets exactly 0, with zero gradients.
    """

    is_exact: bool

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def forward(
        self,
        q_BLHK: Tensor,
        k_BLHK: Tensor,
        v_BLHK: Tensor,
        *,
        key_mask_BL: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Return what each query reads from the values; the mechanism scales by 1 / sqrt(K) itself.

        Args:
            q_BLHK: queries; ``k_BLHK`` and ``v_BLHK`` have the same shape. Dtypes may differ.
            key_mask_BL: bool, True where a key is visible; None: all are.
            cu_seqlens: int32 (S + 1,), where segments start in the flattened B·L positions, and B·L;
                ends of windows are among them.

        Returns:
            out_BLHK in the dtype of ``v_BLHK``.

        Raises:
            ShapeError: if the arguments do not fit together.
        """
        self._check(q_BLHK, k_BLHK, key_mask_BL)
        if v_BLHK.shape != q_BLHK.shape:
            raise ShapeError(f"values are {tuple(v_BLHK.shape)} but queries {tuple(q_BLHK.shape)}; expected the same")
        return self._attend(q_BLHK, k_BLHK, v_BLHK, key_mask_BL, cu_seqlens)

    def attention_map(
        self,
        q_BLHK: Tensor,
        k_BLHK: Tensor,
        *,
        key_mask_BL: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        rows: slice = slice(None),
    ) -> Tensor:
        """Return the weights, exact or implied, with which some rows of queries read the values.

        The map times the values is ``forward``'s output. Rows sum to 1 where a key is visible and
        are 0 elsewhere, across windows of ``cu_seqlens`` as well. No gradient. Memory beyond the
        result does not grow with L^2, so long sequences can be mapped block by block of ``rows``.

        Args:
            rows: the queries wanted, a slice of L with step 1.

        Returns:
            map_BHRL, float32, or float64 for float64 queries or keys.

        Raises:
            ShapeError: if the arguments do not fit together.
        """
        self._check(q_BLHK, k_BLHK, key_mask_BL)
        return self._map(q_BLHK, k_BLHK, key_mask_BL, cu_seqlens, rows)

    def set_step(self, step: int) -> None:
        """Tell the mechanism the optimiser step; what it draws at random depends on nothing else."""

    @abstractmethod
    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor: ...

    @abstractmethod
    def _map(
        self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None, rows: slice
    ) -> Tensor: ...

    def _check(self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None) -> None:
        if q_BLHK.ndim != 4 or q_BLHK.shape[-1] != self.head_dim:
            raise ShapeError(f"queries are {tuple(q_BLHK.shape)}; expected (B, L, H, {self.head_dim})")
        if k_BLHK.shape != q_BLHK.shape:
            raise ShapeError(f"keys are {tuple(k_BLHK.shape)} but queries {tuple(q_BLHK.shape)}; expected the same")
        if key_mask_BL is not None and (key_mask_BL.shape != q_BLHK.shape[:2] or key_mask_BL.dtype != torch.bool):
            found = f"{key_mask_BL.dtype} {tuple(key_mask_BL.shape)}"
            raise ShapeError(f"key mask is {found}; expected torch.bool {tuple(q_BLHK.shape[:2])}")
