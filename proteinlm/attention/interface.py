"""What every attention mechanism offers the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, nn

from proteinlm.attention.choices import Choices
from proteinlm.errors import ShapeError, UnavailableError

State = TypeVar("State")


class Attention(nn.Module, ABC):
    """One layer's attention mechanism: no parameters, and no state that a checkpoint would hold.

    Queries attend to the visible keys of their own segment. Without ``cu_seqlens`` each of the B
    windows is one segment. A query that sees no key gets exactly 0, with zero gradients.

    A mechanism may have a causal form, in which no query sees a later key, and with it a recurrent one: a
    state of fixed size that continues a sequence token by token.
    """

    is_exact: bool
    # whether keys are the queries themselves, so that a block projects no others
    shares_query_key: bool = False

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
        is_causal: bool = False,
        choices: Choices | None = None,
    ) -> Tensor:
        """Return what each query reads from the values; the mechanism scales by 1 / sqrt(K) itself.

        Args:
            q_BLHK: queries; ``k_BLHK`` and ``v_BLHK`` have the same shape. Dtypes may differ.
            key_mask_BL: bool, True where a key is visible; None: all are.
            cu_seqlens: int32 (S + 1,), where segments start in the flattened B·L positions, and B·L;
                ends of windows are among them.
            is_causal: whether a query sees no key behind it.
            choices: remembers or repeats what the mechanism chooses, such as buckets; None: nobody asks.

        Returns:
            out_BLHK in the dtype of ``v_BLHK``.

        Raises:
            ShapeError: if the arguments do not fit together.
            UnavailableError: if the mechanism has no causal form.
        """
        self._check(q_BLHK, k_BLHK, key_mask_BL, v_BLHK)
        return self._attend_form(q_BLHK, k_BLHK, v_BLHK, key_mask_BL, cu_seqlens, is_causal, choices)

    def attention_map(
        self,
        q_BLHK: Tensor,
        k_BLHK: Tensor,
        *,
        key_mask_BL: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        rows: slice = slice(None),
        heads: slice = slice(None),
        is_causal: bool = False,
    ) -> Tensor:
        """Return the weights, exact or implied, with which some rows of queries read the values.

        The map times the values is ``forward``'s output (linear attention that normalises the numerator says
        what its map is). Rows sum to 1 where a key is visible and
        are 0 elsewhere, across windows of ``cu_seqlens`` as well. No gradient. Memory beyond the
        result does not grow with L^2, so long sequences can be mapped block by block of ``rows``.

        Args:
            rows: the queries wanted, a slice of L with step 1.
            heads: the heads wanted, a slice of H.
            is_causal: whether a query sees no key behind it.

        Returns:
            map_BHRL, float32, or float64 for float64 queries or keys.

        Raises:
            ShapeError: if the arguments do not fit together.
            UnavailableError: if the mechanism has no causal form.
        """
        self._check(q_BLHK, k_BLHK, key_mask_BL)
        return self._map_heads(q_BLHK, k_BLHK, key_mask_BL, cu_seqlens, rows, heads, is_causal)

    def prefill(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, *, key_mask_BL: Tensor | None = None
    ) -> tuple[Tensor, object]:
        """Return the causal output for the beginning of each window, and the state that ``step`` goes on from.

        No gradient runs through the state. L may be 0: that is the state before the first token.

        Returns:
            out_BLHK in the dtype of ``v_BLHK``, and a frozen state, float32 or float64, of a size that does not
            depend on L.

        Raises:
            ShapeError: if the arguments do not fit together.
            UnavailableError: if the mechanism has no recurrent form.
        """
        self._check(q_BLHK, k_BLHK, key_mask_BL, v_BLHK)
        return self._prefill(q_BLHK, k_BLHK, v_BLHK, key_mask_BL)

    def step(self, q_BHK: Tensor, k_BHK: Tensor, v_BHK: Tensor, state: object) -> tuple[Tensor, object]:
        """Return what the next token of each window reads, and the state behind it; no gradient.

        Time and memory do not depend on how many tokens went before. ``state`` stays as it was.

        Args:
            q_BHK: the token's queries; ``k_BHK`` and ``v_BHK`` have the same shape.
            state: what ``prefill`` or ``step`` of this mechanism returned.

        Returns:
            out_BHK in the dtype of ``v_BHK``, and the new state.

        Raises:
            ShapeError: if the arguments do not fit together, or the state is of another mechanism.
            UnavailableError: if the mechanism has no recurrent form.
        """
        # as windows of one position
        self._check(q_BHK[:, None], k_BHK[:, None], None, v_BHK[:, None])
        return self._step(q_BHK, k_BHK, v_BHK, state)

    def set_step(self, step: int) -> None:
        """Tell the mechanism the optimiser step; what it draws at random depends on nothing else."""

    def draw_number(self) -> int:
        """Return which draw is in use: a backward pass that computes again needs that of its forward pass."""
        return 0

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
        """Attend in one form; a mechanism that makes discrete choices overrides it."""
        of_form = self._attend_causal if is_causal else self._attend
        return of_form(q_BLHK, k_BLHK, v_BLHK, key_mask_BL, cu_seqlens)

    @abstractmethod
    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor: ...

    @abstractmethod
    def _map(
        self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None, rows: slice
    ) -> Tensor: ...

    def _map_heads(
        self,
        q_BLHK: Tensor,
        k_BLHK: Tensor,
        key_mask_BL: Tensor | None,
        cu_seqlens: Tensor | None,
        rows: slice,
        heads: slice,
        is_causal: bool,
    ) -> Tensor:
        """Map some heads; a mechanism that treats heads differently overrides it."""
        of_form = self._map_causal if is_causal else self._map
        return of_form(q_BLHK[:, :, heads], k_BLHK[:, :, heads], key_mask_BL, cu_seqlens, rows)

    def _attend_causal(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        self._refuse("causal form; leave is_causal out, or use kind 'linear', 'favor', 'lsh' or 'softmax'")

    def _map_causal(
        self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None, cu_seqlens: Tensor | None, rows: slice
    ) -> Tensor:
        self._refuse("causal form; leave is_causal out, or use kind 'linear', 'favor', 'lsh' or 'softmax'")

    def _prefill(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, key_mask_BL: Tensor | None
    ) -> tuple[Tensor, object]:
        self._refuse("recurrent form; compute the whole sequence at once, or use kind 'linear' or 'favor'")

    def _step(self, q_BHK: Tensor, k_BHK: Tensor, v_BHK: Tensor, state: object) -> tuple[Tensor, object]:
        self._refuse("recurrent form; compute the whole sequence at once, or use kind 'linear' or 'favor'")

    def _refuse(self, what: str) -> NoReturn:
        raise UnavailableError(f"{type(self).__name__} has no {what}")

    def _check(self, q_BLHK: Tensor, k_BLHK: Tensor, key_mask_BL: Tensor | None, v_BLHK: Tensor | None = None) -> None:
        if q_BLHK.ndim != 4 or q_BLHK.shape[-1] != self.head_dim:
            raise ShapeError(f"queries are {tuple(q_BLHK.shape)}; expected (B, L, H, {self.head_dim})")
        if k_BLHK.shape != q_BLHK.shape:
            raise ShapeError(f"keys are {tuple(k_BLHK.shape)} but queries {tuple(q_BLHK.shape)}; expected the same")
        if key_mask_BL is not None and (key_mask_BL.shape != q_BLHK.shape[:2] or key_mask_BL.dtype != torch.bool):
            found = f"{key_mask_BL.dtype} {tuple(key_mask_BL.shape)}"
            raise ShapeError(f"key mask is {found}; expected torch.bool {tuple(q_BLHK.shape[:2])}")
        if v_BLHK is not None and v_BLHK.shape != q_BLHK.shape:
            raise ShapeError(f"values are {tuple(v_BLHK.shape)} but queries {tuple(q_BLHK.shape)}; expected the same")


def check_state(state: object, kind: type[State], field: str, sizes: tuple[int, ...]) -> State:
    """Return a state that is of one kind, and whose tensor ``field`` has the sizes given.

    Raises:
        ShapeError: if it is not.
    """
    if not isinstance(state, kind):
        raise ShapeError(f"state is a {type(state).__name__}; expected the {kind.__name__} that prefill returns")
    found: Tensor = getattr(state, field)
    if found.shape != sizes:
        raise ShapeError(f"state is {tuple(found.shape)}; expected {sizes}, that of prefill with the same settings")
    return state
