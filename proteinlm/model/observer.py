"""Somebody who looks at a forward pass without changing it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from proteinlm.ops.visibility import Visibility


class Observer(Protocol):
    """Is shown every layer while it runs, so that nothing has to be kept that is not wanted."""

    def hidden(self, layer: int, hidden_BLD: Tensor) -> None:
        """See the hidden states: 0 after the embedding, N after the last block and the final norm."""

    def attention(
        self, layer: int, inputs: tuple[Tensor, Tensor, Tensor], out_BLHK: Tensor, visibility: Visibility
    ) -> None:
        """See what the mechanism of layer 0 … N - 1 received and returned.

        Args:
            layer: counted from 0.
            inputs: q_BLHK, k_BLHK and v_BLHK as the mechanism gets them: queries and keys normalised, scaled and
                turned.
            out_BLHK: what it returned.
            visibility: what its queries may see.
        """
