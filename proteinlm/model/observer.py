"""Somebody who looks at a forward pass without changing it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Observer(Protocol):
    """Is shown every layer while it runs, so that nothing has to be kept that is not wanted."""

    def hidden(self, layer: int, hidden_BLD: Tensor) -> None:
        """See the hidden states: 0 after the embedding, N after the last block and the final norm."""

    def attention(self, layer: int, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, out_BLHK: Tensor) -> None:
        """See what the mechanism of layer 0 … N - 1 received and returned.

        Queries and keys are shown as the mechanism gets them: normalised, scaled and turned.
        """
