"""What every attention mechanism offers the model."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import NoReturn, TypeVar, Unpack

from torch import Tensor, nn

from proteinlm.attention.choices import Choices
from proteinlm.errors import ShapeError, UnavailableError
from proteinlm.ops.visibility import Seen, Visibility, check_inputs

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
    has_causal_form: bool = False

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def forward(
        self,
        q_BLHK: Tensor,
        k_BLHK: Tensor,
        v_BLHK: Tensor,
        *,
        choices: Choices | None = None,
        **seen: Unpack[Seen],
    ) -> Tensor:
        """Return what each query (B, L, H, K) reads from the values; the mechanism scales by 1 / sqrt(K) itself.

        Args:
            q_BLHK: queries; ``k_BLHK`` and ``v_BLHK`` have the same shape, and not (B, H, L, K). Dtypes may differ.
            choices: remembers or repeats what the mechanism chooses, such as buckets; None: nobody asks.
            seen: ``visibility``, or what it is made of: ``key_mask_BL``, ``cu_seqlens`` and ``is_causal``, see
                ``Visibility``.

        Returns:
            out_BLHK in the dtype of ``v_BLHK``.

        Raises:
            ShapeError: if the arguments do not fit together.
            UnavailableError: if the mechanism has no causal form and one is asked for.
        """
        visibility = self._check(q_BLHK, k_BLHK, v_BLHK, **seen)
        return self._attend(q_BLHK, k_BLHK, v_BLHK, visibility, choices)

    def attention_map(
        self,
        q_BLHK: Tensor,
        k_BLHK: Tensor,
        *,
        rows: slice = slice(None),
        heads: slice = slice(None),
        **seen: Unpack[Seen],
    ) -> Tensor:
        """Return the weights, exact or implied, with which some rows of queries (B, L, H, K) read the values.

        The map times the values is ``forward``'s output (linear attention that normalises the numerator says
        what its map is). Rows sum to 1 where a key is visible and
        are 0 elsewhere, across windows of ``cu_seqlens`` as well. No gradient. Memory beyond the
        result does not grow with L^2, so long sequences can be mapped block by block of ``rows``.

        Args:
            rows: the queries wanted, a slice of L with step 1.
            heads: the heads wanted, a slice of H.
            seen: as for ``forward``.

        Returns:
            map_BHRL, float32, or float64 for float64 queries or keys.

        Raises:
            ShapeError: if the arguments do not fit together.
            UnavailableError: if the mechanism has no causal form and one is asked for.
        """
        return self._map(q_BLHK, k_BLHK, self._check(q_BLHK, k_BLHK, **seen), rows, heads)

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
        visibility = self._check(q_BLHK, k_BLHK, v_BLHK, key_mask_BL=key_mask_BL)
        return self._prefill(q_BLHK, k_BLHK, v_BLHK, dataclasses.replace(visibility, is_causal=True))

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
        self._check(q_BHK[:, None], k_BHK[:, None], v_BHK[:, None])
        return self._step(q_BHK, k_BHK, v_BHK, state)

    def set_step(self, step: int) -> None:
        """Tell the mechanism the optimiser step; what it draws at random depends on nothing else."""

    def draw_number(self) -> int:
        """Return which draw is in use: a backward pass that computes again needs that of its forward pass."""
        return 0

    @abstractmethod
    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, visibility: Visibility, choices: Choices | None
    ) -> Tensor: ...

    @abstractmethod
    def _map(self, q_BLHK: Tensor, k_BLHK: Tensor, visibility: Visibility, rows: slice, heads: slice) -> Tensor: ...

    def _prefill(self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, visibility: Visibility) -> tuple[Tensor, object]:
        self._refuse_recurrence()

    def _step(self, q_BHK: Tensor, k_BHK: Tensor, v_BHK: Tensor, state: object) -> tuple[Tensor, object]:
        self._refuse_recurrence()

    def _refuse_recurrence(self) -> NoReturn:
        raise UnavailableError(
            f"{type(self).__name__} has no recurrent form; compute the whole sequence at once, or use kind 'linear' or "
            "'favor'"
        )

    def _check(self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor | None = None, **seen: Unpack[Seen]) -> Visibility:
        if q_BLHK.ndim != 4 or q_BLHK.shape[-1] != self.head_dim:
            raise ShapeError(f"queries are {tuple(q_BLHK.shape)}; expected (B, L, H, {self.head_dim})")
        bidirectional_only = None if self.has_causal_form else type(self).__name__
        return check_inputs(q_BLHK, k_BLHK, v_BLHK, bidirectional_only=bidirectional_only, **seen)


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
